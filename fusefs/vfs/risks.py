"""Objects that must be durable before the registers that name them are.

Syncing meta.db for one program makes the transactions of all others durable. One that
put a new version in the place of another must not be, while the bytes of the new one
are not: after a power cut the old ones, which may have been synced long ago, would be
named by nobody, and the new ones not be there. What a file without an earlier version
loses was never promised.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from fusefs.errors import ChunkMissing
from fusefs.model.ids import ChunkId
from fusefs.store.store import Store

MOST = 65_536
"""Objects that are told one by one; beyond it all that was written is synced."""
ROUNDS = 3
"""While others go on writing."""


class Risks:
    """Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()  # a leaf
        # Held over a sync: who finds nothing at risk must not overtake who took it.
        self._securing = threading.Lock()
        self._cids: set[ChunkId] = set()
        self._everything = False

    def add(self, cids: Iterable[ChunkId]) -> None:
        """Before the transaction that names them is committed."""
        with self._lock:
            self._cids.update(cids)
            if len(self._cids) > MOST:
                self._everything = True
                self._cids.clear()

    def add_everything(self) -> None:
        """It names too many, or nobody knows which."""
        with self._lock:
            self._everything = True

    def synced(self, cids: set[ChunkId]) -> None:
        """They are durable."""
        with self._lock:
            self._cids -= cids

    def secure(self) -> None:
        """They are durable when it returns. Raises Corrupt (EIO)."""
        with self._securing:
            for _ in range(ROUNDS):
                if not self._secure_once():
                    return

    def _secure_once(self) -> bool:
        """False: there was nothing."""
        with self._lock:
            cids, self._cids = self._cids, set()
            everything, self._everything = self._everything, False
        if not cids and not everything:
            return False
        try:
            self._sync(cids, everything)
        except BaseException:
            with self._lock:
                self._cids |= cids
                self._everything |= everything
            raise
        return True

    def _sync(self, cids: set[ChunkId], everything: bool) -> None:
        if everything:
            self._store.sync_all()
            return
        try:
            self._store.sync(cids)
        except ChunkMissing:  # a later version has others, or a peer has it
            pass
