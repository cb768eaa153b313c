"""statfs: what is stored, and what this disk still takes."""

from __future__ import annotations

import time

from fusefs.namespace.namespace import Namespace
from fusefs.store.store import Store
from fusefs.vfs.types import StatFs

BLOCK_BYTES = 4096
_FRESH_S = 1.0
"""Totals need a scan of the inode table: at most one a second."""


class SpaceReport:
    """Thread-safe: a race costs one more scan."""

    def __init__(self, namespace: Namespace, store: Store) -> None:
        self._namespace = namespace
        self._store = store
        self._at_s = -_FRESH_S
        self._used_bytes = self._inodes = 0

    def statfs(self) -> StatFs:
        """Used is the size of all files; free is what this node's disk takes."""
        now = time.monotonic()
        if now - self._at_s >= _FRESH_S:
            totals = self._namespace.totals()
            self._used_bytes, self._inodes = totals.bytes, totals.inodes
            self._at_s = now
        space = self._store.space
        free = max(0, space.free_bytes() - space.min_free_bytes) // BLOCK_BYTES
        used = -(-self._used_bytes // BLOCK_BYTES)
        return StatFs(
            block_size=BLOCK_BYTES,
            blocks=used + free,
            blocks_free=free,
            blocks_available=free,
            files=self._inodes + free,
            files_free=free,
            name_max=255,
        )
