"""A process with an open sqlite transaction nearly all the time.

    python -m tests.kills.database FILE

Prints the number of each transaction when it is committed. Ends when its standard
input does.
"""

from __future__ import annotations

import random
import select
import sqlite3
import sys
import time

ROWS = 20
"""Of each transaction: all of them are there or none."""


def main(path: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA cache_size=10")  # pages go to the file before the commit
    db.execute("CREATE TABLE IF NOT EXISTS t(tx INTEGER, n INTEGER, b BLOB)")
    chance, number = random.Random(0), 0
    while not select.select([0], [], [], 0)[0]:
        number += 1
        db.execute("BEGIN IMMEDIATE")
        for n in range(ROWS):
            blob = chance.randbytes(chance.randrange(3000))
            db.execute("INSERT INTO t VALUES(?, ?, ?)", (number, n, blob))
            time.sleep(0.002)
        db.execute("UPDATE t SET b = x'00' WHERE tx = ?", (number - 50,))
        db.execute("COMMIT")
        print(number, flush=True)


def broken(path: str, committed: int) -> list[str]:
    """What of the promises does not hold in the file."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
    try:
        said = [row[0] for row in db.execute("PRAGMA integrity_check")]
        counts = dict(db.execute("SELECT tx, count(*) FROM t GROUP BY tx"))
    finally:
        db.close()
    problems = [f"integrity: {line}" for line in said if line != "ok"]
    problems += [f"tx {n}: {c} rows" for n, c in counts.items() if c != ROWS]
    missing = [n for n in range(1, committed + 1) if n not in counts]
    return problems + [f"committed transactions are missing: {missing}"] * bool(missing)


if __name__ == "__main__":
    main(sys.argv[1])
