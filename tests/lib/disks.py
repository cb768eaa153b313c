"""Disks of a test's own: full soon, or failing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small(disk: Path, size: str) -> Iterator[Path]:
    """In memory, mounted on this new directory. Skips where that may not be."""
    disk.mkdir()
    with mounted(disk, ["-t", "tmpfs", "-o", f"size={size}", "none"]):
        yield disk


def ext4_on(image: Path, size_bytes: int) -> list[str]:
    """Makes one in this new file; what mount(8) is told of it. Skips where it cannot be
    made."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    made = subprocess.run(["mkfs.ext4", "-q", "-m0", "-b4096", str(image)], check=False)
    if made.returncode:
        pytest.skip("no mkfs.ext4 here")
    return ["-o", "loop", str(image)]


@contextmanager
def mounted(disk: Path, words: list[str]) -> Iterator[Path]:
    """On this directory. Skips where that may not be."""
    if subprocess.run(["mount", *words, str(disk)], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def stop_writes(disk: Path) -> None:
    """What ext4 does to itself after an error (mount option abort, ext4(5)); what was
    written before is on it, and nobody else's disk is waited for."""
    subprocess.run(["sync", "-f", str(disk)], check=True)
    subprocess.run(["mount", "-o", "remount,abort", str(disk)], check=True)
