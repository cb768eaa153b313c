"""One node per store: the lock on STORE/lock, and who holds it."""

from __future__ import annotations

import fcntl
import os
import shlex
import time
from pathlib import Path
from typing import NamedTuple

from fusefs.mountpoint.exits import LOCKED, MOUNT_FAILURE, CommandError

TRIES = 10
PAUSE_S = 0.01
"""Somebody who looks needs some 20 us."""


class Owner(NamedTuple):
    """The process that has a store in use. pid 0: it did not say."""

    pid: int
    mountpoint: str


def acquire(store: Path, mountpoint: str) -> int:
    """The descriptor that holds the lock until its last copy is closed.

    Raises:
        CommandError: another node has the store in use.
    """
    descriptor = os.open(store / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not try_lock(descriptor):
        owner = _read(descriptor)
        os.close(descriptor)
        code = MOUNT_FAILURE if mountpoint else LOCKED
        raise CommandError(in_use(store, owner), code)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n{mountpoint}\n".encode(), 0)
    return descriptor


def try_lock(descriptor: int) -> bool:
    """Whether we have it. More than once: who looks whether it is held (`holder`) holds
    it, too."""
    for _ in range(TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(PAUSE_S)
    return False


def in_use(store: Path, owner: Owner) -> str:
    """The sentence for a user whose store is taken."""
    doing, end = f"mounted on {owner.mountpoint}", "unmount that one first"
    if not owner.mountpoint:
        doing = "run by a node"
        end = f"end that one with: dfs umount {shlex.quote(str(store))}"
    return (
        f"store {store} is in use: {doing} (process {owner.pid}); give another "
        f"store with --store, or {end}"
    )


def holder(store: Path) -> Owner | None:
    """Who has the store in use now; None if nobody."""
    try:
        descriptor = os.open(store / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    finally:
        os.close(descriptor)
    return None


def _read(descriptor: int) -> Owner:
    lines = os.pread(descriptor, 65536, 0).decode(errors="replace").splitlines()
    pid = int(lines[0]) if lines and lines[0].isdigit() else 0
    return Owner(pid, lines[1] if len(lines) > 1 else "")
