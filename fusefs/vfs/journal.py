"""Unpublished writes, kept where the next worker finds them: a killed worker takes
nothing with it.

Each draft has a region of one sparse file (docs/formats.md, section 10): first the
draft as it was when the region was written, then what was done to it since. It is
written before a write is answered and never synced: the kernel keeps it when the
process dies, and a power cut may lose what was not synced.

A record counts when its end mark is there, so what a kill cut short is as if it had
never come (and its request, never answered, comes again). Bytes that are whole chunks
of the store are only named. If the file cannot be written, the draft goes on without,
and its mark makes a loss of it (`unfinished.py`).

Every call for a draft comes under its file's lock; regions are independent.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fusefs.model.ids import ChunkId, Ino, Seq
from fusefs.vfs.regions import (
    APPEND,
    ATTRIBUTES,
    SHARE,
    START,
    TIMES,
    TRUNCATE,
    WRITE,
    ZERO,
    Parts,
    Record,
    Region,
    Start,
    decode_start,
    encode_permissions,
    generation_of,
    records,
    start_of,
)
from fusefs.vfs.unfinished import REGIONS, Unfinished

if TYPE_CHECKING:
    from fusefs.vfs.draft import Draft
    from fusefs.vfs.patch import Patch


class Log:
    """The journal of one draft, told of all that is done to it."""

    __slots__ = ("_ino", "_journal", "_pending", "_region", "named")

    def __init__(
        self,
        journal: Journal,
        ino: Ino,
        region: Region,
        pending: Parts = (),
        named: Iterable[ChunkId] = (),
    ) -> None:
        """`pending`: the start, written with the first thing that is done: until then
        there is nothing to lose, and the draft is not marked. `named`: what an earlier
        worker's journal names."""
        self.named = set(named)
        """Objects from which the next worker makes the draft anew. The draft itself may
        have others in their place by now."""
        self._journal = journal
        self._ino = ino
        self._region = region
        self._pending = pending

    @property
    def is_whole(self) -> bool:
        """The next worker would have all of the draft."""
        return not self._region.failed

    def _append(
        self, kind: int, draft: Draft, argument: int, data: bytes | memoryview = b""
    ) -> None:
        region, pending = self._region, self._pending
        record = region.record(kind, draft, argument, data)
        if not pending:
            region.append(record)
            return
        region.append((*pending, *record))
        self._pending = ()
        self._journal.marks.begin(self._ino, region.slot)

    def wrote(
        self,
        draft: Draft,
        offset: int,
        data: memoryview,
        full: Sequence[tuple[int, Patch]],
    ) -> None:
        """Bytes came. Those of the chunks in `full` are left out: they are stored
        before the write is answered, and then `shared` names them."""
        if not full:
            self._append(WRITE, draft, offset, data)
        else:
            self._wrote_edges(draft, offset, data, {index for index, _ in full})
        if self._region.outgrown:
            self._write_anew(draft)

    def appended(self, draft: Draft, data: memoryview, request: int) -> None:
        """Bytes came for the end, whatever offset the request has."""
        self._append(APPEND, draft, request, data)
        if self._region.outgrown and self._write_anew(draft):
            self._append(APPEND, draft, request)  # which is not answered yet

    def _wrote_edges(
        self, draft: Draft, offset: int, data: memoryview, left_out: set[int]
    ) -> None:
        log2 = draft.base.log2
        at, end = offset, offset + len(data)
        while at < end:
            index = at >> log2
            stop = min(end, (index + 1) << log2)
            if index not in left_out:
                part = data[at - offset : stop - offset]
                self._append(WRITE, draft, at, part)
            at = stop

    def truncated(self, draft: Draft, size: int) -> None:
        self._append(TRUNCATE, draft, size)

    def zeroed(self, draft: Draft, start: int, end: int) -> None:
        self._append(ZERO, draft, start, end.to_bytes(8, "little"))

    def shared(self, draft: Draft, first: int, cids: Sequence[ChunkId]) -> None:
        """Chunks from `first` on are these objects."""
        self.named.update(cids)
        self._append(SHARE, draft, first, b"".join(cids))

    def timed(self, draft: Draft) -> None:
        """Only its times were set."""
        self._append(TIMES, draft, 0)

    def permitted(self, draft: Draft) -> None:
        """Its mode or owner was set."""
        self._append(ATTRIBUTES, draft, 0, encode_permissions(draft.permissions))

    def publishing(self, seq: Seq) -> None:
        """It is about to be committed as this transaction: if it was, the draft must
        not be made anew."""
        if not self._pending:
            self._journal.marks.publishing(self._ino, seq)

    def not_published(self) -> None:
        """The transaction failed, or was not even begun."""
        self.publishing(Seq(0))

    def rewrite(self, draft: Draft) -> None:
        """What was written so far is not how the draft came to be: all of it anew. If
        that cannot be, a kill is a loss."""
        if not self._write_anew(draft):
            self._region.fail()

    def _write_anew(self, draft: Draft) -> bool:
        """The draft as it is now, in a region of its own; then the old one is free.
        False: there is none to be had."""
        marks, old = self._journal.marks, self._region
        if old.failed:
            return True
        if (fresh := self._journal.written(self._ino, draft)) is None:
            return False
        self._region = fresh
        self.named = draft.sources()
        if self._pending:
            self._pending = ()
            marks.begin(self._ino, fresh.slot)
        else:
            marks.move(self._ino, fresh.slot)
        old.shrink()
        marks.free(old.slot)
        return True

    def end(self) -> None:
        """The draft is published, or void. Unmarked first: a region without its end
        would be a draft with half of its writes."""
        if not self._pending:
            self._journal.marks.end(self._ino)
        self._region.shrink()
        self._journal.marks.free(self._region.slot)


class Journal:
    """All regions. Thread-safe."""

    def __init__(self, path: Path | None, marks: Path | None, first: int) -> None:
        """`path` None: nothing is kept; `marks`, `first`: see `Unfinished`."""
        self._fd = -1
        if path is not None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
        # What programs write must not look like the end of a record.
        self._generations = itertools.count(int.from_bytes(os.urandom(8), "little"))
        self.marks = Unfinished(marks, first, self._is_sound)

    def begin(self, ino: Ino, draft: Draft) -> Log | None:
        """A new draft. Called before anything is done to it."""
        region = self._reserve()
        if region is None:
            self.marks.begin(ino, self.marks.reserve())
            return None
        return Log(
            self, ino, region, region.record(START, draft, 0, start_of(ino, draft))
        )

    def end(self, ino: Ino, kept: Log | None) -> None:
        """The draft is published, or void."""
        if kept is not None:
            kept.end()
        elif (slot := self.marks.end(ino)) is not None:
            self.marks.free(slot)

    def _reserve(self) -> Region | None:
        if self._fd < 0:
            return None
        slot = self.marks.reserve(region=True)
        if slot is None:
            return None
        generation = next(self._generations) & ((1 << 64) - 1)
        return Region(self._fd, slot, generation.to_bytes(8, "little"))

    def written(self, ino: Ino, draft: Draft) -> Region | None:
        """A region with all of the draft. None if it cannot be had."""
        region = self._reserve()
        if region is None:
            return None
        region.append(region.record(START, draft, 0, start_of(ino, draft)))
        for index, patch in draft.patches.items():
            for low, data in patch.pieces():
                offset = (index << draft.base.log2) + low
                region.append(region.record(WRITE, draft, offset, data))
        region.wrote_all()
        if region.failed:
            self.marks.free(region.slot)
            return None
        return region

    # -- what an earlier worker left -------------------------------------------

    def _is_sound(self, slot: int, ino: Ino) -> bool:
        if self._fd < 0 or slot >= REGIONS:
            return False
        found = next(records(self._fd, slot), None)
        return found is not None and found[0].kind == START and _ino(found[0]) == ino

    def left(self, ino: Ino) -> tuple[Start, Iterator[tuple[Record, int]]]:
        """What the region of this inode says: the start, then it and all that follows
        record by record, each with where it ends.

        Raises: OSError, msgspec.DecodeError.
        """
        slot = self.marks.live[ino]
        first, _ = next(records(self._fd, slot))
        return decode_start(first.data), records(self._fd, slot)

    def resume(self, ino: Ino, at: int, named: Iterable[ChunkId]) -> Log:
        """Go on behind the last sound record, which ends there; `named`: by these."""
        slot = self.marks.live[ino]
        region = Region(self._fd, slot, generation_of(self._fd, slot), at)
        return Log(self, ino, region, named=named)


def _ino(record: Record) -> int:
    try:
        return decode_start(record.data).ino
    except msgspec.DecodeError:
        return 0
