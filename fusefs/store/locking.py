"""The store's write lock, across threads and across the two processes."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path


class WriteLock:
    """Excludes every other writer of the index, here and in the other process.

    A file lock rather than SQLite's own, which polls with sleeps of milliseconds
    when it is contended; this one wakes the waiter at once (0.5 us uncontended).
    Held for one short transaction and the renames or unlinks that belong to it.
    Not reentrant.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        # Orders the threads of this process, which share one file description.
        self._mutex = threading.Lock()

    def __enter__(self) -> None:
        self._mutex.acquire()
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except BaseException:
            self._mutex.release()
            raise

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._mutex.release()

    def note(self, what: bytes) -> None:
        """For who has the lock next, should this process be killed before it says that
        nothing is left to do (as many zeros). The caller holds the lock."""
        os.pwrite(self._fd, what, 0)

    def noted(self, length: int) -> bytes:
        """What a holder left; zeros if it finished. The caller holds the lock."""
        found = os.pread(self._fd, length, 0)
        return found if len(found) == length else bytes(length)

    def close(self) -> None:
        os.close(self._fd)
