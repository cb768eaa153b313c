"""meta.db: its tables, and how a connection is opened (docs/formats.md, section 3)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusefs.errors import Corrupt
from fusefs.namespace import totals
from fusefs.store.wal import AUTOCHECKPOINT_PAGES, LONGEST_BYTES

APPLICATION_ID = 0x64667331
VERSION = 1

TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE vector(node INTEGER PRIMARY KEY, seq INTEGER NOT NULL,
                    hlc INTEGER NOT NULL);
CREATE TABLE register(key BLOB PRIMARY KEY, node INTEGER NOT NULL,
                      seq INTEGER NOT NULL, state BLOB NOT NULL,
                      sum INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX register_dot ON register(node, seq);
CREATE TABLE extra_dot(node INTEGER, seq INTEGER, key BLOB,
                       PRIMARY KEY(node, seq, key)) WITHOUT ROWID;
CREATE TABLE retired(ino INTEGER PRIMARY KEY);
CREATE TABLE digest_delta(n INTEGER PRIMARY KEY, delta BLOB NOT NULL,
                          inodes INTEGER NOT NULL DEFAULT 0,
                          bytes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE digest(bucket INTEGER PRIMARY KEY, xor BLOB NOT NULL);
"""

# Everything below is derived from the registers (fusefs/namespace/derive.py).
DERIVED = """
CREATE TABLE inode(ino INTEGER PRIMARY KEY, mode INTEGER, uid INTEGER, gid INTEGER,
                   rdev INTEGER, nlink INTEGER, size INTEGER, mtime_ns INTEGER,
                   ctime_ns INTEGER, atime_ns INTEGER, btime_ns INTEGER, root BLOB,
                   chunk_log2 INTEGER, node INTEGER, seq INTEGER, target BLOB,
                   parent INTEGER, flags INTEGER);
CREATE TABLE entry(parent INTEGER, name BLOB, ino INTEGER NOT NULL,
                   kind INTEGER NOT NULL, flags INTEGER NOT NULL,
                   PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE INDEX entry_ino ON entry(ino);
-- entries that no register of their own name shows, and where they come from
CREATE TABLE odd(parent INTEGER, name BLOB, origin BLOB NOT NULL, ino INTEGER NOT NULL,
                 why TEXT NOT NULL, base INTEGER NOT NULL, node INTEGER, seq INTEGER,
                 PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE INDEX odd_ino ON odd(ino);
-- inodes that come back although no dirent names them, and under which name
CREATE TABLE revived(ino INTEGER PRIMARY KEY, parent INTEGER NOT NULL,
                     name BLOB NOT NULL, kind INTEGER NOT NULL, node INTEGER NOT NULL,
                     seq INTEGER NOT NULL, hlc INTEGER NOT NULL);
CREATE INDEX revived_home ON revived(parent, name);
-- directories cut out of a cycle of places
CREATE TABLE cut(ino INTEGER PRIMARY KEY);
"""
DERIVED_TABLES = ("inode", "entry", "odd", "revived", "cut")


def connect(
    path: Path, *, read_only: bool = False, timeout_s: float = 30
) -> sqlite3.Connection:
    """A connection in autocommit mode, usable from any thread (callers lock)."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    db = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=timeout_s
    )
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA temp_store = MEMORY")
    db.execute("PRAGMA cache_size = -16384")  # KiB: the upper tree levels stay in
    db.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {LONGEST_BYTES}")
    # Mapped, every commit of another connection takes the whole mapping down (a third
    # of the time of a create), and every page read counts as resident memory.
    db.execute("PRAGMA mmap_size = 0")
    return db


@contextmanager
def snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees everything as it is at the first read."""
    db = connect(path, read_only=True)
    try:
        db.execute("BEGIN")
        yield db
    finally:
        db.close()


def create(path: Path) -> sqlite3.Connection:
    """A new, empty database. Raises FileExistsError."""
    path.touch(mode=0o600, exist_ok=False)
    db = connect(path)
    db.execute("PRAGMA page_size = 4096")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.executescript(TABLES + DERIVED)
    db.execute(f"PRAGMA user_version = {VERSION}")
    return db


def check_version(db: sqlite3.Connection, path: Path) -> None:
    """Raises Corrupt when the file is not ours or is newer than this program."""
    try:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise Corrupt(f"{path} is damaged: {error}") from error
    if application != APPLICATION_ID:
        raise Corrupt(f"{path} is not a dfs metadata database")
    if version > VERSION:
        raise Corrupt(f"{path} has format {version}; this dfs reads up to {VERSION}")


def lacks_totals(db: sqlite3.Connection) -> bool:
    """Whether only programs had it that did not keep them. They can still use it."""
    return not db.execute("SELECT 1 FROM meta WHERE key = 'inodes'").fetchone()


def add_totals(db: sqlite3.Connection) -> None:
    """All or nothing. The write lock is held: the other process may have done it."""
    try:
        db.execute("BEGIN IMMEDIATE")
        if lacks_totals(db):
            for column in ("inodes", "bytes"):
                db.execute(
                    f"ALTER TABLE digest_delta ADD COLUMN {column}"
                    " INTEGER NOT NULL DEFAULT 0"
                )
            totals.recount(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
