"""Buffers for unpublished writes: reused, and counted against one budget.

A fresh 1 MiB buffer costs 256 page faults, more than hashing what goes into it, so
large and medium buffers come back to a pool. Small ones are left to malloc.
"""

from __future__ import annotations

import threading

SMALL, MEDIUM, LARGE = 16 << 10, 128 << 10, 1 << 20
"""Sizes handed out: one small file, one request of the kernel, one chunk."""
PAGE = 4 << 10
"""Scattered writes are kept by pages: a database's page, the kernel's too."""
IDLE_LARGE, IDLE_MEDIUM = 16, 32
"""Idle buffers kept (20 MiB): a few writers' worth. More go back to the system."""


class Pool:
    """Thread-safe. `used_bytes` is what is handed out now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # the counter; nothing is called under it
        self._idle: dict[int, list[memoryview]] = {MEDIUM: [], LARGE: []}
        self.used_bytes = 0

    def take(self, size: int) -> memoryview:
        """A buffer of at least `size` bytes (at most LARGE); content is arbitrary."""
        room = SMALL if size <= SMALL else MEDIUM if size <= MEDIUM else LARGE
        buffer = None
        if idle := self._idle.get(room):
            try:
                buffer = idle.pop()
            except IndexError:  # another thread was faster
                pass
        if buffer is None:
            buffer = memoryview(bytearray(room))
        with self._lock:
            self.used_bytes += room
        return buffer

    def page(self) -> bytearray:
        """One page for a scattered write."""
        page = bytearray(PAGE)
        with self._lock:
            self.used_bytes += PAGE
        return page

    def drop_pages(self, count: int) -> None:
        """That many pages are not used any more."""
        with self._lock:
            self.used_bytes -= count * PAGE

    def give(self, buffer: memoryview) -> None:
        """Nobody reads or writes the buffer any more."""
        room = len(buffer)
        with self._lock:
            self.used_bytes -= room
        idle = self._idle.get(room)
        if idle is not None and len(idle) < (
            IDLE_LARGE if room == LARGE else IDLE_MEDIUM
        ):
            idle.append(buffer)
