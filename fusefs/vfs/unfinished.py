"""Which files have writes that only this process knows, kept where its successor sees.

Each file with a draft is marked in a small mapped file, which outlives the process
(not the machine, whose programs do not either). The number of the mark is the place
of the draft's journal (`journal.py`), from which the next worker makes the draft
anew. Marks without a sound journal become losses, `(inode, handles below this
number)`: so an fsync or close of such a handle does not promise what is gone.

Record: inode u64, limit u64; inode 0: free. Limit 0: a live mark; with
the highest bit: one whose draft is being committed as the transaction in the rest.
Thread-safe, by the interpreter's atomic list and dict operations.
"""

from __future__ import annotations

import logging
import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from fusefs.model.ids import Ino, Seq
from fusefs.store import shared

log = logging.getLogger(__name__)

_RECORD = struct.Struct("=QQ")
REGIONS = 4096
"""Drafts with a journal at once (`regions.py`); further ones go without."""
_RECORDS = 16_384
"""Files with drafts at once: more than may be open, as a rule. 256 KiB."""
_MOST_LOSSES = 4096
"""Beyond it any file may have lost something: there has to be room for live marks."""
_LAST = _RECORDS - 1
"""The record of `_EVERY_INO`, never given to a draft."""
_PUBLISHING = 1 << 63
_EVERY_INO = Ino((1 << 64) - 1)
"""Marked when the table is full: any file may have lost something."""

Sound = Callable[[int, Ino], bool]


class Unfinished:
    """The marks of this worker, and what its predecessors lost."""

    def __init__(
        self, path: Path | None, first_handle: int, sound: Sound = lambda *_: False
    ) -> None:
        """`path` None: nothing outlives this process. `first_handle`: handles of
        earlier workers have lower numbers. `sound`: whether the journal with this
        number has the draft of this inode; its mark then stays."""
        self._table = _table(path)
        self._cells = memoryview(self._table).cast("Q")
        self._first_handle = first_handle
        self._slots: dict[Ino, int] = {}
        self._lost: dict[Ino, int] = {}
        for slot, ino, limit in self._records():
            if 0 < limit < _PUBLISHING:
                self._lose(slot, ino, limit)
            elif ino not in self._slots and sound(slot, ino):
                self._slots[ino] = slot
        for slot, ino, limit in self._records():
            if 0 < limit < _PUBLISHING:
                continue
            if ino not in self._slots:
                self._lose(slot, ino, first_handle)
            elif self._slots[ino] != slot:  # killed between two places
                self._put(slot, 0, 0)
        if _EVERY_INO in self._lost or len(self._lost) > _MOST_LOSSES:
            self._lose(_LAST, _EVERY_INO, max(self._lost.values()))
            self._lost = {_EVERY_INO: self._lost[_EVERY_INO]}
        self._clear_all_but_live()
        used = {*self._slots.values(), *self._losses()}
        free = [n for n in range(_LAST - 1, -1, -1) if n not in used]
        self._low = [n for n in free if n < REGIONS]
        self._high = [n for n in free if n >= REGIONS]
        """Free numbers with a region for the journal, and without."""

    @property
    def live(self) -> dict[Ino, int]:
        """The drafts that there are: inode to the number of the mark."""
        return dict(self._slots)

    def reserve(self, *, region: bool = False) -> int | None:
        """The number of a mark to be; None when there is none left, or none with a
        `region`."""
        for free in (self._low,) if region else (self._high, self._low):
            try:
                return free.pop()
            except IndexError:
                continue
        return None

    def begin(self, ino: Ino, slot: int | None) -> None:
        """A draft begins. Its writes are answered only afterwards."""
        if slot is None:
            self._put(_LAST, _EVERY_INO, 0)
            return
        self._slots[ino] = slot
        self._put(slot, ino, 0)

    def publishing(self, ino: Ino, seq: Seq) -> None:
        """Its draft is about to be committed as this transaction; 0: it is not."""
        self._put(self._slots[ino], ino, seq | _PUBLISHING if seq else 0)

    def published_as(self, ino: Ino) -> int:
        """The transaction that may have been committed before the kill; 0: none."""
        return self._cells[2 * self._slots[ino] + 1] & ~_PUBLISHING

    def move(self, ino: Ino, slot: int) -> None:
        """The draft's journal is in another place from here on. `free` the old one."""
        self._put(slot, ino, 0)
        self._put(self._slots[ino], 0, 0)
        self._slots[ino] = slot

    def end(self, ino: Ino) -> int | None:
        """The draft is published, or worth nothing any more; `free` the number."""
        slot = self._slots.pop(ino, None)
        if slot is not None:
            self._put(slot, 0, 0)
        return slot

    def free(self, slot: int) -> None:
        """The number may be given to another draft."""
        (self._low if slot < REGIONS else self._high).append(slot)

    def give_up(self, ino: Ino) -> None:
        """The draft of an earlier worker could not be made anew."""
        slot = self._slots.pop(ino)
        self._lose(slot, ino, self._first_handle)

    def lost(self, ino: Ino, handle: int) -> bool:
        """Whether writes through this handle of an earlier worker may be gone."""
        limit = max(self._lost.get(ino, 0), self._lost.get(_EVERY_INO, 0))
        return handle < limit

    # -- the table -------------------------------------------------------------

    def _put(self, slot: int, ino: int, limit: int) -> None:
        """A kill in between leaves a mark that is not there, or one of either kind,
        never half a number."""
        cells = self._cells
        if cells[2 * slot] != ino:
            cells[2 * slot] = 0
        cells[2 * slot + 1] = limit
        cells[2 * slot] = ino

    def _lose(self, slot: int, ino: Ino, limit: int) -> None:
        """A crash before or after says the same: the successor loses it."""
        self._lost[ino] = max(self._lost.get(ino, 0), limit)
        self._put(slot, ino, self._lost[ino])

    def _clear_all_but_live(self) -> None:
        """Losses that were merged into one need no records of their own."""
        if _EVERY_INO not in self._lost:
            return
        live = set(self._slots.values())
        for slot in range(_LAST):
            if slot not in live:
                self._put(slot, 0, 0)

    def _losses(self) -> list[int]:
        """Where records of losses are."""
        return [slot for slot, _, limit in self._records() if 0 < limit < _PUBLISHING]

    def _records(self) -> Iterator[tuple[int, Ino, int]]:
        """(number, inode, limit) of each mark."""
        for slot, (ino, limit) in enumerate(_RECORD.iter_unpack(self._table[:])):
            if ino:
                yield slot, Ino(ino), limit


def _table(path: Path | None) -> mmap.mmap:
    memory, problem = shared.map_file_or_own(path, _RECORDS * _RECORD.size)
    if problem is not None:
        log.warning("a killed worker will leave no trace of its drafts: %s", problem)
    return memory
