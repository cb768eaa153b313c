"""Memory that was freed does not stay with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fusefs import memory

PROGRAM = """
from fusefs import memory
memory.use_one_arena()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])
pages = [bytearray(4096) for _ in range(20_000)]
full = resident()
del pages[:-1]
pages += [bytearray(4096)]  # the end of the heap is in use
kept = resident()
memory.give_back()
print(full, kept, resident())
"""


@pytest.mark.skipif(not hasattr(memory._libc, "malloc_trim"), reason="not glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    out = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True)
    full, kept, left = map(int, out.split())
    assert kept > full // 2, "the C library gave it back by itself"
    assert left < full // 4


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_libc", object())
    memory.use_one_arena()
    memory.give_back()
