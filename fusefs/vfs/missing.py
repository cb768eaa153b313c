"""The signal that an object has to be fetched first, and the fetching.

Code that runs under a lock cannot wait for the network. It raises `Missing`, its
caller lets go of the lock, fetches, and starts over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fusefs.errors import FsError
from fusefs.model.ids import ChunkId
from fusefs.vfs.ports import Peers

ATTEMPTS = 16
"""How often a request may ask for what it asked for before: a cache evicts it under
our feet. Asking for something new is always a step forward."""


class Missing(Exception):
    """These objects are not on this disk. Never leaves the vfs."""

    def __init__(self, cids: Iterable[ChunkId]) -> None:
        super().__init__()
        self.cids = tuple(cids)


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
