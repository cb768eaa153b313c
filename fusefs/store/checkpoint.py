"""Moving a long WAL into its database beside running writers.

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


class Checkpoint:
    """Of one database. Thread-safe. Raises sqlite3.Error."""

    def __init__(
        self,
        connect: Callable[[float], sqlite3.Connection],
        wal: Path,
        lock: AbstractContextManager[None],
    ) -> None:
        """`connect`: a connection with this busy timeout, in seconds; `lock`: what
        writers hold."""
        self._connect = connect
        self._wal = wal
        self._lock = lock
        # One checkpoint at a time; nothing else is taken under it but the lock.
        self._running = threading.Lock()
        self._keeper: sqlite3.Connection | None = None

    def run(self, at_least_bytes: int = CHECKPOINT_BYTES) -> None:
        """If the WAL is that long: the bulk is moved beside running writers; only the
        rest, and the restart at its beginning, hold them up."""
        try:
            if os.stat(self._wal).st_size < at_least_bytes:
                return
        except FileNotFoundError:
            return
        with self._running:
            if self._keeper is None:
                self._keeper = self._connect(RESTART_WAIT_S)
            if moved(self._keeper, "PASSIVE") * _PAGE_BYTES >= at_least_bytes:
                with self._lock:
                    moved(self._keeper, "RESTART")

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None


def moved(connection: sqlite3.Connection, mode: str) -> int:
    """Checkpoint; the number of pages the WAL held."""
    row = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return max(0, int(row[1]))
