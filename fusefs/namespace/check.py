"""Rebuild the derived tables, and prove that they agree with the registers.

The registers are readable, all of them (damage.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from fusefs.model.ids import LOST_FOUND_INO, ROOT_INO, Ino
from fusefs.model.records import attrs_key, decode_place, place_key
from fusefs.model.register import EMPTY, decode_register
from fusefs.namespace import totals
from fusefs.namespace.derive import Derivation
from fusefs.namespace.registers import Registers
from fusefs.namespace.schema import DERIVED_TABLES

Snapshot = dict[str, list[tuple[object, ...]]]


def rebuild(db: sqlite3.Connection) -> None:
    """Derive everything anew. `db` is inside a write transaction."""
    for table in DERIVED_TABLES:
        db.execute(f"DELETE FROM {table}")
    registers = Registers(db)
    for key, state in db.execute("SELECT key, state FROM register").fetchall():
        registers.changed[key] = (EMPTY, decode_register(state))
    derivation = Derivation(db, registers)
    derivation.queue_root()
    derivation.run()


def snapshot(db: sqlite3.Connection) -> Snapshot:
    """Every derived row, in a fixed order."""
    return {
        table: sorted(db.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
        for table in DERIVED_TABLES
    }


def derived_differences(db: sqlite3.Connection) -> Iterator[str]:
    """Differences between the derived tables and a rebuild; rolls the rebuild back.

    `db` is inside a write transaction.
    """
    before = snapshot(db)
    db.execute("SAVEPOINT rebuilt")
    try:
        rebuild(db)
        after = snapshot(db)
    finally:
        db.execute("ROLLBACK TO rebuilt")
        db.execute("RELEASE rebuilt")
    for table in DERIVED_TABLES:
        have, want = set(before[table]), set(after[table])
        for row in sorted(have - want, key=repr):
            yield f"{table}: row {row!r} should not be there"
        for row in sorted(want - have, key=repr):
            yield f"{table}: row {row!r} is missing"


def totals_problems(db: sqlite3.Connection) -> Iterator[str]:
    """Whether the totals kept are those of the rows."""
    kept, counted = totals.read(db), totals.counted(db)
    if kept != counted:
        yield f"the totals are {kept}, counted were {counted}"


def tree_problems(db: sqlite3.Connection) -> Iterator[str]:
    """Whether the derived tree is a tree: every directory reached once from root."""
    children: dict[int, list[int]] = {}
    for parent, ino, kind in db.execute("SELECT parent, ino, kind FROM entry"):
        if kind == 4:
            children.setdefault(parent, []).append(ino)
    seen: set[int] = {1}
    stack = [1]
    while stack:
        for child in children.get(stack.pop(), ()):
            if child in seen:
                yield f"directory {child} is reached twice"
                continue
            seen.add(child)
            stack.append(child)
    for (parent,) in db.execute("SELECT DISTINCT parent FROM entry"):
        if parent not in seen and _known(db, parent):
            yield f"directory {parent} has entries but is not reachable"


def _known(db: sqlite3.Connection, ino: int) -> bool:
    """False below a directory whose own place did not arrive yet (partial sync)."""
    registers = Registers(db)
    visited: set[int] = set()
    while ino not in (ROOT_INO, LOST_FOUND_INO) and ino not in visited:
        visited.add(ino)
        place = registers.load(place_key(Ino(ino))).latest
        if place is None or not registers.load(attrs_key(Ino(ino))).siblings:
            return False
        ino = decode_place(place.value).parent
    return True
