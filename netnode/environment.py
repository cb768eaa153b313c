"""What a node takes from the world besides network and disk, so that a simulator
can give it another: wall clock, randomness, threads. Monotonic time is trio's."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio

from fusefs.errors import DiskFailed, NoSpace

AFTER_BUG_S = 1.0
PAUSE_S = 0.002
"""Given to others now and then by long work that is offloaded."""
FULL_S = 5.0
"""Until what needs room on a full disk is tried again, or a disk that fails."""

T = TypeVar("T")
log = logging.getLogger(__name__)


class Offload(Protocol):
    """Runs short blocking work without holding up the event loop."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


async def in_thread(work: Callable[[], T], /) -> T:
    return await trio.to_thread.run_sync(work)


def log_bug(where: str) -> None:
    """The task goes on or its connection ends; the node lives."""
    log.exception("a bug in %s", where)


def since_boot_s() -> float:
    """Source: clock_gettime(2), CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Environment:
    """`wall_ms`: milliseconds since the epoch; `rng`: seeded in the simulator;
    `bug`: called while an exception that nobody expected is handled; `passed`:
    monotonic seconds, as `now`, but those of a suspended machine count, too; `pause`:
    called by what is offloaded and takes long."""

    def __init__(
        self,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        rng: random.Random | None = None,
        offload: Offload = in_thread,
        bug: Callable[[str], None] = log_bug,
        passed: Callable[[], float] = since_boot_s,
        pause: Callable[[], None] = lambda: time.sleep(PAUSE_S),
    ) -> None:
        self.wall_ms = wall_ms
        self.rng = rng or random.SystemRandom()
        self.offload = offload
        self.bug = bug
        self.passed = passed
        self.pause = pause

    def now(self) -> float:
        """Monotonic seconds. They stand still while the machine is suspended."""
        return trio.current_time()

    async def for_ever(self, task: Callable[[], Awaitable[None]]) -> None:
        """A background task that goes on after a bug."""
        while True:
            try:
                await task()
            except NoSpace as error:
                log.info("a background task waits: %s", error)
                await trio.sleep(FULL_S)
            except DiskFailed as error:
                log.warning("a background task waits: %s", error)
                await trio.sleep(FULL_S)
            except Exception:
                self.bug("a background task")
                await trio.sleep(AFTER_BUG_S)
