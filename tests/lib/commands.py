"""Commands that tests run to their end, from processes that have no file of ours open
where that matters."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

_run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run


def run(*words: Any, **how: Any) -> subprocess.CompletedProcess[str]:
    """As subprocess.run; see `commands_apart`."""
    return _run(*words, **how)


@contextmanager
def commands_apart(most: int = 16) -> Iterator[None]:
    """Commands are started by processes that have none of our files open. A fork of
    ours closes them before it becomes the command: what is written is published then,
    and a close on a mount that nobody serves waits for the next mount; with vfork(2)
    all of us wait for it."""
    global _run
    pool = ProcessPoolExecutor(most, multiprocessing.get_context("spawn"))
    with pool, pytest.MonkeyPatch.context() as patch:
        list(pool.map(time.sleep, [0.1] * most))  # all of them are there now

        def run_there(*words: Any, **how: Any) -> subprocess.CompletedProcess[str]:
            return pool.submit(subprocess.run, *words, **how).result()

        patch.setattr(subprocess, "_USE_VFORK", False)
        _run = run_there
        try:
            yield
        finally:
            _run = subprocess.run
