"""Memory that processes share as a file of the store."""

from __future__ import annotations

import mmap
import os
from pathlib import Path


def map_file(path: Path, size: int) -> mmap.mmap:
    """The first `size` bytes, made if need be; the file never shrinks under those who
    have it mapped.

    Its blocks are there when this returns: what is written through the mapping to a
    hole when the disk is full does not fail, it kills the process (SIGBUS).

    Raises OSError: ENOSPC, or why the file cannot be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)


def map_file_or_own(path: Path | None, size: int) -> tuple[mmap.mmap, OSError | None]:
    """The same, or memory of this process alone, and why."""
    if path is None:
        return mmap.mmap(-1, size), None
    try:
        return map_file(path, size), None
    except OSError as problem:
        return mmap.mmap(-1, size), problem
