"""The write lock: one writer at a time among all threads of both processes."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from pathlib import Path
from types import TracebackType

_COUNTER = struct.Struct("=Q")


class WriteLock:
    """Protects write transactions of meta.db. Under it: SQLite and pure code only.

    flock(2) belongs to the open file description, so threads of one process are
    kept apart by a mutex first.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size < _COUNTER.size:
            os.ftruncate(self._fd, _COUNTER.size)
        self._map = mmap.mmap(self._fd, _COUNTER.size)
        self._mutex = threading.Lock()

    def __enter__(self) -> None:
        self._mutex.acquire()
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except BaseException:
            self._mutex.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._mutex.release()

    @property
    def counter(self) -> int:
        """How often any process was about to commit. Read and raise under the lock."""
        return int(_COUNTER.unpack_from(self._map)[0])

    def raise_counter(self) -> int:
        """To be called before each commit; gives the new value."""
        value = (self.counter + 1) & 0xFFFF_FFFF_FFFF_FFFF
        _COUNTER.pack_into(self._map, 0, value)
        return value

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)
