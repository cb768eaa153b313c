"""Long runs: python -m tests.sim --seeds N --nodes M --ops K

A failing seed prints one line per event, then what does not hold; the same seed
with the same sizes repeats the run exactly.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from tests.sim.many import Totals, run_many
from tests.sim.scenario import Outcome, Plan


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--nodes", type=int, default=0, help="0: 3 to 8, by seed")
    parser.add_argument("--ops", type=int, default=0, help="0: 10 to 21, by seed")
    parser.add_argument("--processes", type=int, default=0, help="0: all cores")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long")
    parser.add_argument("--verbose", action="store_true", help="print all events")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    totals = Totals()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    plans = [Plan(seed, arguments.nodes, arguments.ops) for seed in seeds]
    for outcome in run_many(plans, arguments.processes, arguments.seconds):
        totals.add(outcome)
        if outcome.problems or arguments.verbose:
            show(outcome)
    print(f"{totals.summary()}, {time.monotonic() - began:.1f} s")
    return 1 if totals.failed else 0


def show(outcome: Outcome) -> None:
    plan = outcome.plan
    print(f"seed {plan.seed} ({outcome.nodes} nodes):")
    for line in outcome.events:
        print(f"  {line}")
    for line in outcome.problems:
        print(f"  PROBLEM {line}")
    print(
        f"  again: python -m tests.sim --seeds 1 --first {plan.seed}"
        f" --nodes {plan.nodes} --ops {plan.ops}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
