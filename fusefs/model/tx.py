"""Transactions and register states as they travel between processes and nodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from fusefs.model.hlc import Hlc
from fusefs.model.ids import ChunkId, Dot, Ino, NodeId, Seq


class Write(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One register written by a transaction.

    `context`: flat node, seq, ... of the register before the write (what the
    writer had seen); the transaction's own dot is implied.
    """

    key: bytes
    context: tuple[int, ...]
    value: bytes


class Tx(msgspec.Struct, array_like=True, frozen=True):
    """One committed local transaction: (node, seq) is its dot.

    `prev` is the sequence number this node committed before it. A receiver whose
    vector has node >= prev may apply it; otherwise it has a gap and asks for a
    delta. seq is prev + 1 except after a power cut (docs/formats.md, 3.4).
    """

    node: NodeId
    seq: Seq
    prev: Seq
    hlc: Hlc
    writes: tuple[Write, ...]

    @property
    def dot(self) -> Dot:
        return (self.node, self.seq)


class Body(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A small chunk that travels with its transaction (at most 64 KiB), or what of it
    differs from the chunk `basis`: that, cut or filled with zeros to `size`, with these
    (offset, length) replaced by `data`."""

    id: ChunkId
    data: bytes
    size: int = 0
    basis: bytes = b""
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def is_patch(self) -> bool:
        return bool(self.basis)


BODIES_BYTES: Final = 512 << 10
"""Of what travels with one transaction: half of a frame's header."""


def that_travel(bodies: Iterable[Body]) -> tuple[Body, ...]:
    """As many as one transaction takes along, the smallest first: nodes of manifests,
    without which nothing of a file can be read."""
    left = BODIES_BYTES
    taken: list[Body] = []
    for body in sorted(bodies, key=lambda body: len(body.data)):
        left -= len(body.data) + len(body.id)
        if left < 0:
            break
        taken.append(body)
    return tuple(taken)


def whole(bodies: Iterable[Body]) -> tuple[Body, ...]:
    """Those that one takes who knows no patches."""
    return tuple(body for body in bodies if not body.is_patch)


class State(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A whole register: `state` is encode_register() bytes."""

    key: bytes
    state: bytes


class ContentChange(msgspec.Struct, array_like=True, frozen=True):
    """The data or times of an inode changed from (old_size, old_root)."""

    ino: Ino
    old_size: int
    old_root: bytes
    new_size: int
    new_root: bytes
    chunk_log2: int
    recut: bool = False
    """The old version had chunks of another size: their ids tell nothing."""
    old_chunk_log2: int = 0
    """That size, if so."""


class EntryChange(msgspec.Struct, array_like=True, frozen=True):
    """What a name shows changed; 0 is nothing."""

    parent: Ino
    name: bytes
    old: int
    new: int


class Effects(msgspec.Struct, array_like=True):
    """What applying changes did to the derived tree: what caches must forget."""

    entries: list[EntryChange] = []
    inodes: list[Ino] = []
    """Attributes changed (size, times and links included)."""
    contents: list[ContentChange] = []
    appends: list[Ino] = []
    """Files with concurrent appends that wait to be merged."""
    twins: bool = False
    """One of several inodes that want one name changed: perhaps they are alike now."""

    def __bool__(self) -> bool:
        return bool(self.entries or self.inodes or self.contents)

    def extend(self, other: Effects) -> None:
        self.entries += other.entries
        self.inodes += other.inodes
        self.contents += other.contents
        self.appends += other.appends
        self.twins |= other.twins
