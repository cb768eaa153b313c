"""Dialling: who is tried, and what is said about it."""

from __future__ import annotations

import logging
import random

import pytest
import trio
from trio.testing import MockClock

from fusefs.model.ids import NodeId
from netnode.core.membership import Membership
from netnode.dialler import Dialler
from netnode.environment import Environment


def test_each_address_and_reason_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    membership = Membership(NodeId(1), ["seed:1"])
    membership.learn_addresses(NodeId(2), ("two:1", "two:2"))
    tried: list[str] = []

    async def attempt(address: str, node: NodeId | None) -> None:
        tried.append(address)
        raise OSError(f"{address[-1]} refuses")

    async def main() -> None:
        environment = Environment(rng=random.Random(1))
        dialler = Dialler(membership, environment, lambda: (), attempt)
        with trio.move_on_after(120):
            await dialler.run()

    with caplog.at_level(logging.INFO, "netnode.dialler"):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert min(tried.count(address) for address in set(tried)) > 3
    assert sorted(record.getMessage() for record in caplog.records) == [
        "dialling seed:1: 1 refuses",
        "dialling two:1: 1 refuses",
        "dialling two:2: 2 refuses",
    ]


def test_an_error_nobody_expected_ends_one_attempt_only() -> None:
    membership = Membership(NodeId(1), ["seed:1"])
    membership.learn_addresses(NodeId(2), ("two:1",))
    tried: list[str] = []
    bugs: list[str] = []

    async def attempt(address: str, node: NodeId | None) -> None:
        tried.append(address)
        if node is not None:
            raise ValueError("a bug")

    async def main() -> None:
        environment = Environment(rng=random.Random(1), bug=bugs.append)
        dialler = Dialler(membership, environment, lambda: (), attempt)
        with trio.move_on_after(20):
            await dialler.run()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert tried.count("seed:1") > 2
    assert len(bugs) == tried.count("two:1") > 2
