"""A process that does a little of everything all the time and notes how long it took.

    python -m tests.kills.probe DIR

Each line on its standard input is answered with the longest any operation took since
the last answer, in milliseconds, and what failed.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path

EVERY_S = 0.005


def main(top: Path) -> None:
    top.mkdir(exist_ok=True)
    old = os.open(top / "old", os.O_CREAT | os.O_RDWR, 0o644)
    longest_s, failed, turn = 0.0, "", 0
    while True:
        if select.select([0], [], [], EVERY_S)[0]:
            if not os.read(0, 100):
                return
            print(json.dumps([longest_s * 1000, failed]), flush=True)
            longest_s, failed = 0.0, ""
        turn += 1
        began_s = time.monotonic()
        try:
            _operate(top, old, turn)
        except OSError as error:
            failed = repr(error)
        longest_s = max(longest_s, time.monotonic() - began_s)


def _operate(top: Path, old: int, turn: int) -> None:
    data = b"%d" % turn
    if turn % 4 == 0:
        os.stat(top)
    elif turn % 4 == 1:
        os.pwrite(old, data, 0)
        assert os.pread(old, len(data), 0) == data
    elif turn % 4 == 2:
        (top / "new").write_bytes(data)
        assert (top / "new").read_bytes() == data
    else:
        os.rename(top / "new", top / "renamed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
