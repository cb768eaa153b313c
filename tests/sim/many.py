"""Many seeds on all cores."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence

from tests.sim.scenario import Outcome, Plan, run_plan


def run_many(
    plans: Sequence[Plan], processes: int = 0, limit_s: float = 0
) -> Iterator[Outcome]:
    """The outcomes as they come; no new ones after `limit_s` (0: no limit)."""
    count = processes or len(os.sched_getaffinity(0))
    deadline = time.monotonic() + limit_s if limit_s else float("inf")
    if count == 1:
        for plan in plans:
            if time.monotonic() > deadline:
                return
            yield run_plan(plan)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(count, logging.disable, (logging.CRITICAL,)) as pool:
        for outcome in pool.imap_unordered(run_plan, plans):
            yield outcome
            if time.monotonic() > deadline:
                return


class Totals:
    """Sums over many runs."""

    def __init__(self) -> None:
        self.seeds = self.failed = self.ops = self.nodes = 0
        self.messages = 0
        self.virtual_s = self.worst = 0.0

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.failed += bool(outcome.problems)
        self.ops += outcome.ops
        self.nodes += outcome.nodes
        self.messages += outcome.messages
        self.virtual_s += outcome.virtual_s
        self.worst = max(self.worst, outcome.messages_per_op)

    def summary(self) -> str:
        per_op = self.messages / max(1, self.ops)
        return (
            f"{self.seeds} seeds, {self.failed} failed, {self.nodes} nodes,"
            f" {self.ops} operations, {self.virtual_s:.0f} s virtual,"
            f" {per_op:.1f} messages per operation (worst seed {self.worst:.1f})"
        )
