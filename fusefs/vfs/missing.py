"""Objects of the local store, and the signal that one has to be fetched first.

Code that runs under a lock cannot wait for the network. It raises `Missing`, its
caller lets go of the lock, fetches, and starts over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fusefs.errors import ChunkMissing, FsError
from fusefs.model.ids import ChunkId
from fusefs.store.store import Store
from fusefs.vfs.ports import Peers

CACHED_NODES = 512
"""Manifest nodes kept (8 KiB each, 4 MiB): 128 GiB of files being read at once."""
ATTEMPTS = 16
"""How often a request may ask for what it asked for before: a cache evicts it under
our feet. Asking for something new is always a step forward."""
ZEROS = memoryview(bytes(1 << 20))


class Missing(Exception):
    """These objects are not on this disk. Never leaves the vfs."""

    def __init__(self, cids: Iterable[ChunkId]) -> None:
        super().__init__()
        self.cids = tuple(cids)


class Objects:
    """The store as the vfs reads it. Thread-safe; never waits for the network."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._nodes: dict[ChunkId, bytes] = {}

    def node(self, cid: ChunkId) -> bytes:
        """A manifest node. Raises Missing."""
        data = self._nodes.get(cid)
        if data is None:
            try:
                data = self._store.get(cid)
            except ChunkMissing:
                raise Missing((cid,)) from None
            self.remember(cid, data)
        return data

    def remember(self, cid: ChunkId, data: bytes) -> None:
        """Keep a node that was just stored. Immutable, so never stale."""
        if len(self._nodes) >= CACHED_NODES:
            self._nodes.clear()
        self._nodes[cid] = data

    def read(self, cid: ChunkId, offset: int, into: memoryview) -> int:
        """Bytes of a chunk; short at its end. Raises Missing."""
        try:
            return self._store.read_into(cid, offset, into)
        except ChunkMissing:
            raise Missing((cid,)) from None


Cancelled = Callable[[], bool] | None


class Fetcher:
    """Waits for the network, with a deadline and the caller's right to interrupt."""

    def __init__(self, peers: Peers, timeout_s: float) -> None:
        self._peers = peers
        self._timeout_s = timeout_s

    def fetch(
        self,
        cids: Sequence[ChunkId],
        cancelled: Cancelled = None,
        ahead: Sequence[ChunkId] = (),
        small: bool = False,
    ) -> None:
        """All of them are local when this returns; those `ahead`, which may be small,
        are asked for, too. No lock may be held.

        Raises: Unreachable, TimedOut, Interrupted.
        """
        self._peers.fetch(
            cids,
            timeout_s=self._timeout_s,
            cancelled=cancelled,
            ahead=ahead,
            small=small,
        )

    def begin(self, cancelled: Cancelled = None) -> Fetching:
        """The fetches of one request."""
        return Fetching(self, cancelled)


class Fetching:
    """As many fetches as a request turns out to need, one after the other."""

    __slots__ = ("_again", "_asked", "_cancelled", "_fetcher")

    def __init__(self, fetcher: Fetcher, cancelled: Cancelled) -> None:
        self._fetcher = fetcher
        self._cancelled = cancelled
        self._asked: set[ChunkId] = set()
        self._again = 0

    def bring(
        self, missing: Missing, ahead: Sequence[ChunkId] = (), small: bool = False
    ) -> None:
        """Raises what `Fetcher.fetch` does; FsError when it gets no further."""
        if self._asked.issuperset(missing.cids):
            self._again += 1
            if self._again >= ATTEMPTS:
                raise FsError("chunks vanish faster than they arrive")
        self._asked.update(missing.cids)
        self._fetcher.fetch(missing.cids, self._cancelled, ahead, small)
