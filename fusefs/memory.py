"""Freed memory goes back to the system.

The C library keeps it, for each thread's arena apart: after many scattered writes a
worker held twice what it used.

Source: mallopt(3), malloc_trim(3). Other libraries than glibc have neither.
"""

from __future__ import annotations

import ctypes

_ARENA_MAX = -8
"""M_ARENA_MAX of malloc.h."""

_libc = ctypes.CDLL(None)


def use_one_arena() -> None:
    """Before the first thread is started. The interpreter's lock lets one thread at a
    time allocate, but for SQLite."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Milliseconds in which nobody allocates; not on a path where somebody waits."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
