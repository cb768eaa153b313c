"""Long runs: python -m tests.kills --rounds N [--seed S] [-o OPTION ...]

cp, tar x, names made and moved, sqlite3 with open transactions and tail -f run on a
real mount while its worker gets SIGKILL, once a round. One line a round: the longest
any operation of a probe took, and what went wrong. Exit status 1 when something did.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.kills.rounds import Rounds
from tests.lib.cluster import cluster


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began_s, bad = time.monotonic(), 0
    with (
        tempfile.TemporaryDirectory(prefix="dfs-kills-") as base,
        cluster(Path(base)) as made,
    ):
        aside = Path(base) / "aside"
        aside.mkdir()
        rounds = Rounds(made.add().mount(), aside, arguments.seed)
        for number in range(1, arguments.rounds + 1):
            problems = rounds.run()
            bad += bool(problems)
            state = "BROKEN" if problems else "holds"
            print(f"{number}: {state}, {rounds.longest_ms[-1]:.0f} ms", flush=True)
            for problem in problems[:10]:
                print(f"  {problem}", flush=True)
        problems = rounds.end()
        bad += bool(problems)
        for problem in problems:
            print(f"  at the end: {problem}")
    spent_s = time.monotonic() - began_s
    longest = rounds.longest_ms or [0.0]
    print(
        f"{len(longest)} kills, {bad} rounds broken, longest operation per kill: "
        f"median {statistics.median(longest):.0f} ms, max {max(longest):.0f} ms; "
        f"{spent_s:.0f} s"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
