"""The write-ahead log of a database: making it durable, and moving it into the
database beside running writers.

A writer whose commit happens to fill the WAL would else do it, with two syncs, while a
program waits for its request: a tenth of the time of a create, in one piece.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

CHECKPOINT_BYTES = 8 << 20
"""A WAL this long is moved by the background sync; one that stays this short is
overwritten in place, which costs a third less than growing it."""
AUTOCHECKPOINT_PAGES = 16384
"""64 MiB: a writer does it itself only when the background sync is stuck."""
LONGEST_BYTES = 64 << 20
"""What a WAL that grew longer, behind a reader that took its time, is cut to when it
starts again."""
RESTART_WAIT_S = 0.05
"""Writers wait while the WAL restarts; with a reader in the way, do it next time."""
_PAGE_BYTES = 4096
_COPY_BYTES = 1 << 20


class Wal:
    """Of one database. Thread-safe."""

    def __init__(
        self,
        connect: Callable[[float], sqlite3.Connection],
        path: Path,
        lock: AbstractContextManager[None],
    ) -> None:
        """`connect`: a connection with this busy timeout, in seconds; `lock`: what
        writers hold."""
        self._connect = connect
        self._path = path
        self._lock = lock
        # One checkpoint at a time; nothing else is taken under it but the lock.
        self._running = threading.Lock()
        self._keeper: sqlite3.Connection | None = None
        self._fd: int | None = None
        self._failures = self._mended = 0

    def sync(self) -> None:
        """Every commit so far, of both processes, is durable when this returns. What a
        checkpoint moved out of the WAL it has synced itself.

        After a sync that failed the next one may succeed though the disk has nothing:
        the kernel calls the pages clean (fsync(2)). They are written anew then.
        Raises OSError.
        """
        if self._fd is None:
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return
        while True:
            failures = self._failures
            if failures != self._mended:
                with self._lock:
                    _write_anew(self._fd)
            try:
                os.fdatasync(self._fd)
            except OSError:
                self._failures += 1
                raise
            if failures == self._failures:  # else another thread was told, not this one
                self._mended = max(self._mended, failures)
                return

    def checkpoint(self, at_least_bytes: int = CHECKPOINT_BYTES) -> None:
        """If the WAL is that long: the bulk is moved beside running writers; only the
        rest, and the restart at its beginning, hold them up. Raises sqlite3.Error."""
        try:
            if os.stat(self._path).st_size < at_least_bytes:
                return
        except FileNotFoundError:
            return
        with self._running:
            if self._keeper is None:
                self._keeper = self._connect(RESTART_WAIT_S)
            try:
                if moved(self._keeper, "PASSIVE") * _PAGE_BYTES >= at_least_bytes:
                    with self._lock:
                        moved(self._keeper, "RESTART")
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", 0)  # none of Python's own
                if code == sqlite3.SQLITE_IOERR_FSYNC:
                    self._failures += 1
                raise

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def moved(connection: sqlite3.Connection, mode: str) -> int:
    """Checkpoint; the number of pages the WAL held."""
    row = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return max(0, int(row[1]))


def _write_anew(fd: int) -> None:
    """The same bytes, so that readers see no difference. No writer is at it."""
    end = os.fstat(fd).st_size
    for offset in range(0, end, _COPY_BYTES):
        os.pwrite(fd, os.pread(fd, _COPY_BYTES, offset), offset)
