"""Fetching for a thread beside the trio loop: the housekeeping of a node without a
mount."""

from __future__ import annotations

import threading
from collections.abc import Callable

import trio

from fusefs.errors import Unreachable
from fusefs.housekeeping import FETCH_LIMIT_S
from fusefs.model.ids import ChunkId
from netnode.core.fetch import Priority
from netnode.service import Node

LOOK_S = 0.2


class ThreadFetch:
    """Call it from a thread; it is of use between `begin` and the loop's end."""

    def __init__(self) -> None:
        self._node: Node | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    def begin(self, node: Node) -> None:
        """From the loop: this node fetches."""
        self._token = trio.lowlevel.current_trio_token()
        self._node = node

    def __call__(self, cid: ChunkId, cancelled: Callable[[], bool]) -> None:
        """Returns when the chunk is in the store. Raises Unreachable."""
        node, ended = self._node, threading.Event()
        if node is None or self._token is None:
            raise Unreachable("the node does not serve yet")
        result: list[tuple[int, str]] = []

        def done(error: int, reason: str) -> None:
            result.append((error, reason))
            ended.set()

        def ask() -> None:
            node.chunks.fetch((cid,), FETCH_LIMIT_S, Priority.REPAIR, (), done)

        try:
            trio.from_thread.run_sync(ask, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled) as error:
            raise Unreachable("the node has ended") from error
        while not ended.wait(LOOK_S):
            if cancelled():
                raise Unreachable("it is not wanted any more")
        error_number, reason = result[0]
        if error_number:
            raise Unreachable(reason)
