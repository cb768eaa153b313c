"""The free-space guard: says no before a byte is written, never after."""

from __future__ import annotations

import os
import threading

from fusefs.errors import NoSpace


class Space:
    """The file system the store lives on, and the floor of free bytes we keep.

    The floor is there for SQLite, for the deletions that make room again, and for
    whatever else shares the disk. Asking costs half a microsecond, so nothing is
    cached and nothing can be stale.
    """

    def __init__(self, fd: int, min_free_bytes: int | None) -> None:
        self._fd = fd
        self.refused = threading.Event()
        """A write found no room; cleared by who is about to make some."""
        total = self.total_bytes()
        self.min_free_bytes = (
            min(DEFAULT_MIN_FREE_BYTES, total // 20)
            if min_free_bytes is None
            else min_free_bytes
        )

    def total_bytes(self) -> int:
        stat = os.fstatvfs(self._fd)
        return stat.f_blocks * stat.f_frsize

    def free_bytes(self) -> int:
        """What an unprivileged process may still write."""
        stat = os.fstatvfs(self._fd)
        return stat.f_bavail * stat.f_frsize

    def require(self, size_bytes: int) -> None:
        """Raises NoSpace when storing that much would go below the floor."""
        if self.free_bytes() - size_bytes < self.min_free_bytes:
            self.refused.set()
            raise NoSpace(
                "the store's disk is full: free some space, or lower min_free"
                f" (now {self.min_free_bytes} bytes)"
            )

    @property
    def kept_from_copies_bytes(self) -> int:
        """What others want kept here leaves as much again to programs of this node,
        until what they replaced is collected."""
        return 2 * self.min_free_bytes

    def room_for_copies_bytes(self) -> int:
        """May be negative."""
        return self.free_bytes() - self.kept_from_copies_bytes

    def require_for_copy(self, size_bytes: int) -> None:
        """Like `require`, for what another node wants kept here."""
        if self.room_for_copies_bytes() < size_bytes:
            raise NoSpace("the store's disk is full: no room for others' copies")

    @property
    def spared_cache_bytes(self) -> int:
        """So much cache is on a disk even where less than the floor is free: a read is
        several chunks, and each that came would take the place of the one before."""
        return min(SPARED_CACHE_BYTES, self.min_free_bytes // 4)

    def require_for_cache(self, size_bytes: int) -> None:
        """Like `require` with half the floor, so that a full disk is still read."""
        if self.free_bytes() - size_bytes < self.min_free_bytes // 2:
            raise NoSpace("the store's disk is full: no room for a fetched chunk")


DEFAULT_MIN_FREE_BYTES = 1 << 30
"""1 GiB, or a twentieth of a disk smaller than 20 GiB."""
SPARED_CACHE_BYTES = 64 << 20
"""For a few readers, with what they read ahead."""
