"""Changed chunks as patches (ADR 3): naming what is here, making and applying them."""

from __future__ import annotations

from collections.abc import Iterable

from fusefs.errors import ChunkMissing, Corrupt
from fusefs.model.ids import ChunkId
from fusefs.model.tx import ContentChange
from fusefs.store.store import Store
from netnode.core.basis import Bases, Basis
from netnode.core.patch import cut_out, difference, patched
from netnode.transport import Buffer
from netnode.wire.messages import Chunk, Get, Held, Patch, Put

Message = Chunk | Put | Patch
"""What brings a chunk."""


def bases_of(message: Get | Held) -> dict[ChunkId, Basis]:
    """What the sender says to have in place of chunks."""
    return {cid: Basis(basis, offset) for cid, basis, offset in message.bases}


def part_of(store: Store, basis: Basis, size: int) -> bytearray:
    """So much of it, or less where it ends. Raises ChunkMissing, Corrupt."""
    part = bytearray(size)
    count = store.read_into(basis.cid, basis.offset, memoryview(part))
    del part[count:]
    return part


class Patching:
    """Names of bases are used from the trio thread; `made` and `whole` from any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bases = Bases(store.get)
        self.arrived = self._bases.arrived
        self.useless = self._bases.useless
        self.patched_chunks = 0
        self.saved_bytes = 0
        """Not received, since they were here already."""

    def replaced(self, changes: Iterable[ContentChange]) -> None:
        """What peers changed was applied here."""
        for change in changes:
            self._bases.replaced(change)

    def named(self, cids: Iterable[ChunkId]) -> dict[ChunkId, Basis]:
        """Those that can be made over a chunk that is here, with it."""
        found = ((cid, self._bases.of(cid, self._store.has)) for cid in cids)
        return {cid: basis for cid, basis in found if basis is not None}

    def made(self, message: Chunk | Put, basis: Basis | None) -> tuple[Message, bytes]:
        """What to send instead, if that is shorter, and its body. Raises ChunkMissing,
        Corrupt: the chunk is not here."""
        data = self._store.get(message.cid)
        if basis is None:
            return message, data
        try:
            ranges = difference(part_of(self._store, basis, len(data)), data)
        except (ChunkMissing, Corrupt):
            return message, data
        if ranges is None:
            return message, data
        keep = isinstance(message, Put)
        patch = Patch(message.cid, *basis, len(data), ranges, keep)
        return patch, cut_out(data, ranges)

    def whole(self, message: Message, body: Buffer) -> Buffer:
        """The chunk that came, not verified. Raises ChunkMissing, Corrupt: its basis is
        not here any more."""
        if not isinstance(message, Patch):
            return body
        old = part_of(self._store, Basis(message.basis, message.offset), message.size)
        return patched(old, message.size, message.ranges, body)

    def note(self, message: Message, body: Buffer, was_named: bool) -> None:
        """It is verified and stored."""
        is_patch = isinstance(message, Patch)
        self.arrived(message.cid, is_patch if was_named else None)
        if isinstance(message, Patch):
            self.patched_chunks += 1
            self.saved_bytes += message.size - len(body)
