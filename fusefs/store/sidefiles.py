"""Keeping -wal and -shm of a store's databases while no other process has them open.

SQLite removes both with the last connection, and needs room for them when the next one
is made. On a full disk there is none: neither worker nor node could be started again.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

DATABASES = ("meta.db", "small.db")


class SideFiles:
    """Of one store; the supervisor's, which outlives its children."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[str, sqlite3.Connection] = {}

    def keep(self) -> None:
        """From now on, as far as the databases are there. Raises sqlite3.Error."""
        for name in DATABASES:
            path = self._directory / name
            if name not in self._open and path.exists():
                uri = f"{path.absolute().as_uri()}?mode=rw"
                connection = sqlite3.connect(uri, uri=True, isolation_level=None)
                connection.execute("SELECT 1 FROM sqlite_master").fetchone()
                self._open[name] = connection

    def let_go(self) -> None:
        """The last one who has them open may remove them."""
        while self._open:
            self._open.popitem()[1].close()
