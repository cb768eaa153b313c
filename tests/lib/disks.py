"""Disks that are full soon."""

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
    options = ["-t", "tmpfs", "-o", f"size={size}", "none", str(disk)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
