"""Long runs: python -m tests.crash --rounds N [--seed S] [--kind K]

Prints one line a round and what does not hold; exit status 1 when something did not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.rounds import KINDS, Rounds
from tests.lib.cluster import cluster


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    arguments = parser.parse_args()
    kinds = arguments.kind or KINDS
    began_s = time.monotonic()
    bad = 0
    with (
        tempfile.TemporaryDirectory(prefix="dfs-crash-") as base,
        cluster(Path(base)) as made,
    ):
        rounds = Rounds(made.add().mount(), arguments.seed)
        while rounds.done < arguments.rounds:
            if time.monotonic() - began_s > arguments.seconds:
                break
            kind = kinds[rounds.done % len(kinds)]
            problems = rounds.run(kind)
            bad += bool(problems)
            spent_s = time.monotonic() - began_s
            state = "BROKEN" if problems else "holds"
            print(f"{rounds.done} {kind}: {state}, {spent_s:.0f} s", flush=True)
            for problem in problems[:20]:
                print(f"  {problem}", flush=True)
        if bad:
            print(rounds.node.logs())
    print(
        f"{rounds.done} rounds, {rounds.promises} promises, {rounds.torn} files torn, "
        f"{bad} rounds broken, {time.monotonic() - began_s:.0f} s"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
