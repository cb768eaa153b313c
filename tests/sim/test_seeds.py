"""Many seeds; a failing one says how to repeat it, one line per event."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.__main__ import show
from tests.sim.many import Totals, run_many
from tests.sim.scenario import Plan, run_plan

PLANS = [
    *(Plan(seed) for seed in range(40)),
    *(Plan(seed, 0, 60) for seed in range(300, 310)),
    *(Plan(seed, 4, 200) for seed in range(330, 335)),
]
"""Short runs find most, and a longer history finds what it takes several steps to.
Thousands of them: python -m tests.sim --seeds N."""


@pytest.mark.timeout(900)  # a minute on two free cores
def test_everything_holds_for_many_seeds(capfd: pytest.CaptureFixture[str]) -> None:
    totals = Totals()
    for outcome in run_many(PLANS):
        totals.add(outcome)
        if outcome.problems:
            show(outcome)
    with capfd.disabled():
        print(f" {totals.summary()}")
    assert totals.failed == 0


@pytest.mark.parametrize("seed", [9108])
def test_what_a_seed_found_stays_found(seed: int) -> None:
    """9108: two odd entries that pushed each other off a name, for ever."""
    assert run_plan(Plan(seed, 4, 200)).problems == []


def test_a_seed_repeats_exactly(tmp_path: Path) -> None:
    """Also in another process, where strings hash differently."""
    outcome = run_plan(Plan(4), tmp_path)
    words = [sys.executable, "-m", "tests.sim", "--seeds", "1", "--first", "4"]
    again = subprocess.run(
        [*words, "--processes", "1", "--verbose"],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = again.stdout.splitlines()
    assert lines[1 : 1 + len(outcome.events)] == [f"  {e}" for e in outcome.events]
    assert f"{outcome.messages_per_op:.1f} messages" in lines[-1]
