"""What the disk of a store failed at last, for `dfs status`: programs are told an errno
only, and the log is often on the same disk.

Of this process, by the store's directory. Called from any thread.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import NamedTuple

SHOWN_S = 600.0
"""What is longer ago has been told."""


class _Failed(NamedTuple):
    reason: str
    times: int
    at_s: float


_failed: dict[Path, _Failed] = {}


def note(directory: Path, reason: str) -> None:
    before = _failed.get(directory)
    times = before.times + 1 if before else 1
    _failed[directory] = _Failed(reason, times, time.monotonic())


def report(directory: Path) -> dict[str, object] | None:
    """The last reason, how many failures there were in all, and how long ago that was;
    None where nothing failed lately."""
    failed = _failed.get(directory)
    ago_s = time.monotonic() - failed.at_s if failed else SHOWN_S
    if failed is None or ago_s >= SHOWN_S:
        return None
    return {"reason": failed.reason, "times": failed.times, "ago_s": round(ago_s)}


def is_read_only(directory: Path) -> bool:
    """Whether the disk takes no writes, as ext4 after an error; then neither statvfs(2)
    nor access(2) need to say so (Linux 6.18)."""
    try:
        os.utime(directory)
    except OSError as error:
        return error.errno == errno.EROFS
    return False
