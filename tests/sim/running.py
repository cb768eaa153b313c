"""Runs an async test in virtual time, the same way each time for the same seed."""

from __future__ import annotations

import inspect
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
import trio._core._run as trio_run
from trio.testing import MockClock

from fusefs.vfs.background import Background
from fusefs.vfs.coherence import Coherence
from fusefs.vfs.later import Later
from tests.sim.cluster import SimCluster


def simulate(
    body: Callable[[SimCluster], Awaitable[None]], directory: Path, seed: int = 1
) -> None:
    """A cluster for `body`; its nodes are stopped and their stores checked after."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            cluster = SimCluster(directory, nursery, seed)
            await body(cluster)
            await cluster.stop()
            nursery.cancel_scope.cancel()

    with without_threads():
        _run(main, seed)


@contextmanager
def without_threads() -> Iterator[None]:
    """The vfs does at once what it otherwise leaves to threads of its own."""
    before = (
        Background.start,
        Background.stop,
        Coherence.soon,
        Later.submit,
    )
    Background.start = Background.stop = lambda self: None  # type: ignore
    Coherence.soon = lambda self, work: work()  # type: ignore
    Later.submit = lambda self, call, *arguments: call(*arguments)  # type: ignore
    threads = set(threading.enumerate())
    try:
        yield
        assert threads.issuperset(threading.enumerate()), "one was started all the same"
    finally:
        Background.start, Background.stop, Coherence.soon, Later.submit = before  # type: ignore


def _run(main: Callable[[], Awaitable[None]], seed: int) -> None:
    # Trio shuffles the order of tasks; with a seed a failing run can be repeated.
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_run._r = random.Random(seed)
    try:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before


def simulated(
    test: Callable[[SimCluster], Awaitable[None]],
) -> Callable[[Path], None]:
    """Decorator: the async test becomes an ordinary one."""

    def run(tmp_path: Path) -> None:
        simulate(test, tmp_path)

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    run.__module__ = test.__module__
    run.__signature__ = inspect.signature(run)  # type: ignore[attr-defined]
    return run
