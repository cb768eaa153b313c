"""How many inodes there are and how many bytes they show, without counting them.

Each transaction notes how it moved both beside what it did to the digests
(`registers.Registers.flush`), so keeping them costs no statement and no page; asking
adds up what was not folded yet. Calls are given a connection and begin nothing.
"""

from __future__ import annotations

import sqlite3

import msgspec

_READ = (
    "SELECT (SELECT value FROM meta WHERE key = 'inodes') + coalesce(sum(inodes), 0),"
    " (SELECT value FROM meta WHERE key = 'bytes') + coalesce(sum(bytes), 0)"
    " FROM digest_delta"
)
_COUNT = "SELECT count(*), coalesce(sum(size), 0) FROM inode"
_PENDING = "SELECT coalesce(sum(inodes), 0), coalesce(sum(bytes), 0) FROM digest_delta"


class Totals(msgspec.Struct, frozen=True):
    inodes: int
    bytes: int


def read(db: sqlite3.Connection) -> Totals:
    """As of the last commit, or of the transaction `db` is in once it is flushed."""
    return Totals(*db.execute(_READ).fetchone())


def counted(db: sqlite3.Connection) -> Totals:
    """The same from the rows: looks at each."""
    return Totals(*db.execute(_COUNT).fetchone())


def moved(db: sqlite3.Connection, inodes: int, size: int) -> None:
    """They are by so much more now, by no note that will be added up."""
    for key, by in (("inodes", inodes), ("bytes", size)):
        db.execute("UPDATE meta SET value = value + ? WHERE key = ?", (by, key))


def difference(kept: Totals, counted: Totals) -> tuple[int, int]:
    """What `moved` has to be told."""
    return counted.inodes - kept.inodes, counted.bytes - kept.bytes


def recount(db: sqlite3.Connection) -> None:
    """Set them right, whatever they were."""
    rows, (inodes, size) = counted(db), db.execute(_PENDING).fetchone()
    for key, value in (("inodes", rows.inodes - inodes), ("bytes", rows.bytes - size)):
        db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))
