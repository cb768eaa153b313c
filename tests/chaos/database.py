"""Transactions on request, in a process of its own: python -m tests.chaos.database FILE

For each number on its standard input one transaction, answered with the number when
it is committed, else with what SQLite said. A process, because SQLite keeps descriptors
whose locks it could not drop, and then the mount is in use.
"""

from __future__ import annotations

import random
import sqlite3
import sys

ROWS = 5
"""Of each transaction: all of them are there or none."""
FREED = 30
"""Transactions later its data is dropped."""


def main(path: str) -> None:
    chance, db = random.Random(0), None
    for line in sys.stdin:
        try:
            db = db or connect(path, chance.choice(("DELETE", "PERSIST", "TRUNCATE")))
            transact(db, int(line), chance)
            print(line, end="", flush=True)
        except sqlite3.Error as error:
            print(f"{error!r} {error.sqlite_errorname}", flush=True)
            return


def connect(path: str, mode: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, 5, isolation_level=None)
    db.execute(f"PRAGMA journal_mode={mode}")
    db.execute("PRAGMA cache_size=10")  # pages go to the file before the commit
    db.execute("CREATE TABLE IF NOT EXISTS t(tx INTEGER, n INTEGER, b BLOB)")
    return db


def transact(db: sqlite3.Connection, number: int, chance: random.Random) -> None:
    db.execute("BEGIN IMMEDIATE")
    for n in range(ROWS):
        blob = chance.randbytes(chance.randrange(3000))
        db.execute("INSERT INTO t VALUES(?, ?, ?)", (number, n, blob))
    db.execute("UPDATE t SET b = x'00' WHERE tx = ?", (number - FREED,))
    db.execute("COMMIT")


def broken(path: str, committed: set[int]) -> list[str]:
    """What of the promises does not hold in the file."""
    db = sqlite3.connect(path, 30)
    try:
        said = [row[0] for row in db.execute("PRAGMA integrity_check")]
        there = db.execute("SELECT 1 FROM sqlite_master WHERE name = 't'").fetchone()
        query = "SELECT tx, count(*) FROM t GROUP BY tx"
        counts = dict(db.execute(query)) if there else {}
    except sqlite3.Error as error:
        return [repr(error)]
    finally:
        db.close()
    problems = [line for line in said if line != "ok"]
    problems += [f"tx {n}: {c} rows" for n, c in counts.items() if c != ROWS]
    if missing := sorted(committed - counts.keys()):
        problems.append(f"committed transactions are missing: {missing[:9]}")
    return problems


if __name__ == "__main__":
    main(sys.argv[1])
