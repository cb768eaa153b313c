"""Fixtures of the tests against real mounts and processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.cluster import Cluster, Node, cluster


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored, and so are their children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def fresh(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """An empty cluster of this test alone."""
    with cluster(tmp_path) as made:
        yield made
        _print_logs_if_failed(request, made)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    """Two connected nodes, shared by a module whose tests only use the tree.

    Their barrier has time for a crowded machine: what is tested is that it holds.
    """
    with cluster(tmp_path_factory.mktemp("pair")) as made:
        nodes = made.start(2, "-o", "barrier_ms=10000")
        made.wait_near()
        yield nodes


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


FAILED = pytest.StashKey[bool]()


def _print_logs_if_failed(request: pytest.FixtureRequest, made: Cluster) -> None:
    if request.node.stash.get(FAILED, False):
        for node in made.nodes:
            print(node.logs())
