"""Connections to small.db: one writer, a few readers, the WAL's sync and checkpoint.

Two processes have the file open at once. A commit survives a crash of either
(`synchronous = NORMAL`); `sync` makes it survive a power cut. Connections are
shared by threads because FUSE callback threads live for one call only, too short
for a connection per thread.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fusefs.errors import Corrupt, DiskFailed, FsError, NoSpace
from fusefs.store import trouble
from fusefs.store.files import FULL, failed, refusal
from fusefs.store.locking import WriteLock
from fusefs.store.wal import AUTOCHECKPOINT_PAGES, CHECKPOINT_BYTES, LONGEST_BYTES, Wal

SCHEMA_VERSION = 1
PACKED_VERSION = 2
"""There may be objects that earlier programs cannot read (packing.py)."""
APPLICATION_ID = 0x64667332  # "dfs2"
BUSY_TIMEOUT_S = 30.0
"""Only recovery after a crash of the other process ever blocks this long."""
READERS_KEPT = 4
_UNCLEAR = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
)
_OF_DISK = (*_UNCLEAR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
PAGE_BYTES = 4096
"""SQLite's default, with which every small.db is made."""
SHRINKS = "auto_vacuum = INCREMENTAL"
"""Pages that are free can be given back to the disk: where what moves into their place
was is known. Costs a page in 820."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS small(
  n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
  stored_s INTEGER NOT NULL, flags INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS small_cache ON small(n, size) WHERE flags = 0;
CREATE TABLE IF NOT EXISTS large(
  id BLOB PRIMARY KEY, size INTEGER NOT NULL, used_s INTEGER NOT NULL,
  flags INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""

Row = tuple[Any, ...]


def translated(error: sqlite3.Error, path: Path) -> FsError:
    """Our error for one of SQLite's about this database. SQLite does not tell a quota
    that is used up, or a disk that takes no writes, from one that fails."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    why = refusal(path.parent) if code in _UNCLEAR else 0
    if code == sqlite3.SQLITE_FULL or why in FULL:
        return NoSpace(f"the store's disk is full ({path.name})")
    if why == errno.EROFS:
        return failed(
            path.parent, f"writing {path.name}", OSError(why, os.strerror(why))
        )
    repair = " --repair" if path.name == "small.db" else ""
    text = f"{path.name}: {error}; run `dfs fsck{repair}`"
    if code not in _OF_DISK:
        return Corrupt(text)
    trouble.note(path.parent, f"{path.name}: {error}")
    return DiskFailed(text)


class Database:
    """The file small.db."""

    def __init__(
        self,
        path: Path,
        lock: WriteLock,
        packed: Callable[[bool], bool],
    ) -> None:
        """`packed`: told whether the database is new, says whether there may be packed
        objects from now on; asked under the lock."""
        self._path = path
        self._lock = lock
        self.is_new = False
        """There was none, or an empty one."""
        try:
            with lock:
                self._writer = self._prepare(packed)
        except sqlite3.Error as error:
            raise translated(error, self._path) from error
        self._readers: list[sqlite3.Connection] = []
        self._wal = Wal(self._connect, Path(f"{path}-wal"), lock)
        sync_directory(path.parent)

    def _prepare(self, packed: Callable[[bool], bool]) -> sqlite3.Connection:
        if not self._path.exists() or not self._path.stat().st_size:
            self.is_new = True
            with closing(sqlite3.connect(self._path, isolation_level=None)) as new:
                new.execute(f"PRAGMA {SHRINKS}")  # before anything is in it
                new.execute("PRAGMA journal_mode = WAL")
        writer = self._connect()
        (version,) = writer.execute("PRAGMA user_version").fetchone()
        if version > PACKED_VERSION:
            raise Corrupt(
                f"{self._path} has format {version}, this program knows up to"
                f" {PACKED_VERSION}: use a newer version of dfs"
            )
        if version < SCHEMA_VERSION:
            create_tables(writer)
        if version < PACKED_VERSION and packed(self.is_new):
            allow_packed(writer)
        writer.execute("SELECT 1 FROM state").fetchone()  # makes the -wal file exist
        return writer

    def _connect(self, timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=timeout_s,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        for pragma in (
            "journal_mode = WAL",
            "synchronous = NORMAL",
            f"wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}",
            f"journal_size_limit = {LONGEST_BYTES}",
            # Mapped, a read is 3 us faster and every page read counts as resident
            # memory for each connection; and a disk error would kill the process.
            "mmap_size = 0",
            "cache_size = -2048",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    @property
    def has_packed(self) -> bool:
        """Objects may be compressed."""
        row = self.one("PRAGMA user_version")
        return row is not None and row[0] >= PACKED_VERSION

    def one(self, sql: str, parameters: tuple[object, ...] = ()) -> Row | None:
        """The first row of a query, from any thread; never waits for a writer."""
        reader = self._borrow()
        try:
            row: Row | None = reader.execute(sql, parameters).fetchone()
            return row
        except sqlite3.Error as error:
            raise translated(error, self._path) from error
        finally:
            self._give_back(reader)

    def all(self, sql: str, parameters: tuple[object, ...] = ()) -> list[Row]:
        """Every row of a query; keep it bounded, it holds back the checkpoint."""
        reader = self._borrow()
        try:
            return reader.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise translated(error, self._path) from error
        finally:
            self._give_back(reader)

    def _borrow(self) -> sqlite3.Connection:
        try:
            return self._readers.pop()
        except IndexError:
            return self._connect()

    def _give_back(self, reader: sqlite3.Connection) -> None:
        if len(self._readers) < READERS_KEPT:
            self._readers.append(reader)
        else:
            reader.close()

    def run(self, sql: str, parameters: tuple[object, ...] = ()) -> int:
        """One writing statement, a transaction of its own unless in `transaction`.

        The caller holds the WriteLock. Returns the number of rows changed.
        """
        try:
            return self._writer.execute(sql, parameters).rowcount
        except sqlite3.Error as error:
            raise translated(error, self._path) from error

    def fresh(self, sql: str, parameters: tuple[object, ...] = ()) -> Row | None:
        """The first row, read by the writer: the caller holds the WriteLock."""
        try:
            row: Row | None = self._writer.execute(sql, parameters).fetchone()
            return row
        except sqlite3.Error as error:
            raise translated(error, self._path) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Several statements as one; the caller holds the WriteLock."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.rollback()
            raise

    def sync(self) -> None:
        """Every commit so far, of both processes, is durable when this returns. Raises
        NoSpace, Corrupt."""
        try:
            self._wal.sync()
        except OSError as error:
            raise failed(self._path.parent, "syncing small.db", error) from error

    def checkpoint(self, at_least_bytes: int = CHECKPOINT_BYTES) -> None:
        """Move a long WAL into the table so that it starts again at its beginning."""
        try:
            self._wal.checkpoint(at_least_bytes)
        except sqlite3.Error as error:
            raise translated(error, self._path) from error

    def free_pages(self) -> int:
        """Of the file, for rows to come."""
        row = self.one("PRAGMA freelist_count")
        return int(row[0]) if row else 0

    def shrink(self, pages: int) -> None:
        """Give so many free pages back to the disk, with the next checkpoint. Nothing
        happens to a file made by an earlier program. The caller holds the WriteLock."""
        try:
            self._writer.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
        except sqlite3.Error as error:
            raise translated(error, self._path) from error

    def size_bytes(self) -> int:
        """Space of the tables, without free pages."""
        row = self.one(
            "SELECT (c.page_count - f.freelist_count) * s.page_size"
            " FROM pragma_page_count c, pragma_freelist_count f, pragma_page_size s"
        )
        return int(row[0]) if row else 0

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self._readers.clear()
        self._wal.close()
        self._writer.close()


def allow_packed(connection: sqlite3.Connection) -> None:
    """For good: earlier programs leave the store alone."""
    connection.execute(f"PRAGMA user_version = {PACKED_VERSION}")


def create_tables(connection: sqlite3.Connection) -> None:
    """Make an empty database what this program works with."""
    connection.executescript(
        f"BEGIN IMMEDIATE; {_SCHEMA}"
        f"PRAGMA application_id = {APPLICATION_ID};"
        f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
