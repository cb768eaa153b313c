"""Taking a mount away: politely, lazily, or by aborting its connection."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import threading
from pathlib import Path

from fusefs.mountpoint import table

CONNECTIONS = Path("/sys/fs/fuse/connections")
MNT_DETACH = 2
"""umount2(2): out of the tree now, gone when the last user is."""
ANSWER_S = 2.0
"""A mount that does not answer a stat in this time counts as dead or stuck."""


def _umount2(where: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(where), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), where)


def unmount(where: str, *, lazy: bool = False) -> None:
    """Unmounts; returns when the kernel took it out of the tree.

    Raises:
        OSError: EBUSY when programs still use it; EINVAL when nothing is mounted;
            EPERM when it is another user's.
    """
    if os.geteuid() == 0:
        _umount2(where, MNT_DETACH if lazy else 0)
        return
    tool = shutil.which("fusermount3") or shutil.which("fusermount")
    if tool is None:
        raise OSError(errno.EPERM, "fusermount3 is not installed", where)
    command = [tool, "-u", *(["-z"] if lazy else []), "--", where]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip() or "fusermount failed"
        code = errno.EBUSY if "busy" in reason else errno.EPERM
        raise OSError(code, reason, where)


def detach(where: str) -> None:
    """Takes the mount out of the tree whatever uses it; never raises."""
    try:
        unmount(where, lazy=True)
    except OSError:
        pass


def abort(connection: str) -> bool:
    """Ends a FUSE connection: every request in flight and to come gets ENOTCONN.

    Returns False where the control file system does not let us.
    """
    control = CONNECTIONS / connection / "abort"
    if not control.exists() and os.geteuid() == 0:
        subprocess.run(
            ["mount", "-t", "fusectl", "none", str(CONNECTIONS)],
            capture_output=True,
            check=False,
        )
    try:
        control.write_text("1")
    except OSError:
        return False
    return True


def is_connected(connection: str) -> bool:
    """Whether the kernel has this connection, as far as it shows: after unmounting,
    another mount of it does, here or in a mount namespace (a container's)."""
    return bool(connection) and (CONNECTIONS / connection).is_dir()


def waiting(connection: str) -> int | None:
    """Requests the kernel waits for on this connection; None when unknown."""
    try:
        return int((CONNECTIONS / connection / "waiting").read_text())
    except (OSError, ValueError):
        return None


def answer(
    where: str, timeout_s: float = ANSWER_S
) -> OSError | os.statvfs_result | None:
    """What a statvfs of the mountpoint says; None if it does not answer in time.

    Not stat, which the kernel answers from its cache after the process behind the
    mount is gone. In a thread of its own, which a stuck mount may hold for ever.
    """
    said: list[OSError | os.statvfs_result] = []

    def ask() -> None:
        try:
            said.append(os.statvfs(where))
        except OSError as error:
            said.append(error)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(timeout_s)
    return said[0] if said else None


def nudge(where: str) -> None:
    """Makes the kernel send one request, and waits for nothing.

    Never from the process behind the mount: a thread that waits for an answer it
    would have to give itself keeps it from ending.
    """
    try:
        threading.Thread(target=_ask_size, args=(where,), daemon=True).start()
    except RuntimeError:  # no thread to be had: another request may do
        pass


def _ask_size(where: str) -> None:
    try:
        os.statvfs(where)
    except OSError:
        pass


def is_dead(where: str) -> bool:
    """True when the process behind the mount is gone (ENOTCONN, ECONNABORTED)."""
    said = answer(where)
    gone = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EIO)
    return isinstance(said, OSError) and said.errno in gone


def users(where: str) -> list[tuple[int, str]]:
    """(pid, name) of processes with a file, directory or mapping on the mount.

    Reads only links of /proc, so that a stuck mount does not hold us.
    """
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _uses(process, where):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            found.append((int(process.name), name))
    return sorted(found)


def _uses(process: Path, where: str) -> bool:
    links = [process / "cwd", process / "root", process / "exe"]
    try:
        links += (process / "fd").iterdir()
    except OSError:
        pass
    for link in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target == where or target.startswith(where + "/"):
            return True
    return False


def is_mounted(where: str) -> bool:
    """Whether a mount of ours is at this directory, even below another one."""
    path = os.fsencode(where)
    mounts = table.parse(table.MOUNTINFO.read_bytes())
    return any(m.is_ours and m.where == path for m in mounts)
