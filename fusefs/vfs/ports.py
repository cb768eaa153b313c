"""What the vfs asks of the network, and the null object without one.

`fusefs.nodelink.NodeLink` implements `Peers`; `Alone` is a store without a node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fusefs.errors import Unreachable
from fusefs.model.ids import ChunkId, Ino, NodeId, Seq
from fusefs.model.tx import Body, Tx
from fusefs.nodelink.ranges import Range


class Peers(Protocol):
    """Every method is thread-safe; those that may wait (all but `publish` and
    `prefetch`) are called without any lock held."""

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
        ahead: Sequence[ChunkId] = (),
        small: bool = False,
    ) -> None:
        """Return when all are in the store. `ahead` is prefetched, behind them, many at
        once if they are `small`.

        Raises: Unreachable, TimedOut, Interrupted.
        """

    def prefetch(self, cids: Sequence[ChunkId]) -> None:
        """Ask for chunks that will be read soon; fire and forget."""

    def lock(
        self,
        ino: Ino,
        want: Range,
        *,
        is_flock: bool,
        wait: bool,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Take, change or (kind UNLOCK, which never fails) drop a lock that excludes
        other nodes. Between processes of this node the caller has decided. Who holds
        it to write and goes on to read is never refused.

        Raises: WouldBlock, NoLocks, Interrupted; what was held before still is.
        """

    def test_lock(
        self,
        ino: Ino,
        want: Range,
        *,
        is_flock: bool,
        cancelled: Callable[[], bool] | None = None,
    ) -> Range | None:
        """A lock of another node that stands in the way. Raises NoLocks,
        Interrupted."""

    def near(self) -> bool:
        """Whether any near peer is connected. Costs nothing."""

    def has_members(self) -> bool:
        """Whether there are other nodes, connected or not. Costs nothing."""

    def reserve(self, parent: Ino, name: bytes) -> bool:
        """May this name be created, as far as near nodes know? Never fails."""

    def give_back(self, parent: Ino, name: bytes) -> None:
        """What `reserve` granted is not made after all. Never fails."""


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
        ahead: Sequence[ChunkId] = (),
        small: bool = False,
    ) -> None:
        raise Unreachable("no node is running, the bytes are not on this disk")

    def prefetch(self, cids: Sequence[ChunkId]) -> None:
        pass

    def lock(
        self,
        ino: Ino,
        want: Range,
        *,
        is_flock: bool,
        wait: bool,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        pass

    def test_lock(
        self,
        ino: Ino,
        want: Range,
        *,
        is_flock: bool,
        cancelled: Callable[[], bool] | None = None,
    ) -> Range | None:
        return None

    def near(self) -> bool:
        return False

    def has_members(self) -> bool:
        return False

    def reserve(self, parent: Ino, name: bytes) -> bool:
        return True

    def give_back(self, parent: Ino, name: bytes) -> None:
        pass
