"""A thread beside the loop fetches chunks, and does not wait for a loop that ended."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio

from fusefs.errors import Unreachable
from fusefs.model.ids import ChunkId
from netnode.service import Node
from netnode.threadfetch import ThreadFetch

CID = ChunkId(bytes(32))


class Plane:
    """Answers each fetch in its way, or not at all."""

    def __init__(self, answer: tuple[int, str] | None) -> None:
        self.chunks = self
        self._answer = answer

    def fetch(self, cids: object, limit_s: float, *rest: Any) -> int:
        if self._answer is not None:
            rest[-1](*self._answer)
        return 1


def fetched(answer: tuple[int, str] | None, *, cancelled: bool = False) -> ThreadFetch:
    fetch = ThreadFetch()

    async def main() -> None:
        fetch.begin(cast(Node, Plane(answer)))
        await trio.to_thread.run_sync(fetch, CID, lambda: cancelled)

    trio.run(main)
    return fetch


def test_what_arrived_and_what_did_not() -> None:
    fetched((0, ""))
    with pytest.raises(Unreachable, match="no peer has the data"):
        fetched((113, "no peer has the data"))


def test_nobody_waits_for_what_is_not_wanted_any_more() -> None:
    with pytest.raises(Unreachable, match="not wanted"):
        fetched(None, cancelled=True)


def test_without_a_loop_there_is_nobody_to_ask() -> None:
    with pytest.raises(Unreachable, match="does not serve yet"):
        ThreadFetch()(CID, lambda: False)
    with pytest.raises(Unreachable, match="has ended"):
        fetched((0, ""))(CID, lambda: False)
