"""How fast a new node, and one that was away, get level, and in how much memory.

The sizes are small enough for every run. TEST_BIG=1 takes the full ones. The figures
are printed (pytest -s), never asserted: they depend on the machine.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.lib.cluster import Cluster, Node
from tests.lib.memory import memory
from tests.mount.test_absence import operations, tree

pytestmark = [pytest.mark.mount, pytest.mark.timeout(1800)]

FULL = os.environ.get("TEST_BIG", "") == "1"
ENTRIES = 200_000 if FULL else 2_000
OPERATIONS = 10_000 if FULL else 1_000
PER_DIRECTORY = 1_000
LIMIT_S = 600.0


def until_level(a: Node, b: Node) -> None:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if a.digest() == b.digest():
            return
        time.sleep(0.1)
    raise AssertionError("they do not get level")


def test_first_sync_of_many_small_entries(fresh: Cluster) -> None:
    (a,) = fresh.start(1)
    for number in range(ENTRIES):
        directory = a.mnt / str(number // PER_DIRECTORY)
        if not number % PER_DIRECTORY:
            directory.mkdir()
        (directory / str(number)).touch()
    token = a.token()
    began = time.monotonic()
    b = fresh.add().mount(token=token)
    until_level(a, b)
    took_s = time.monotonic() - began
    print(f"\nfirst sync: {ENTRIES} entries in {took_s:.1f} s with the start,", end="")
    print(f" {ENTRIES / took_s:.0f}/s; {memory(a)}; {memory(b)}")
    last = ENTRIES - 1
    assert (b.mnt / str(last // PER_DIRECTORY) / str(last)).exists()


def test_away_for_many_operations(fresh: Cluster) -> None:
    a, b = fresh.start(2)
    operations(a.mnt, 100, seed=1)
    fresh.wait_equal()
    b.umount()
    operations(a.mnt, OPERATIONS, seed=2)
    began = time.monotonic()
    b.mount()
    mounted_s = time.monotonic() - began
    until_level(a, b)
    took_s = time.monotonic() - began
    print(f"\naway for {OPERATIONS} operations: level {took_s:.1f} s after", end="")
    print(f" the start ({mounted_s:.1f} s until mounted); {memory(a)}; {memory(b)}")
    assert tree(b.mnt) == tree(a.mnt)
