"""The values the store hands out, its flags and its limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from fusefs.model.ids import ChunkId

Buffer = bytes | bytearray | memoryview
Clock = Callable[[], float]
"""Seconds since the epoch."""

SMALL_LIMIT_BYTES = 32 * 1024
"""From this size on an object is a file: below it a row costs less than a file."""
MAX_OBJECT_BYTES = 1 << 20
"""A chunk is never longer (formats.md, section 4)."""

PUSHED = 1
"""We wrote it and the peers have not confirmed enough copies yet: never evicted."""
RESPONSIBLE = 2
"""Placement gave it to us: never evicted."""
PINNED = 4
"""The user wants it here: never evicted."""
ALL_FLAGS = PUSHED | RESPONSIBLE | PINNED


ROUND_TRIP_BYTES = 64 << 10
"""A chunk up to this long takes little more to fetch than the way there and back."""


class StoreStatistics(msgspec.Struct, frozen=True):
    """Counts of this moment; `small_bytes` is the space of the table on disk."""

    small: int
    small_bytes: int
    large: int
    large_bytes: int
    cache_bytes: int
    """Evictable bytes: objects with no flag."""
    pushed: int
    """Large objects that wait for confirmation by peers."""
    free_bytes: int
    total_bytes: int
    unsynced: int
    """Large objects of this process that are not known to be on the disk yet."""
    open_files: int

    @property
    def chunks(self) -> int:
        return self.small + self.large

    @property
    def bytes(self) -> int:
        return self.small_bytes + self.large_bytes


class Problem(msgspec.Struct, frozen=True):
    """One finding of `Store.check`. `kind` is a word, stable for scripts."""

    kind: str
    subject: str
    """The object id in hex, or the path below `objects/`."""
    detail: str
    repaired: bool = False


class Object(NamedTuple):
    """One object as the index knows it; `stored_s` is when it was last written,
    renewed or found again by a write."""

    cid: ChunkId
    size: int
    flags: int
    stored_s: float


class Progress(Protocol):
    """Told how many objects were looked at, for a progress bar."""

    def __call__(self, done: int, /) -> None: ...
