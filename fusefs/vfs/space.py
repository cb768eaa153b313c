"""statfs: what is stored, and what this disk still takes."""

from __future__ import annotations

from fusefs.namespace.namespace import Namespace
from fusefs.store.store import Store
from fusefs.vfs.types import StatFs

BLOCK_BYTES = 4096


class SpaceReport:
    """Thread-safe."""

    def __init__(self, namespace: Namespace, store: Store) -> None:
        self._namespace = namespace
        self._store = store

    def statfs(self) -> StatFs:
        """Used is the size of all files; free is what this node's disk takes."""
        totals = self._namespace.totals()
        space = self._store.space
        free = max(0, space.free_bytes() - space.min_free_bytes) // BLOCK_BYTES
        used = -(-totals.shown_bytes // BLOCK_BYTES)
        return StatFs(
            block_size=BLOCK_BYTES,
            blocks=used + free,
            blocks_free=free,
            blocks_available=free,
            files=totals.inodes + free,
            files_free=free,
            name_max=255,
        )
