"""Copies of a running store, as a power cut would leave it.

All processes are stopped while it is copied: a copy made file by file from a moving
store is a state that no disk was ever in. What a disk may lose beyond that is what
was written after the last sync, and `tear` takes that away.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.lib.cluster import wait_until

WAL_HEADER = 32
"""With the salts: another header is another generation of the log."""


@contextmanager
def frozen(pids: Iterable[int]) -> Iterator[None]:
    """None of them runs meanwhile. They are stopped one after the other."""
    held = list(pids)
    try:
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
            wait_until(partial(_is_stopped, pid), f"{pid} is stopped")
        yield
    finally:
        for pid in held:
            os.kill(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    try:
        said = [t.read_text() for t in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):  # a thread has just ended
        return False
    return all(one.rpartition(")")[2].split()[0] == "T" for one in said)


def copy(store: Path, to: Path) -> None:
    """The store without what only lives in memory: sockets and shared indexes."""
    shutil.copytree(store, to, symlinks=True, ignore=_volatile)


def _volatile(directory: str, names: list[str]) -> set[str]:
    found = {name for name in names if name.endswith("-shm")}
    for name in set(names) - found:
        mode = os.lstat(os.path.join(directory, name)).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            found.add(name)
    return found


def pretend_other_boot(store: Path) -> None:
    """The machine has been started anew since the store was used."""
    db = sqlite3.connect(store / "meta.db")
    with db:
        db.execute("UPDATE meta SET value = 'another' WHERE key = 'boot_id'")
    db.close()


def tear(earlier: Path, store: Path, chance: random.Random) -> int:
    """Takes from `store` some of what it has more than `earlier`, a copy made when
    all was synced. Returns how many files were changed.

    Leaves it alone when a background sync ran in between: its promises bind, too.
    """
    torn = 0
    logs = [_torn_log(earlier, store, name, chance) for name in DATABASES]
    if None in logs:
        return 0
    for name, data in zip(DATABASES, logs):
        (store / f"{name}-wal").write_bytes(data or b"")
        torn += 1
    for path in (store / "objects").rglob("*"):
        if path.is_file() and not (earlier / path.relative_to(store)).exists():
            torn += _torn_object(path, chance)
    return torn


DATABASES = ("meta.db", "small.db")


def _torn_log(
    earlier: Path, store: Path, name: str, chance: random.Random
) -> bytes | None:
    """A write-ahead log whose end did not reach the disk. None: it was synced since,
    or began anew, which it only does after a sync."""
    old, new = ((at / f"{name}-wal").read_bytes() for at in (earlier, store))
    same_base = (earlier / name).read_bytes() == (store / name).read_bytes()
    if old[:WAL_HEADER] != new[:WAL_HEADER] or not same_base:
        return None
    same = _common(old, new)
    cut = chance.choice((same, chance.randint(same, len(new)), len(new)))
    return new[:cut] + old[cut:]


def _common(one: bytes, other: bytes) -> int:
    """How many first bytes are equal."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _torn_object(path: Path, chance: random.Random) -> int:
    """A file whose name, or size, or bytes did not reach the disk."""
    before = path.stat()
    fate = chance.choice(("kept", "gone", "empty", "zeros", "half"))
    if fate == "kept":
        return 0
    if fate == "gone":
        path.unlink()
        return 1
    data = path.read_bytes()
    left = {"empty": b"", "zeros": bytes(len(data)), "half": data[: len(data) // 2]}
    path.chmod(0o600)
    path.write_bytes(left[fate])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(stat.S_IMODE(before.st_mode))
    return 1
