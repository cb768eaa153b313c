"""The nodes running on this machine, found by their supervisors' command lines.

No registry file that could be stale: a supervisor is started as
`python -m fusefs.supervisor STORE MOUNTPOINT`.
"""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import NamedTuple

from fusefs.mountpoint import table
from fusefs.supervisor import state

MODULE = "fusefs.supervisor"
NO_MOUNTPOINT = "-"


class Running(NamedTuple):
    """A supervisor. `mountpoint` is empty for a node without a mount."""

    pid: int
    store: str
    mountpoint: str


def running() -> list[Running]:
    """Every node of any user, as far as /proc shows them."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if MODULE.encode() in words[:4]:
                at = words.index(MODULE.encode())
                rest = [os.fsdecode(w) for w in words[at + 1 : at + 3]]
                if len(rest) == 2:
                    where = "" if rest[1] == NO_MOUNTPOINT else rest[1]
                    found.append(Running(int(process.name), rest[0], where))
    return found


def at_mountpoint(where: str) -> Running | None:
    """The node mounted on this directory, whatever it was called then. Anybody can
    run a process that says so; whose a mount is, the kernel knows."""
    mount, found = table.find(where), running()
    if mount is None or not mount.is_ours:
        return next((n for n in found if n.mountpoint == where), None)
    theirs = [n for n in found if _owner(n.pid) == mount.user]
    named = next((n for n in theirs if n.mountpoint == where), None)
    moved = (n for n in theirs if _connection(n) == mount.connection)
    return named or next(moved, None)


def _connection(node: Running) -> str:
    now = state.read(Path(node.store)) if node.mountpoint else None
    return now.connection if now is not None else ""


def only_one_of(user: int) -> Running | None:
    """The node of this user, if there is exactly one."""
    found = [n for n in running() if _owner(n.pid) == user]
    return found[0] if len(found) == 1 else None


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def without_mount(store: str) -> Running | None:
    """The node that runs on this store, by whatever path, and has no mount."""
    return next((n for n in on_store(store) if not n.mountpoint), None)


def on_store(store: str) -> list[Running]:
    """The node of this store; none, unless it runs."""
    place = os.path.realpath(store)
    return [n for n in running() if os.path.realpath(n.store) == place]


def is_child(pid: int, node: Running) -> bool:
    """Whether the process was started by the node's supervisor, as its files say."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return int(line.rpartition(b")")[2].split()[1]) == node.pid


def end(node: Running) -> None:
    """Asks it to end, with its mount if it has one."""
    try:
        os.kill(node.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass


def wait_gone(pid: int, timeout_s: float) -> bool:
    """Waits for a process that is not our child; True when it ended in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    end_s = time.monotonic() + timeout_s
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(max(0.0, end_s - time.monotonic()) * 1000))
    finally:
        os.close(descriptor)
