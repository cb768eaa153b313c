"""Memory that node and worker share, so that a change of a peer which the kernel here
knows nothing about can be acknowledged before it is applied (docs/formats.md, 11).

`NodeFence` is the node's side, used from its trio thread. `Gate` is the worker's:
serving threads mark in it what they tell the kernel and wait in it; the link's thread
opens it. Each writes before it reads what the other wrote: of a change and an answer
that cross, one of both sees the other.
"""

from __future__ import annotations

import logging
import mmap
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from xxhash import xxh3_64_intdigest

from fusefs.model.ids import ROOT_INO, Ino
from fusefs.store import shared

log = logging.getLogger(__name__)

SLOTS: Final = 1 << 21
"""Bytes of each table. With 200,000 inodes known, one in eleven of the others is
taken for one of them."""
INO_MASK: Final = SLOTS - 1
"""Inode numbers are hashes in their low bits (model/ids.py)."""
_HEADER: Final = 4096
_BYTES: Final = _HEADER + 2 * SLOTS
_RECEIVED, _TELLS, _TURN, _NOTES = 0, 1, 2, 3
_LISTED, _FOR_GOOD = 1, 2
"""Marks of names: one directory's listing, which the kernel may forget again; and all
that is never taken away, as two of them on one byte could not be told apart."""
_NOTED: Final = 63
"""Notes of a worker, each of threads whose numbers are alike modulo this."""
_TURNS: Final = 4
"""Workers, one after the other, whose notes are kept: one that took over may be killed,
too, before it answered what its predecessor had noted."""
LIMIT_S: Final = 1.0
"""A node that died with a fence up is back by then."""
_SLICE_S: Final = 0.001
"""A fence may be taken back without a word."""


def map_file(path: Path) -> mmap.mmap | None:
    """The file, made if need be. None where the disk has no room for it: then nothing
    is acknowledged early."""
    memory, problem = shared.map_file_or_own(path, _BYTES)
    if problem is None:
        return memory
    log.warning("no fence: %s", problem)
    return None


class _Tables:
    """The parts of the mapping."""

    def __init__(self, memory: mmap.mmap) -> None:
        view = memoryview(memory)
        self.numbers = view[:_HEADER].cast("Q")
        self.inodes = view[_HEADER : _HEADER + SLOTS]
        self.names = view[_HEADER + SLOTS : _BYTES]


def _slot(parent: Ino, name: bytes) -> int:
    return xxh3_64_intdigest(name, seed=parent) & INO_MASK


class NodeFence:
    """The node's side. Nothing is early until a worker says that it marks."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._tables = _Tables(memory)
        # Taken between a write and a read that must not overtake it: an atomic
        # operation of the processor.
        self._barrier = threading.Lock()

    @property
    def received(self) -> int:
        """How many fences were raised: what a Changed tells the worker."""
        return self._tables.numbers[_RECEIVED]

    @property
    def usable(self) -> bool:
        return bool(self._tables.numbers[_TELLS])

    def put_up(self) -> None:
        """From now on names wait to be resolved. Before asking what is known."""
        self._tables.numbers[_RECEIVED] += 1
        with self._barrier:
            pass

    def take_back(self) -> None:
        """What it was put up for is not acknowledged early."""
        self._tables.numbers[_RECEIVED] -= 1

    def may_know(self, inos: Iterable[Ino]) -> bool:
        """Whether the kernel may hold any of these inodes."""
        inodes = self._tables.inodes
        return any(inodes[ino & INO_MASK] for ino in inos)

    def may_know_absent(self, parent: Ino, name: bytes) -> bool:
        """Whether it may hold that there is no such name."""
        return bool(self._tables.names[_slot(parent, name)])

    def may_have_listed(self, directory: Ino) -> bool:
        return bool(self._tables.names[_slot(directory, b"")])


class Gate:
    """The worker's side; of no file: always open."""

    def __init__(self, memory: mmap.mmap | None = None) -> None:
        self._tables = _Tables(memory or mmap.mmap(-1, _BYTES))
        self.numbers = self._tables.numbers
        """`[0]` is `received`, for who cannot afford a call."""
        self.inodes = self._tables.inodes
        """Set `[ino & INO_MASK]` before an answer makes the kernel hold the inode."""
        self._names = self._tables.names
        self._listings: dict[int, tuple[Ino, int]] = {}
        """Of each byte with _LISTED: the directory, and how often it was told."""
        self.settled = 0
        """Up to here everything is applied and forgotten in our caches."""
        # Protects `settled`; nothing else is done under it.
        self._condition = threading.Condition()
        # As in NodeFence; also protects the marks of names and `_listings`.
        self._barrier = threading.Lock()
        self.waits = 0
        turn = (self.numbers[_TURN] + 1) % _TURNS
        self.numbers[_TURN] = turn
        self._notes = _NOTES + 2 * _NOTED * turn
        self.inodes[ROOT_INO & INO_MASK] = 1

    def tell(self) -> None:
        """All that the kernel is told is marked here, from now on and before."""
        self.numbers[_TELLS] = 1

    # -- for the next worker ---------------------------------------------------------

    def note(self, thread: int, unique: int, ino: Ino) -> None:
        """This request is about to make, take away or move the name of this inode."""
        at = self._notes + 2 * (thread % _NOTED)
        self.numbers[at] = 0
        self.numbers[at + 1] = ino
        self.numbers[at] = unique

    def noted(self, unique: int) -> Ino | None:
        """What a worker before noted of the request. None: it never came that far."""
        uniques = self.numbers[_NOTES : _NOTES + 2 * _NOTED * _TURNS : 2].tolist()
        if unique not in uniques:
            return None
        return Ino(self.numbers[_NOTES + 2 * uniques.index(unique) + 1])

    # -- serving threads -------------------------------------------------------------

    @property
    def received(self) -> int:
        return self.numbers[_RECEIVED]

    @property
    def closed(self) -> bool:
        """Something is acknowledged that is not applied yet."""
        return self.numbers[_RECEIVED] > self.settled

    def wait(self) -> None:
        """Until what was fenced by now is applied and our caches have forgotten the
        old; at most LIMIT_S."""
        wanted = self.numbers[_RECEIVED]
        deadline = time.monotonic() + LIMIT_S
        self.waits += 1
        with self._condition:
            while self.settled < wanted <= self.numbers[_RECEIVED]:
                left = deadline - time.monotonic()
                if left <= 0:
                    log.warning("the node does not say what it acknowledged")
                    self.settled = wanted
                    return
                self._condition.wait(min(left, _SLICE_S))

    def tells_absent(self, parent: Ino, name: bytes) -> None:
        """Before an answer makes the kernel hold that there is no such name."""
        slot = _slot(parent, name)
        with self._barrier:
            self._names[slot] = _FOR_GOOD
            self._listings.pop(slot, None)

    def tells_listing(self, directory: Ino) -> None:
        """Before a listing that the kernel will keep is read."""
        slot = _slot(directory, b"")
        with self._barrier:
            mark = self._names[slot]
            if mark == _FOR_GOOD:
                return
            owner, times = self._listings.get(slot, (directory, 0))
            if owner != directory or (mark and not times):  # or the worker's before us
                self._names[slot] = _FOR_GOOD
                self._listings.pop(slot, None)
            else:
                self._names[slot] = _LISTED
                self._listings[slot] = directory, times + 1

    # -- threads that tell the kernel what to forget ---------------------------------

    def listing_told(self, directory: Ino) -> int:
        """How often; for `listing_gone`."""
        owner, times = self._listings.get(_slot(directory, b""), (directory, 0))
        return times if owner == directory else 0

    def listing_gone(self, directory: Ino, told: int) -> None:
        """The kernel has forgotten all listings of it that were told by the time of
        `listing_told`."""
        slot = _slot(directory, b"")
        with self._barrier:
            if told and self._listings.get(slot) == (directory, told):
                del self._listings[slot]
                self._names[slot] = 0

    # -- the link's thread -----------------------------------------------------------

    def reached(self, fence: int) -> None:
        """A Changed told that all up to here is applied, and our own caches have
        forgotten the old; the kernel may not have yet."""
        with self._condition:
            if self.settled != fence:
                self.settled = fence
                self._condition.notify_all()
