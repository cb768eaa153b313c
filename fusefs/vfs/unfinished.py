"""Which files have writes that only this process knows, kept where its successor sees.

A worker that is killed takes the unpublished writes of open files with it, and the
programs go on with their handles. So that an fsync of such a handle does not promise
what is gone, each file with a draft is marked in a small mapped file, which outlives
the process (not the machine, whose programs do not either). The next worker turns what
it finds marked into losses: `(inode, handles below this number)`.

Record: inode u64, limit u64, little-endian; limit 0: a live mark; inode 0: free.
Thread-safe, by the interpreter's atomic list and dict operations.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from fusefs.model.ids import Ino

_RECORD = struct.Struct("<QQ")
_RECORDS = 16_384
"""Files with drafts at once: more than may be open, as a rule. Sparse, 256 KiB."""
_MOST_LOSSES = 4096
"""Beyond it any file may have lost something: there has to be room for live marks."""
_EVERY_INO = Ino((1 << 64) - 1)
"""Marked when the table is full: any file may have lost something."""


class Unfinished:
    """The marks of this worker, and what its predecessors lost."""

    def __init__(self, path: Path | None, first_handle: int) -> None:
        """`path` None: nothing outlives this process. `first_handle`: handles of
        earlier workers have lower numbers."""
        self._table = _table(path)
        losses = _losses(self._table, first_handle)
        _fill(self._table, losses)
        self._lost = dict(losses)
        self._free = list(range(_RECORDS - 2, len(losses) - 1, -1))
        self._slots: dict[Ino, int] = {}

    def begin(self, ino: Ino) -> None:
        """A draft begins. Its writes are answered only afterwards."""
        try:
            slot = self._slots[ino] = self._free.pop()
        except IndexError:
            _RECORD.pack_into(self._table, (_RECORDS - 1) * _RECORD.size, _EVERY_INO, 0)
            return
        _RECORD.pack_into(self._table, slot * _RECORD.size, ino, 0)

    def end(self, ino: Ino) -> None:
        """The draft is published, or worth nothing any more."""
        slot = self._slots.pop(ino, None)
        if slot is not None:
            _RECORD.pack_into(self._table, slot * _RECORD.size, 0, 0)
            self._free.append(slot)

    def lost(self, ino: Ino, handle: int) -> bool:
        """Whether writes through this handle of an earlier worker may be gone."""
        limit = max(self._lost.get(ino, 0), self._lost.get(_EVERY_INO, 0))
        return handle < limit


def _table(path: Path | None) -> mmap.mmap:
    size = _RECORDS * _RECORD.size
    if path is None:
        return mmap.mmap(-1, size)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size)
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)


def _losses(table: mmap.mmap, first_handle: int) -> list[tuple[Ino, int]]:
    """What is marked; live marks of the predecessor get our first handle as limit."""
    found: dict[Ino, int] = {}
    for ino, limit in _RECORD.iter_unpack(table[:]):
        if ino:
            found[Ino(ino)] = max(found.get(Ino(ino), 0), limit or first_handle)
    if _EVERY_INO in found or len(found) > _MOST_LOSSES:
        return [(_EVERY_INO, max(found.values()))]
    return list(found.items())


def _fill(table: mmap.mmap, losses: list[tuple[Ino, int]]) -> None:
    """Only these, from the first record on. A crash meanwhile leaves a record twice,
    or the old one: both say the same."""
    records = b"".join(_RECORD.pack(ino, limit) for ino, limit in losses)
    table[: len(records)] = records
    table[len(records) :] = bytes(len(table) - len(records))
