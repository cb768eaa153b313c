"""How many inodes there are and how many bytes they show, without counting them.

Each transaction notes how it moved both beside what it did to the digests
(`registers.Registers.flush`), so keeping them costs no statement and no page; asking
adds up what was not folded yet. Calls are given a connection and begin nothing.

A sparse file shows up to 8 EiB, and SQLite counts to that: bytes are kept modulo 2**64
(`wrapped`), so that what comes and goes is right again once the sum fits.
"""

from __future__ import annotations

import sqlite3

import msgspec

_MOST = (1 << 63) - 1
_LOW = (1 << 20) - 1
_SUM = f"coalesce(sum({{0}} >> 20), 0), coalesce(sum({{0}} & {_LOW}), 0)"
"""Of a column, in two parts that do not overflow."""
_PENDING = f"SELECT coalesce(sum(inodes), 0), {_SUM.format('bytes')} FROM digest_delta"
_COUNT = f"SELECT count(*), {_SUM.format('size')} FROM inode"
_KEPT = (
    "(SELECT value FROM meta WHERE key = 'inodes'),"
    " (SELECT value FROM meta WHERE key = 'bytes')"
)
_READ = _PENDING.replace("SELECT", f"SELECT {_KEPT},", 1)
"""One statement: what is added up meanwhile is seen on neither side or on one."""


class Totals(msgspec.Struct, frozen=True):
    inodes: int
    bytes: int
    """`wrapped`."""

    @property
    def shown_bytes(self) -> int:
        """What there is, as far as 63 bits say."""
        return self.bytes if self.bytes >= 0 else _MOST


def wrapped(count: int) -> int:
    """To 64 bits with a sign."""
    return (count + _MOST + 1) % (1 << 64) - _MOST - 1


def read(db: sqlite3.Connection) -> Totals:
    """As of the last commit, or of the transaction `db` is in once it is flushed."""
    kept, size, inodes, high, low = db.execute(_READ).fetchone()
    return Totals(int(kept) + inodes, wrapped(int(size) + (high << 20) + low))


def counted(db: sqlite3.Connection) -> Totals:
    """The same from the rows: looks at each."""
    return _sums(db, _COUNT)


def _sums(db: sqlite3.Connection, sql: str) -> Totals:
    inodes, high, low = db.execute(sql).fetchone()
    return Totals(inodes, wrapped((high << 20) + low))


def moved(db: sqlite3.Connection, inodes: int, size: int) -> None:
    """They are by so much more now, by no note that will be added up."""
    kept, bytes_ = db.execute(f"SELECT {_KEPT}").fetchone()
    _keep(db, int(kept) + inodes, int(bytes_) + size)


def _keep(db: sqlite3.Connection, inodes: int, size: int) -> None:
    for key, value in (("inodes", inodes), ("bytes", wrapped(size))):
        db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))


def difference(kept: Totals, counted: Totals) -> tuple[int, int]:
    """What `moved` has to be told."""
    return counted.inodes - kept.inodes, counted.bytes - kept.bytes


def recount(db: sqlite3.Connection) -> None:
    """Set them right, whatever they were."""
    rows, pending = counted(db), _sums(db, _PENDING)
    _keep(db, rows.inodes - pending.inodes, rows.bytes - pending.bytes)
