"""Objects of the local store, as the vfs reads them."""

from __future__ import annotations

from fusefs.errors import ChunkMissing
from fusefs.model.ids import ChunkId
from fusefs.store.store import Store
from fusefs.vfs.missing import Missing

CACHED_NODES = 512
"""Manifest nodes kept (8 KiB each, 4 MiB): 128 GiB of files being read at once."""
ZEROS = memoryview(bytes(1 << 20))


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
