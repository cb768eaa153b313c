"""The register table inside one write transaction: load, save, dots, digests.

A `Registers` lives as long as one transaction. It remembers what it loaded (in
`known`, which may outlive it: see warm.py), what changed (for derivation), the XOR each
digest bucket moves by, and how the totals move.
"""

from __future__ import annotations

import logging
import sqlite3
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_64_digest, xxh3_128_intdigest

from fusefs.errors import Corrupt
from fusefs.model.context import dots_of, without
from fusefs.model.ids import Dot, NodeId, Seq
from fusefs.model.register import (
    EMPTY,
    Register,
    Sibling,
    decode_register,
    encode_register,
    forgotten,
    merge,
    written,
)
from fusefs.model.tx import Write
from fusefs.model.vector import Vector
from fusefs.namespace import totals
from fusefs.namespace.types import Inode

log = logging.getLogger(__name__)

BUCKETS = 256
SUM_MASK = 0x7FFF_FFFF
_DELTA = struct.Struct(">B16s")
_Pairs = list[tuple[int, int]]


def bucket_of(key: bytes) -> int:
    """The digest bucket of a key."""
    return xxh3_64_digest(key)[0]


def state_hash(key: bytes, state: bytes) -> int:
    """The 128-bit summary of one register."""
    return xxh3_128_intdigest(key + state)


def row_sum(key: bytes, state: bytes) -> int:
    """Tells a row that was damaged on this disk: kept beside it, 31 bits."""
    return state_hash(key, state) & SUM_MASK


ROWS = "SELECT key, CAST(state AS BLOB), sum FROM register WHERE "
"""What `sound_rows` takes."""


def sound_rows(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[bytes, bytes, int]]:
    """(key, state, hash) of those (key, state, sum) that are as they were written. The
    others count as not there, for digests as for peers: so a peer that has the register
    finds it missing here, and none ever gets what is damaged."""
    for key, state, row_check in rows:
        found = state_hash(key, state)
        if found & SUM_MASK == row_check:
            yield key, state, found


def read_horizon(rows: Sequence[tuple[Any, ...]]) -> dict[NodeId, Seq]:
    """The value of meta.horizon, if there is one."""
    pairs = msgspec.msgpack.decode(rows[0][0], type=_Pairs) if rows else []
    return {NodeId(node): Seq(seq) for node, seq in pairs}


class Registers:
    """Reads and writes registers through `db`, which is inside a transaction."""

    def __init__(
        self,
        db: sqlite3.Connection,
        known: dict[bytes, tuple[Register, bytes]] | None = None,
        *,
        repairs: bool = False,
    ) -> None:
        self._db = db
        self._repairs = repairs
        self.met_damage = False
        """What was derived may not be what the registers say now."""
        self._damaged: set[bytes] = set()
        """Registers that were met damaged: as if not there, until a peer's is saved."""
        self._loaded = {} if known is None else known
        self._xor: dict[int, int] = {}
        self._inodes = self._bytes = 0
        self._horizon: Vector | None = None
        self.changed: dict[bytes, tuple[Register, Register]] = {}
        """key -> (before this transaction, now)."""

    def load(self, key: bytes) -> Register:
        """The register's state now; EMPTY when it does not exist."""
        return self._load(key)[0]

    def _load(self, key: bytes) -> tuple[Register, bytes]:
        found = self._loaded.get(key)
        if found is None:
            row = self._db.execute(
                "SELECT CAST(state AS BLOB), sum FROM register WHERE key = ?", (key,)
            ).fetchone()
            if row is None:
                found = (EMPTY, b"")
            elif row_sum(key, row[0]) == row[1]:
                found = (decode_register(row[0]), row[0])
            else:
                found = self._damaged_row(key)
            self._loaded[key] = found
        return found

    def _damaged_row(self, key: bytes) -> tuple[Register, bytes]:
        """A peer's state replaces it; a local write must not build on it."""
        log.error("register %r is damaged on this disk", key)
        if not self._repairs:
            raise Corrupt(
                f"register {key!r} is damaged; `dfs fsck --repair` lets a peer bring it"
                " back"
            )
        if not self.met_damage:
            self.met_damage = True
            self._look_at_all()
            return self._load(key)
        self._damaged.add(key)
        return (EMPTY, b"")

    def _look_at_all(self) -> None:
        """Perhaps only the sum is damaged. Otherwise the digest tells of it from here,
        so that a heartbeat finds it. Once in a transaction."""
        recorded = [
            (int.from_bytes(was, "big") ^ self._xor.get(bucket, 0)).to_bytes(16, "big")
            for bucket, was in enumerate(read_buckets(self._db))
        ]
        correct(self._db, recorded, actual(self._db))

    def absent(self, key: bytes) -> None:
        """The caller looked: there is no such register."""
        self._loaded.setdefault(key, (EMPTY, b""))

    def write(
        self, key: bytes, sibling: Sibling, beside: Collection[Dot] = ()
    ) -> Write:
        """A local write: replaces every sibling but those of other nodes that are
        `beside` it; returns the record to broadcast."""
        before = self.load(key)
        seen = without(before.context, beside) if beside else before.context
        flat = tuple(number for dot in dots_of(seen) for number in dot)
        after = written(Register(seen, ()), sibling)
        self._save(key, merge(before, after) if beside else after)
        return Write(key, flat, sibling.value)

    def merge(self, key: bytes, other: Register) -> bool:
        """Merge a remote state in; False when it brought nothing."""
        before = self.load(key)
        after = merge(before, other)
        if any(not s.value for s in after.siblings):
            after = forgotten(after, self.horizon)
        if after == before:
            return False
        if after.siblings:
            self._save(key, after)
        else:
            self.drop(key)
        return True

    @property
    def horizon(self) -> Vector:
        """The deletes this node has already forgotten."""
        if self._horizon is None:
            rows = self._db.execute("SELECT value FROM meta WHERE key = 'horizon'")
            self._horizon = read_horizon(rows.fetchall())
        return self._horizon

    def forget_deletes(self, key: bytes, upto: Vector) -> int:
        """Drop the register's deletes at or below `upto`; 1 if there were any."""
        before = self.load(key)
        after = forgotten(before, upto)
        if after is before:
            return 0
        if after.siblings:
            self._save(key, after)
        else:
            self.drop(key)
        return 1

    def drop(self, key: bytes) -> None:
        """Remove a register for good; it shows nothing any more."""
        before, raw = self._load(key)
        if raw or key in self._damaged:
            self._move_digest(key, raw, 0)
            self._db.execute("DELETE FROM register WHERE key = ?", (key,))
            self._set_extra(key, before, EMPTY)
            if key in self._damaged:
                self._heal(key, EMPTY)
            self._loaded[key] = (EMPTY, b"")

    def _save(self, key: bytes, after: Register) -> None:
        before, raw = self._load(key)
        state = encode_register(after)
        summary = state_hash(key, state)  # for the row's check and for the digest
        top = (NodeId(0), Seq(0))
        if after.siblings:
            top = max(s.dot for s in after.siblings)
        self._db.execute(
            "INSERT INTO register VALUES(?, ?, ?, ?, ?) ON CONFLICT(key) DO UPDATE SET"
            " node = excluded.node, seq = excluded.seq, state = excluded.state,"
            " sum = excluded.sum",
            (key, top[0], top[1], state, summary & SUM_MASK),
        )
        if len(before.siblings) > 1 or len(after.siblings) > 1:
            self._set_extra(key, before, after)
        self._move_digest(key, raw, summary)
        self._loaded[key] = (after, state)
        if key in self._damaged:
            self._heal(key, after)
        first = self.changed.get(key)
        self.changed[key] = (first[0] if first else before, after)

    def _heal(self, key: bytes, after: Register) -> None:
        """Nobody knew which dots the damaged one had."""
        self._damaged.discard(key)
        self._db.execute("DELETE FROM extra_dot WHERE key = ?", (key,))
        self._set_extra(key, EMPTY, after)

    def _set_extra(self, key: bytes, before: Register, after: Register) -> None:
        """Index the dots of all siblings but the highest."""
        old = set(sorted(s.dot for s in before.siblings)[:-1])
        new = set(sorted(s.dot for s in after.siblings)[:-1])
        for node, seq in old - new:
            self._db.execute(
                "DELETE FROM extra_dot WHERE node = ? AND seq = ? AND key = ?",
                (node, seq, key),
            )
        for node, seq in new - old:
            self._db.execute(
                "INSERT OR IGNORE INTO extra_dot VALUES(?, ?, ?)", (node, seq, key)
            )

    def _move_digest(self, key: bytes, old: bytes, moved: int) -> None:
        """From the old state to one whose hash is `moved` (0: none)."""
        if old:
            moved ^= state_hash(key, old)
        bucket = bucket_of(key)
        self._xor[bucket] = self._xor.get(bucket, 0) ^ moved

    def reshaped(self, before: Inode | None, after: Inode | None) -> None:
        """A row of `inode` became another, came or went: the totals move."""
        self._inodes += (after is not None) - (before is not None)
        self._bytes += (after.size if after else 0) - (before.size if before else 0)

    def flush(self) -> None:
        """Record how digests and totals moved; call once, before the commit."""
        delta = b"".join(
            _DELTA.pack(bucket, xor.to_bytes(16, "big"))
            for bucket, xor in self._xor.items()
            if xor
        )
        if delta or self._inodes or self._bytes:
            self._db.execute(
                "INSERT INTO digest_delta VALUES(NULL, ?, ?, ?)",
                (delta, self._inodes, totals.wrapped(self._bytes)),
            )
        self._xor.clear()
        self._inodes = self._bytes = 0


def fold_digests(db: sqlite3.Connection) -> None:
    """Fold digest_delta into digest and totals. `db` is inside a write transaction."""
    rows = db.execute("SELECT * FROM digest_delta ORDER BY n").fetchall()
    if not rows:
        return
    moved: dict[int, int] = {}
    for _, delta, _, _ in rows:
        for bucket, xor in _DELTA.iter_unpack(delta):
            moved[bucket] = moved.get(bucket, 0) ^ int.from_bytes(xor, "big")
    current = {
        b: int.from_bytes(x, "big") for b, x in db.execute("SELECT * FROM digest")
    }
    db.executemany(
        "INSERT OR REPLACE INTO digest VALUES(?, ?)",
        [
            (bucket, (current.get(bucket, 0) ^ xor).to_bytes(16, "big"))
            for bucket, xor in moved.items()
        ],
    )
    totals.moved(db, sum(row[2] for row in rows), sum(row[3] for row in rows))
    db.execute("DELETE FROM digest_delta WHERE n <= ?", (rows[-1][0],))


def read_buckets(db: sqlite3.Connection) -> list[bytes]:
    """The digest of each bucket, pending movements included."""
    out = [0] * BUCKETS
    for bucket, xor in db.execute("SELECT bucket, xor FROM digest"):
        out[bucket] ^= int.from_bytes(xor, "big")
    for (delta,) in db.execute("SELECT delta FROM digest_delta"):
        for bucket, xor in _DELTA.iter_unpack(delta):
            out[bucket] ^= int.from_bytes(xor, "big")
    return [x.to_bytes(16, "big") for x in out]


class Actual(NamedTuple):
    """What the rows are now."""

    buckets: list[bytes]
    """Digests, without damaged rows."""
    damaged: dict[int, list[tuple[bytes, bytes]]]
    """By bucket: key and state."""


def actual(db: sqlite3.Connection) -> Actual:
    """Look at every row."""
    out = [0] * BUCKETS
    damaged: dict[int, list[tuple[bytes, bytes]]] = {}
    for key, state, row_check in db.execute(
        "SELECT key, CAST(state AS BLOB), sum FROM register"
    ):
        found, bucket = state_hash(key, state), bucket_of(key)
        if found & SUM_MASK == row_check:
            out[bucket] ^= found
        else:
            damaged.setdefault(bucket, []).append((key, state))
    return Actual([x.to_bytes(16, "big") for x in out], damaged)


def with_sums_right(
    recorded: list[bytes], found: Actual
) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Where the digest of a bucket is that of all its rows, those that seem damaged are
    as they were written, and only the sums beside them are not. Gives the digests with
    these counted, and key and state of each."""
    buckets, sound = [*found.buckets], dict[bytes, bytes]()
    for bucket, rows in found.damaged.items():
        total = int.from_bytes(buckets[bucket], "big")
        for key, state in rows:
            total ^= state_hash(key, state)
        if total.to_bytes(16, "big") == recorded[bucket]:
            buckets[bucket] = recorded[bucket]
            sound.update(rows)
    return buckets, sound


def correct(db: sqlite3.Connection, recorded: list[bytes], found: Actual) -> int:
    """Set sums right, then record how far the digests were off; the number of buckets
    that were."""
    buckets, sound = with_sums_right(recorded, found)
    db.executemany(
        "UPDATE register SET sum = ?3 WHERE key = ?1 AND state = ?2",
        [(key, state, row_sum(key, state)) for key, state in sound.items()],
    )
    deltas = [
        _DELTA.pack(bucket, bytes(x ^ y for x, y in zip(was, now)))
        for bucket, (was, now) in enumerate(zip(recorded, buckets))
        if was != now
    ]
    if deltas:
        db.execute("INSERT INTO digest_delta(delta) VALUES(?)", (b"".join(deltas),))
    return len(deltas)
