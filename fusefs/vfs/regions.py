"""Regions: the journal of one draft as bytes of a file (docs/formats.md, section 10).

A record counts when its end mark is there, so what a kill cut short is as if it had
never come. Used under the lock of the draft's file; regions are independent.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fusefs.model.ids import Ino
from fusefs.vfs.types import UNCHANGED, Permissions

if TYPE_CHECKING:
    from fusefs.vfs.draft import Draft

log = logging.getLogger(__name__)

REGION_BYTES = 1 << 30
REWRITE_BYTES = 16 << 20
"""A region as long as this, and twice as long as when it was written, is written anew
elsewhere: it holds little that still shows."""
KEPT_BYTES = 64 << 10
"""Of a region that is free: the next draft there costs no new pages."""
KEPT_LARGE = 4
"""So many regions keep up to REWRITE_BYTES: a few writers of large files."""

_RECORD = struct.Struct("<8sBBxxIQQQqqq")
"""generation, kind, appends, bytes that follow, argument, size, lowest, mtime_ns,
ctime_ns, atime_ns (-1: not set)."""
_END_BYTES = 8
START, WRITE, TRUNCATE, ZERO, SHARE, TIMES, ATTRIBUTES, APPEND = range(1, 9)
_PUNCH_HOLE_KEEP_SIZE = 3
_libc = ctypes.CDLL(None, use_errno=True)


class PatchStart(msgspec.Struct, frozen=True, array_like=True):
    """What a draft had stored of a chunk: the fields of `Patch`."""

    index: int
    source: bytes
    limit: int
    based: bool
    written: list[tuple[int, int]]


class Start(msgspec.Struct, frozen=True, array_like=True):
    """A draft without the bytes that were not stored, which follow as writes."""

    ino: int
    base_size: int
    base_root: bytes
    chunk_log2: int
    cut: int
    patches: list[PatchStart] = []
    permissions: Permissions = UNCHANGED


class Record(NamedTuple):
    """One thing done to a draft, and its simple fields afterwards."""

    kind: int
    argument: int
    data: bytes
    appends: bool
    size: int
    lowest: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int | None


Parts = Sequence[bytes | memoryview]

_encode = msgspec.msgpack.Encoder().encode
encode_permissions = _encode
decode_start = msgspec.msgpack.Decoder(Start).decode
decode_permissions = msgspec.msgpack.Decoder(Permissions).decode


class Region:
    """Where the journal of one draft is written."""

    __slots__ = ("_at", "_fd", "_generation", "_start", "_written", "failed", "slot")

    def __init__(self, fd: int, slot: int, generation: bytes, at: int = 0) -> None:
        """`at`: where the next record goes, from the region's start."""
        self._fd = fd
        self._start = slot * REGION_BYTES
        self._generation = generation
        self._at = at
        self._written = at
        self.slot = slot
        self.failed = False

    def record(
        self, kind: int, draft: Draft, argument: int, data: bytes | memoryview = b""
    ) -> tuple[bytes, bytes | memoryview, bytes]:
        """The parts of a record, to be written in this order."""
        generation = self._generation
        atime = -1 if draft.atime_ns is None else draft.atime_ns
        head = _RECORD.pack(
            generation, kind, draft.appends, len(data), argument, draft.size,
            draft.lowest, draft.mtime_ns, draft.ctime_ns, atime,
        )  # fmt: skip
        return head, data, generation

    def append(self, parts: Parts) -> None:
        """Records. A disk that takes no more ends the journal, not the write."""
        if self.failed:
            return
        total = sum(map(len, parts))
        done = 0
        if self._at + total <= REGION_BYTES:
            try:
                done = os.pwritev(self._fd, parts, self._start + self._at)
            except OSError as error:
                log.warning("writes cannot be journalled: %s", error)
        self._at += done
        if done != total:
            self.fail()

    def fail(self) -> None:
        """What came so far must not pass for all."""
        self.failed = True
        try:
            os.pwrite(self._fd, bytes(8), self._start)
        except OSError as error:  # of no room: then nothing is there either
            log.warning("a journal cannot be ended: %s", error)

    def wrote_all(self) -> None:
        """What is there now is the least it can be."""
        self._written = self._at

    @property
    def outgrown(self) -> bool:
        return self._at > REWRITE_BYTES and self._at > 2 * self._written

    def shrink(self) -> None:
        """Nobody needs what is in it."""
        kept = REWRITE_BYTES if self.slot < KEPT_LARGE else KEPT_BYTES
        if self._at > kept:
            _libc.fallocate(
                self._fd,
                _PUNCH_HOLE_KEEP_SIZE,
                ctypes.c_long(self._start + kept),
                ctypes.c_long(REGION_BYTES - kept),
            )


def start_of(ino: Ino, draft: Draft) -> bytes:
    base = draft.base
    patches = [
        PatchStart(i, p.source or b"", p.limit, p.based, p.written.ranges)
        for i, p in draft.patches.items()
    ]
    return _encode(
        Start(
            ino, base.size, base.root, base.log2, draft.cut, patches, draft.permissions
        )
    )


def generation_of(fd: int, slot: int) -> bytes:
    """That of the region's last use."""
    return os.pread(fd, 8, slot * REGION_BYTES)


def records(fd: int, slot: int) -> Iterator[tuple[Record, int]]:
    """Sound records, each with where it ends in the region."""
    start, at = slot * REGION_BYTES, 0
    generation = generation_of(fd, slot)
    if not any(generation):
        return
    while True:
        head = os.pread(fd, _RECORD.size, start + at)
        if len(head) < _RECORD.size or head[:8] != generation:
            return
        (
            _, kind, appends, length, argument, size, lowest, mtime, ctime, atime,
        ) = _RECORD.unpack(head)  # fmt: skip
        at += _RECORD.size
        data = os.pread(fd, length + _END_BYTES, start + at)
        at += length + _END_BYTES
        if data[length:] != generation:
            return
        yield (
            Record(
                kind, argument, data[:length], bool(appends), size, lowest,
                mtime, ctime, None if atime < 0 else atime,
            ),
            at,
        )  # fmt: skip
