"""Whether registers are as they were written, and what points at them does.

Looks at the rows themselves: `Registers` hands out no damaged one. Used by fsck.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterator
from typing import NamedTuple

import msgspec

from fusefs.model.ids import NodeId, Seq
from fusefs.model.records import check_value, valid_key
from fusefs.model.register import Register, decode_register, encode_register
from fusefs.namespace.registers import (
    actual,
    correct,
    read_buckets,
    row_sum,
    with_sums_right,
)

_ROWS = "SELECT key, node, seq, CAST(state AS BLOB), sum FROM register"
_Extra = set[tuple[NodeId, Seq, bytes]]


class Checked(NamedTuple):
    """What looking at every register showed."""

    problems: list[str]
    readable: bool
    """Each is as it was written and decodes: a tree can be derived from them."""


def check_registers(db: sqlite3.Connection) -> Checked:
    """Registers that are damaged, not canonical, or indexed wrongly; the digests."""
    problems: list[str] = []
    damaged: set[bytes] = set()
    extra: _Extra = set()
    recorded = read_buckets(db)
    buckets, sound = with_sums_right(recorded, actual(db))
    problems += [
        f"register {key!r}: its sum is damaged, itself it is not"
        for key in sorted(sound)
    ]
    for key, node, seq, state, row_check in db.execute(_ROWS):
        register = _read(key, state, row_check, sound)
        if isinstance(register, str):
            problems.append(f"register {key!r}: {register}")
            damaged.add(key)
            continue
        if encode_register(register) != state:
            problems.append(f"register {key!r}: not in canonical form")
        if _top(register) != (node, seq):
            problems.append(f"register {key!r}: indexed under the wrong dot")
        extra.update(_extra(key, register))
    problems += _index_problems(db, extra, damaged)
    if buckets != recorded:
        problems.append(
            "registers: the digests do not match them: some were lost or damaged (a"
            " peer has them), or the digests were"
        )
    return Checked(problems, not (damaged or sound))


def _read(
    key: bytes, state: bytes, row_check: int, sound: Container[bytes]
) -> Register | str:
    """The register, or why nothing can be derived from it. `sound`: keys of those that
    are, whatever their sums say."""
    if not valid_key(key):
        return "not a key"
    try:
        register = decode_register(state)
        for sibling in register.siblings:
            check_value(key, sibling.value)
    except (ValueError, msgspec.DecodeError) as error:
        return f"damaged: {error}"
    if row_sum(key, state) != row_check and key not in sound:
        return "damaged: it is not what its sum is of"
    return register


def _top(register: Register) -> tuple[int, int]:
    return max((s.dot for s in register.siblings), default=(0, 0))


def _extra(key: bytes, register: Register) -> Iterator[tuple[NodeId, Seq, bytes]]:
    """The rows of extra_dot: all dots but the highest."""
    if len(register.siblings) > 1:
        for node, seq in sorted(s.dot for s in register.siblings)[:-1]:
            yield node, seq, key


def _indexed(db: sqlite3.Connection, damaged: set[bytes]) -> _Extra:
    """The rows of extra_dot there are, but those of damaged registers."""
    rows = db.execute("SELECT node, seq, key FROM extra_dot")
    return {row for row in rows if row[2] not in damaged}


def _index_problems(
    db: sqlite3.Connection, want: _Extra, damaged: set[bytes]
) -> Iterator[str]:
    """Nothing is said of damaged registers: which dots they had is not known."""
    have = _indexed(db, damaged)
    for row in sorted(have - want):
        yield f"register index: row {row!r} should not be there"
    for row in sorted(want - have):
        yield f"register index: row {row!r} is missing"


def vector_problems(db: sqlite3.Connection, node: NodeId) -> Iterator[str]:
    """Whether `node`, whose store this is, would use numbers of transactions again."""
    row = db.execute("SELECT seq FROM vector WHERE node = ?", (node,)).fetchone()
    if row is None:
        yield (
            "registers: the vector lacks this node: numbers of its transactions would"
            " be used again; put the store away and join anew"
        )
        return
    if db.execute(
        "SELECT 1 FROM meta WHERE key IN ('lost_after', 'pending')"
    ).fetchone():
        return  # what peers have of this node is on its way back, not numbered yet
    (last,) = db.execute(
        "SELECT max(seq) FROM register WHERE node = ?", (node,)
    ).fetchone()
    if last is not None and last > row[0]:
        yield (
            f"registers: this node wrote transaction {last}, its vector says {row[0]}:"
            " numbers would be used again; put the store away and join anew"
        )


def mend(db: sqlite3.Connection) -> bool:
    """Index the readable registers as their states say, and correct the digests: where
    a register is lost or damaged, they then differ from those of the peers, who bring
    it back. True when none is. `db` is inside a write transaction."""
    recorded, found = read_buckets(db), actual(db)
    _, sound = with_sums_right(recorded, found)
    extra: _Extra = set()
    moved: list[tuple[int, int, bytes]] = []
    damaged: set[bytes] = set()
    for key, node, seq, state, row_check in db.execute(_ROWS):
        register = _read(key, state, row_check, sound)
        if isinstance(register, str):
            damaged.add(key)
            continue
        extra.update(_extra(key, register))
        if _top(register) != (node, seq):
            moved.append((*_top(register), key))
    db.executemany("UPDATE register SET node = ?, seq = ? WHERE key = ?", moved)
    have = _indexed(db, damaged)
    db.executemany(
        "DELETE FROM extra_dot WHERE node = ? AND seq = ? AND key = ?", have - extra
    )
    db.executemany("INSERT INTO extra_dot VALUES(?, ?, ?)", extra - have)
    lost = correct(db, recorded, found)
    return not (damaged or lost)
