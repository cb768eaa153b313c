"""Identifiers, shared by every layer."""

from __future__ import annotations

from typing import NewType

from blake3 import blake3

NodeId = NewType("NodeId", int)
"""63-bit positive integer, random per writer incarnation of a store."""

Seq = NewType("Seq", int)
"""Number of a transaction of one node, from 1, increasing."""
MAX_SEQ = Seq((1 << 62) - 1)
"""Of a number from elsewhere: the database takes 63 bits."""
MAX_OWN_SEQ = Seq(MAX_SEQ >> 1)
"""Of a number that is ours, from elsewhere: what we do next has to have one, too, that
others take. A node that loses power each second gets there in a hundred years."""

Ino = NewType("Ino", int)
"""63-bit positive inode number, the same on every node."""

ChunkId = NewType("ChunkId", bytes)
"""BLAKE3-256 of the plain bytes: 32 bytes."""

Dot = tuple[NodeId, Seq]
"""Names one transaction; every register it writes gets a sibling with this dot."""

ROOT_INO = Ino(1)
LOST_FOUND_INO = Ino(2)
"""The derived directory `/lost+found`: nowhere else, whatever its registers say."""
LOST_FOUND = b"lost+found"
FIRST_FREE_INO = 16
MASK63 = (1 << 63) - 1

CHUNK_ID_BYTES = 32
HOLE = ChunkId(bytes(CHUNK_ID_BYTES))
"""In a manifest: this chunk is all zeros and has no object."""

NAME_MAX = 255
"""Longest file name in bytes (limits.h)."""


def chunk_id(data: bytes | bytearray | memoryview) -> ChunkId:
    """The id of these bytes."""
    return ChunkId(blake3(data).digest())


def split_ids(data: bytes) -> list[ChunkId]:
    """Chunk ids that stand one behind the other, as in a node of a manifest."""
    width = CHUNK_ID_BYTES
    return [ChunkId(data[at : at + width]) for at in range(0, len(data), width)]


def derive_ino(parent: Ino, name: bytes, kind: int, dot: Dot, bump: int) -> Ino:
    """The inode number for a new entry: equal inputs give equal numbers everywhere.

    `dot` is the latest dot of the dirent register seen (or (0, 0)): two nodes that
    make the same directory at once after the same history get one inode, while a
    name used again gets a new number. `bump` counts local collisions. The numbers of
    one directory's children lie together (their high 20 bits come from it), and so
    do their rows.
    """
    material = b"%d/%d/%d/%d/%d/" % (parent, kind, dot[0], dot[1], bump) + name
    return _ino(_hash64(b"%d" % parent), material)


def derive_version_ino(ino: Ino, dot: Dot) -> Ino:
    """The inode number under which a losing version of `ino` is shown."""
    return _ino(ino << 1, b"version/%d/%d/%d" % (ino, dot[0], dot[1]))


_OWN_BITS = 43


def _ino(near: int, material: bytes) -> Ino:
    own = _hash64(material) & ((1 << _OWN_BITS) - 1)
    number = (near >> (64 - 20) << _OWN_BITS | own) & MASK63
    return Ino(number if number >= FIRST_FREE_INO else number + FIRST_FREE_INO)


def _hash64(material: bytes) -> int:
    return int.from_bytes(blake3(material).digest(8), "big")
