"""The write lock: one writer at a time among all threads of both processes."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from pathlib import Path
from types import TracebackType

from fusefs.store.shared import map_file

_COUNTER = struct.Struct("=Q")
_RESERVED = struct.Struct("=Q")
_BYTES = _COUNTER.size + _RESERVED.size


class WriteLock:
    """Protects write transactions of meta.db. Under it: SQLite and pure code only.

    flock(2) belongs to the open file description, so threads of one process are
    kept apart by a mutex first.
    """

    def __init__(self, path: Path) -> None:
        self._map = map_file(path, _BYTES)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
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

    def try_here(self) -> bool:
        """Keep the threads of this process out, unless one is in; `leave_here` ends
        it. The other process may be writing."""
        return self._mutex.acquire(blocking=False)

    def leave_here(self) -> None:
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

    @property
    def reserved_until_ns(self) -> int:
        """Until then (CLOCK_MONOTONIC) a name of a directory that this node decides
        about may belong to another node. Read and set under the lock."""
        return int(_RESERVED.unpack_from(self._map, _COUNTER.size)[0])

    @reserved_until_ns.setter
    def reserved_until_ns(self, value: int) -> None:
        _RESERVED.pack_into(self._map, _COUNTER.size, value)

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)
