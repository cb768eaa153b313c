"""Appends numbered lines to a log: python -m tests.kills.lines FILE

Some are synced. Ends when its standard input does, with the number of the last line.
"""

from __future__ import annotations

import os
import select
import sys

EVERY_S = 0.004


def main(path: str) -> None:
    log = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    number = 0
    while not select.select([0], [], [], EVERY_S)[0]:
        number += 1
        os.write(log, line(number))
        if number % 100 == 0:
            os.fsync(log)
    os.close(log)
    print(number)


def line(number: int) -> bytes:
    """Of various lengths, so that pages and lines do not coincide."""
    return f"{number} {'x' * (number % 97)}\n".encode()


if __name__ == "__main__":
    main(sys.argv[1])
