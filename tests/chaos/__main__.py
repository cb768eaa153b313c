"""Long runs: python -m tests.chaos --minutes N [--nodes N] [--seed S] [--keep DIR]

Real nodes in networks of their own, programs on each mount, and at the same time lines
that are cut, processes that are killed, stopped, upgraded, unmounted, a disk that is
full. After each storm everything is healed and compared. Printed are what happened and
what is wrong after it. Exit status 1 when something was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import checks
from tests.chaos.storms import storms

GUESTS = 0.25
"""Of the storms have a member that joins for it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storm", type=float, default=15, help="seconds of each")
    parser.add_argument(
        "--stop", action="store_true", help="wait after a storm with problems"
    )
    parser.add_argument(
        "--keep", type=Path, help="copy stores there after a storm with problems"
    )
    chosen = parser.parse_args()
    began_s, bad = time.monotonic(), 0
    with (
        tempfile.TemporaryDirectory(prefix="dfs-chaos-") as base,
        storms(Path(base), chosen.nodes, chosen.seed) as made,
    ):
        while time.monotonic() - began_s < 60 * chosen.minutes:
            problems = made.run(chosen.storm, GUESTS)
            bad += bool(problems)
            state = "BROKEN" if problems else "holds"
            steps = sum(p.steps for p in made.machines.programs())
            print(f"{made.done}: {state}, {steps} steps so far", flush=True)
            print(f"  {', '.join(made.happened)}", flush=True)
            for problem in problems[:20]:
                print(f"  {problem}", flush=True)
            if problems and chosen.keep:
                keep(Path(base), chosen.keep / f"{chosen.seed}-{made.done}")
            if problems and chosen.stop:
                input("look, then press return: ")
                break
        for machine in made.machines.all:
            print(checks.sizes(machine))
            for program in machine.programs:
                print(f"  {program.label}: {dict(program.errors)}")
        problems = made.end()
        bad += bool(problems)
        for problem in problems:
            print(f"  {problem}")
    print(f"{made.done} storms, {bad} broken, {time.monotonic() - began_s:.0f} s")
    return 1 if bad else 0


def keep(base: Path, where: Path) -> None:
    """A copy of all stores with their logs, as they are: nodes run, so what they write
    meanwhile may be there in part."""
    where.mkdir(parents=True, exist_ok=True)
    for store in sorted([*base.glob("store-*"), base / "aside"]):
        subprocess.run(["cp", "-a", str(store), str(where)], check=False)


if __name__ == "__main__":
    sys.exit(main())
