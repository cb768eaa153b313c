"""What the vfs asks of the network: four calls, and the null object without one.

`fusefs.nodelink.NodeLink` implements `Peers`; `Alone` is a store without a node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fusefs.errors import Unreachable
from fusefs.model.ids import ChunkId, NodeId, Seq
from fusefs.model.tx import Body, Tx


class Peers(Protocol):
    """Every method is thread-safe; only `barrier` and `fetch` may wait, and both
    are called without any lock held."""

    def publish(self, tx: Tx, bodies: Sequence[Body] = ()) -> None:
        """Hand a committed transaction to the node. Never blocks, never raises."""

    def barrier(self, seq: Seq, timeout_s: float) -> bool:
        """Wait until every near connected peer shows our transaction `seq`."""

    def fetch(
        self,
        cids: Sequence[ChunkId],
        *,
        timeout_s: float,
        cancelled: Callable[[], bool] | None = None,
        hint: Sequence[NodeId] = (),
    ) -> None:
        """Return when all are in the store.

        Raises: Unreachable, TimedOut, Interrupted.
        """

    def prefetch(self, cids: Sequence[ChunkId]) -> None:
        """Ask for chunks that will be read soon; fire and forget."""


class Alone:
    """No node: nothing to tell, nobody to wait for, nothing to be had."""

    def publish(self, tx: Tx, bodies: Sequence[Body] = ()) -> None:
        pass

    def barrier(self, seq: Seq, timeout_s: float) -> bool:
        return True

    def fetch(
        self,
        cids: Sequence[ChunkId],
        *,
        timeout_s: float,
        cancelled: Callable[[], bool] | None = None,
        hint: Sequence[NodeId] = (),
    ) -> None:
        raise Unreachable("no node is running, the bytes are not on this disk")

    def prefetch(self, cids: Sequence[ChunkId]) -> None:
        pass
