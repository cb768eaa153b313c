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

import msgspec

from fusefs import config
from fusefs.mountpoint import table
from fusefs.processes import ZOMBIE, status
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
    named = (n for n in found if n.mountpoint == where and _is_here(n))
    if mount is None or not mount.is_ours:
        return next(named, None)
    theirs = [n for n in found if _owner(n.pid) == mount.user]
    known = _with_connection(mount.connection, where, theirs)
    return known or next((n for n in named if n in theirs), None)


def _with_connection(
    connection: str, where: str, among: list[Running]
) -> Running | None:
    """The node that has it. Its number was perhaps that of another one, which is ending
    still, or starts and has not written over what the run before it left."""
    found = []
    for node in among:
        now = _state(node)
        if now is not None and now.connection == connection:
            likely = now.pid == node.pid, node.mountpoint == where, now.started_s
            found.append((likely, node))
    return max(found)[1] if found else None


def _state(node: Running) -> state.State | None:
    """As its supervisor, or the one before on that store, wrote it last; None without
    a mount."""
    return state.read(_as_seen_by(node)) if node.mountpoint else None


def _as_seen_by(node: Running) -> Path:
    """Its store: in a container, which names its places as it likes, another one than
    what is called so here. By that name where the system does not tell."""
    place = Path(f"/proc/{node.pid}/root") / node.store.lstrip("/")
    return place if os.access(place, os.F_OK) else Path(node.store)


def _is_here(node: Running) -> bool:
    """Whether it sees the same mounts; taken for granted of a process of others."""
    try:
        theirs = os.stat(f"/proc/{node.pid}/ns/mnt")
    except OSError:
        return True
    return os.path.samestat(theirs, os.stat("/proc/self/ns/mnt"))


def only_one_of(user: int) -> Running | None:
    """The node of this user, if there is exactly one."""
    found = [n for n in running() if _owner(n.pid) == user and _is_here(n)]
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
    return [n for n in running() if _is_same(_as_seen_by(n), Path(store))]


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # not made yet, or a place that is not shown
        return os.path.realpath(one) == os.path.realpath(other)


def is_ending(node: Running) -> bool:
    """Whether its mount was here and is not any more: it writes what is left."""
    now = _state(node)
    if now is None or now.pid != node.pid or not _is_here(node):
        return False  # what is there is of the run before: it starts
    if not now.connection:
        return False
    mounts = [m for m in table.of_connection(now.connection) if _may_be_of(node, m)]
    places = {os.fsdecode(mount.where) for mount in mounts} - {node.mountpoint}
    return not mounts or _is_anothers(node, now, places)


def _may_be_of(node: Running, mount: table.Mount) -> bool:
    """Whether it has the name that the node gave to its mount, as far as we can see."""
    try:
        settings = config.load(_as_seen_by(node) / "run" / "config.json")
    except (OSError, msgspec.DecodeError):
        return True
    return mount.source == settings.fsname


def _is_anothers(node: Running, now: state.State, places: set[str]) -> bool:
    """Whether a mount made later, at one of these, got the number of the node's
    connection. Who made it may not have written that down yet."""
    for other in running():
        if other.pid == node.pid:
            continue
        its = _state(other)
        if its is None or its.pid != other.pid or not its.connection:
            if other.mountpoint in places:
                return True
        elif its.connection == now.connection and its.started_s > now.started_s:
            return True
    return False


def remains(store: str, connection: str) -> state.State | None:
    """What the node of this store wrote last, if it had this connection and was killed
    with its worker. The kernel may hold a thread of that for ever, and with it the
    connection (supervisor/child.py, `is_half_dead`)."""
    last = state.read(Path(store))
    if last is None or last.connection != connection or on_store(store):
        return None
    return last if status(last.worker)[:1] in ([], [ZOMBIE]) else None


def is_child(pid: int, node: Running) -> bool:
    """Whether the process was started by the node's supervisor, as its files say."""
    return status(pid)[1:2] == [b"%d" % node.pid]


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
