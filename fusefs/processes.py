"""What the kernel says of a process. Source: proc(5), /proc/PID/stat."""

from __future__ import annotations

from pathlib import Path

ZOMBIE = b"Z"


def status(pid: int) -> list[bytes]:
    """Its state, its parent's pid, and more; nothing of one that is gone."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    return line.rpartition(b")")[2].split()
