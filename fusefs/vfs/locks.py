"""flock(2) and fcntl(2) record locks between the processes of this node.

Record locks (POSIX and OFD) are ranges with an owner; flock is one whole-file lock
of another kind: the two never see each other. A blocking request waits on one
condition and looks every 50 ms whether the kernel interrupted it.

Source: fcntl(2), flock(2), linux/fs/locks.c (deadlock detection).
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from fusefs.errors import FsError, Interrupted, Invalid, WouldBlock
from fusefs.model.ids import Ino
from fusefs.vfs.types import FileLock

OFFSET_MAX = (1 << 63) - 1
_POLL_S = 0.05
"""How soon a waiting lock notices an interrupt: below what a user notices."""
_EDEADLK = 35

_F_RDLCK, _F_WRLCK, _F_UNLCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
Key = tuple[Ino, bool]
"""Inode, and whether flock."""


class Held(NamedTuple):
    owner: int
    kind: int
    start: int
    end: int
    pid: int


class Locks:
    """Thread-safe. Waiting happens on `_changed`, which gives the lock up."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._changed = threading.Condition()  # all tables; nothing is called under it
        self._held: dict[Key, list[Held]] = {}
        self._waiting: dict[int, set[int]] = {}
        """Record locks: owner -> owners it waits for, to find deadlocks."""

    def test(self, ino: Ino, owner: int, want: FileLock, is_flock: bool) -> FileLock:
        """F_GETLK: a lock that stands in the way, or F_UNLCK."""
        _check(want)
        with self._changed:
            found = self._conflicts((ino, is_flock), owner, want)
            if not found:
                return FileLock(_F_UNLCK, 0, 0, 0)
            first = found[0]
            return FileLock(first.kind, first.start, first.end, first.pid)

    def change(
        self,
        ino: Ino,
        owner: int,
        want: FileLock,
        wait: bool,
        is_flock: bool,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        """Take, change or drop a lock.

        Raises: WouldBlock when not waiting; Interrupted; EDEADLK when waiting would
        never end.
        """
        _check(want)
        key = (ino, is_flock)
        with self._changed:
            if want.kind == _F_UNLCK:
                self._replace(key, owner, want)
                return
            if is_flock:  # a conversion gives the old lock up first (flock(2))
                self._replace(key, owner, want._replace(kind=_F_UNLCK))
            while found := self._conflicts(key, owner, want):
                if not wait:
                    raise WouldBlock("locked by another process")
                self._wait(owner, {h.owner for h in found}, is_flock, cancelled)
            self._replace(key, owner, want)

    def _wait(
        self,
        owner: int,
        others: set[int],
        is_flock: bool,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        if not is_flock:
            if self._deadlock(owner, others):
                raise FsError("waiting would never end", errno=_EDEADLK)
            self._waiting[owner] = others
        try:
            self._changed.wait(_POLL_S if cancelled is not None else None)
        finally:
            self._waiting.pop(owner, None)
        if cancelled is not None and cancelled():
            raise Interrupted("interrupted while waiting for a lock")

    def _deadlock(self, owner: int, others: set[int]) -> bool:
        seen: set[int] = set()
        todo = set(others)
        while todo:
            other = todo.pop()
            if other == owner:
                return True
            if other not in seen:
                seen.add(other)
                todo |= self._waiting.get(other, set())
        return False

    def _conflicts(self, key: Key, owner: int, want: FileLock) -> list[Held]:
        return [
            h
            for h in self._held.get(key, ())
            if h.owner != owner
            and h.start <= want.end
            and want.start <= h.end
            and _F_WRLCK in (h.kind, want.kind)
        ]

    def _replace(self, key: Key, owner: int, want: FileLock) -> None:
        """The owner's range becomes `want`: split, cut and join what it had."""
        before = self._held.get(key, [])
        after = [h for h in before if h.owner != owner]
        start, end = want.start, want.end
        for h in before:
            if h.owner != owner:
                continue
            if h.kind == want.kind and h.start <= end + 1 and start <= h.end + 1:
                start, end = min(start, h.start), max(end, h.end)
                continue
            if h.start < want.start:
                after.append(h._replace(end=min(h.end, want.start - 1)))
            if h.end > want.end:
                after.append(h._replace(start=max(h.start, want.end + 1)))
        if want.kind != _F_UNLCK:
            after.append(Held(owner, want.kind, start, end, want.pid))
        if after:
            self._held[key] = sorted(after, key=lambda h: h.start)
        else:
            self._held.pop(key, None)
        if len(before) > 0:
            self._changed.notify_all()

    def drop(self, ino: Ino, owner: int, is_flock: bool) -> None:
        """The owner closed the file: everything it held on it is free."""
        if not self._held:
            return
        with self._changed:
            if (ino, is_flock) in self._held:
                self._replace(
                    (ino, is_flock), owner, FileLock(_F_UNLCK, 0, OFFSET_MAX, 0)
                )

    def __len__(self) -> int:
        return sum(len(held) for held in list(self._held.values()))


def _check(want: FileLock) -> None:
    if want.kind not in (_F_RDLCK, _F_WRLCK, _F_UNLCK):
        raise Invalid(f"lock kind {want.kind}")
    if not 0 <= want.start <= want.end:
        raise Invalid("a lock's range is backwards")
