"""By which rules the derived tables were made, and what to do where those changed.

A program brings the tables up to date for what changes (derive.py), so what a program
with other rules left would stay, until `dfs fsck` takes it for damage. Nearly all of a
tree is as plain under any rules; what is not is derived anew, once.
"""

from __future__ import annotations

import sqlite3

from fusefs.model.register import EMPTY
from fusefs.namespace.derive import Derivation
from fusefs.namespace.registers import Registers

RULES = 2
"""To be raised with a change of what the same registers show. Where that is not among
`_CONCERNED`, or odd, it has to be made so. 2: names of conflict files are not cut
inside a character."""
_CONCERNED = "SELECT DISTINCT key FROM extra_dot"
"""Registers with several siblings. What was removed is left out, unless it came back:
there may be millions, and a mount waits for this."""


def are_old(db: sqlite3.Connection) -> bool:
    """Whether a program with other rules made the tables."""
    row = db.execute("SELECT value FROM meta WHERE key = 'rules'").fetchone()
    return row is None or int(row[0]) < RULES


def note(db: sqlite3.Connection) -> None:
    """The tables are as the rules of this program say."""
    db.execute("INSERT OR REPLACE INTO meta VALUES('rules', ?)", (RULES,))


def follow(db: sqlite3.Connection) -> None:
    """Derive anew what earlier rules may have shown otherwise. `db` is inside a write
    transaction. Raises Corrupt: a register is damaged."""
    registers = Registers(db)
    for (key,) in db.execute(_CONCERNED).fetchall():
        registers.changed[key] = (EMPTY, registers.load(key))
    derivation = Derivation(db, registers)
    derivation.queue_odd()
    derivation.run()
    registers.flush()
    note(db)
