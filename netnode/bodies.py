"""Small chunks that travel with the transactions that name them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from fusefs.errors import ChunkMissing, Corrupt, FsError
from fusefs.model.ids import ChunkId, chunk_id
from fusefs.model.tx import Body
from fusefs.store.store import Store
from netnode.core.basis import Basis
from netnode.core.patch import patched
from netnode.patching import part_of
from netnode.transport import Buffer
from netnode.wire.frames import ProtocolError

log = logging.getLogger(__name__)


def check_bodies(bodies: Sequence[Body]) -> None:
    """Raises ProtocolError when one that is whole is not what it claims to be."""
    for body in bodies:
        if not body.is_patch and chunk_id(body.data) != body.id:
            raise ProtocolError("an attached chunk is not the one it claims to be")


def keep_bodies(store: Store, bodies: Sequence[Body]) -> None:
    """Before the transactions are applied: what they name is here then."""
    if not bodies:
        return
    chunks: dict[ChunkId, Buffer] = {}
    for body in bodies:
        data = _over_basis(store, chunks, body) if body.is_patch else body.data
        if data is not None:
            chunks[body.id] = data
    try:
        store.put_many(chunks.items(), pushed=False)
    except FsError as error:
        # They can be fetched when they are read; the transactions still count. On a
        # full disk that is so for each of them.
        log.debug("attached chunks were not stored: %s", error)


def _over_basis(
    store: Store, chunks: Mapping[ChunkId, Buffer], body: Body
) -> Buffer | None:
    """The chunk, if its basis is in the store or came before it."""
    basis = ChunkId(body.basis)
    old = bytearray(chunks.get(basis, b""))
    if not old:
        try:
            old = part_of(store, Basis(basis), body.size)
        except (ChunkMissing, Corrupt):
            return None
    data = patched(old, body.size, body.ranges, body.data)
    return data if chunk_id(data) == body.id else None
