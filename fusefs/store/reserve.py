"""Blocks kept for what gives blocks back: a removal needs some itself, for the
databases and their logs.

`STORE/reserve` (docs/formats.md, 4.5) takes them from whoever else writes to the disk.
Nothing is in it. Made by housekeeping, given up by either process.
"""

from __future__ import annotations

import os
from pathlib import Path

from fusefs.errors import NoSpace
from fusefs.store.space import Space

NAME = "reserve"
MOST_BYTES = 8 << 20
"""What is mapped for a mount, the logs of both databases for many removals, and a chunk
that is cut."""
SHARE = 8
"""Of a disk smaller than 64 MiB it is this part."""


class Reserve:
    """Of one store. Thread-safe."""

    def __init__(self, store: Path, space: Space) -> None:
        self._path = store / NAME
        self._space = space
        self.size_bytes = min(MOST_BYTES, space.total_bytes() // SHARE)

    def is_there(self) -> bool:
        """One that was not finished (a crash, no room) is shorter, and none."""
        try:
            return self._path.stat().st_size >= self.size_bytes
        except FileNotFoundError:
            return False

    def make(self) -> None:
        """If it is not there, and leaves room for others."""
        spare = max(self._space.min_free_bytes, self.size_bytes)
        if self._space.free_bytes() - self.size_bytes < spare or self.is_there():
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            os.posix_fallocate(fd, 0, self.size_bytes)
        except OSError:
            give_up(self._path.parent)
            raise
        finally:
            os.close(fd)

    def give_up(self) -> bool:
        """Its blocks are free for a removal; False when there were none."""
        return give_up(self._path.parent)

    def is_in_use(self) -> bool:
        """It was given up, and there is not as much room again."""
        return self._space.free_bytes() < self.size_bytes and not self.is_there()

    def require(self) -> None:
        """Before what only takes room: it must not take what was given up for
        removals. Raises NoSpace."""
        if self.is_in_use():
            self._space.refused.set()
            raise NoSpace("the store's disk is full: what is left is for removals")


def give_up_if_full(store: Path) -> None:
    """Before worker and node are started, who need room for what they share."""
    stat = os.statvfs(store)
    if stat.f_bavail * stat.f_frsize < MOST_BYTES:
        give_up(store)


def give_up(store: Path) -> bool:
    """The same for who has not opened the store."""
    try:
        os.unlink(store / NAME)
    except FileNotFoundError:
        return False
    return True
