"""Forgetting deletes: which registers go once every member knows them.

The setting `horizon` is written by any member that knows what all have
acknowledged: `upto` is the pointwise minimum of the members' vectors, `after` each
member's own sequence number when it acknowledged. A node drops dead registers with
dots at or below `upto` in the very transaction with which its own vector covers
`after`: by then it has everything a member did before it knew of the deletes, so
nothing can still arrive that needs what is dropped, and nodes with equal vectors
have dropped the same.

Source: causal stability, Baquero, Almeida, Shoker, "Making Operation-based CRDTs
Operation-based" (2014), section 4.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress

import msgspec

from fusefs.errors import Corrupt
from fusefs.model.ids import Ino
from fusefs.model.records import (
    ATTRS,
    CONTENT,
    DIRENT,
    PLACE,
    UNLINKED,
    XATTR,
    Horizon,
    decode_horizon,
    key_ino,
    setting_key,
    unlinked_key,
)
from fusefs.model.vector import Vector, covers, dominates, merged
from fusefs.namespace.registers import Registers

HORIZON = b"horizon"
HORIZON_KEY = setting_key(HORIZON)
_OF_INODE = (ATTRS, CONTENT, PLACE, UNLINKED, XATTR)


def encode_horizon(upto: Vector, after: Vector) -> bytes:
    return msgspec.msgpack.encode(
        Horizon(tuple(sorted(upto.items())), tuple(sorted(after.items())))
    )


def collect(db: sqlite3.Connection, registers: Registers, vector: Vector) -> int:
    """Drop what the horizon allows, if it is new and `vector` has reached it.

    `db` is inside a write transaction. Returns how many registers were dropped.
    """
    latest = registers.load(HORIZON_KEY).latest
    if latest is None or not latest.value:
        return 0
    horizon = decode_horizon(latest.value)
    done, upto = registers.horizon, dict(horizon.upto)
    if dominates(done, upto) or not dominates(vector, dict(horizon.after)):
        return 0
    dropped = 0
    inodes: set[Ino] = set()
    for node, seq in upto.items():
        for (key,) in db.execute(_DOTS, (node, done.get(node, 0), seq)).fetchall():
            kind = key[:1]
            if kind in _OF_INODE:
                inodes.add(key_ino(key))
            if kind in (DIRENT, XATTR):
                with suppress(Corrupt):  # damaged, in a local transaction: it stays
                    dropped += registers.forget_deletes(key, upto)
    for ino in inodes:
        with suppress(Corrupt):
            dropped += _drop_dead_inode(db, registers, ino, upto)
    db.execute(
        "INSERT OR REPLACE INTO meta VALUES('horizon', ?)",
        (msgspec.msgpack.encode(sorted(merged(done, upto).items())),),
    )
    return dropped


_DOTS = (
    "SELECT key FROM register WHERE node = ?1 AND seq > ?2 AND seq <= ?3"
    " UNION SELECT key FROM extra_dot WHERE node = ?1 AND seq > ?2 AND seq <= ?3"
)


def _drop_dead_inode(
    db: sqlite3.Connection, registers: Registers, ino: Ino, upto: Vector
) -> int:
    """An unlinked inode that no rule shows: all its registers go together, and its
    number is never given again (nodes that still hold them would mix both)."""
    if not registers.load(unlinked_key(ino)).live:
        return 0
    if db.execute("SELECT 1 FROM inode WHERE ino = ?", (ino,)).fetchone():
        return 0
    keys: list[bytes] = []
    for kind in _OF_INODE:
        low, high = kind + ino.to_bytes(8, "big"), kind + (ino + 1).to_bytes(8, "big")
        for (key,) in db.execute(
            "SELECT key FROM register WHERE key >= ? AND key < ?", (low, high)
        ).fetchall():
            siblings = registers.load(key).siblings  # none of a damaged one
            if not all(covers(upto, s.dot) for s in siblings):
                return 0
            keys.append(key)
    for key in keys:
        registers.drop(key)
    db.execute("INSERT OR IGNORE INTO retired VALUES(?)", (ino,))
    return len(keys)
