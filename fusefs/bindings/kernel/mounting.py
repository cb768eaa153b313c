"""Making and taking away the mount itself: mount(2) as root, fusermount3 otherwise.

Nothing here reads the descriptor it returns; the mountpoint answers once a server
does (loop.Server). A fresh mount asks for INIT first.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fusefs.bindings import words as words_of_o

StrOrBytesPath = str | bytes | os.PathLike[str]

DEVICE: Final = "/dev/fuse"
SUBTYPE: Final = "dfs"

_MS: Final = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128,
    "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21,
    "strictatime": 1 << 24, "lazytime": 1 << 25,
}  # fmt: skip
"""Words of mount(8) with their bit in mount(2) (linux/mount.h)."""
_DEFAULT_OFF: Final = {"dev": "nodev", "suid": "nosuid"}
_NOT_FOR_FUSERMOUNT: Final = words_of_o.UNKNOWN.union(
    (*_DEFAULT_OFF, "default_permissions", "auto_unmount")
)
"""Refused to users, given already, or kept alive to wait for our end."""
_MNT_DETACH: Final = 2
READ_AHEAD_KB: Final = 1024
"""One read-ahead request is as large as a request can be."""


def connection_of(fd: int) -> str:
    """The directory below /sys/fs/fuse/connections; empty where the kernel does not
    say."""
    try:
        about = Path(f"/proc/self/fdinfo/{fd}").read_text()
    except OSError:
        return ""
    found = re.search(r"^fuse_connection:\s*(\d+)$", about, re.MULTILINE)
    return found[1] if found else ""


def mount(
    mountpoint: StrOrBytesPath, *, fsname: str = SUBTYPE, flags: Sequence[str] = ()
) -> int:
    """Mounts and returns the descriptor, close-on-exec.

    Args:
        flags: words of `-o` that the kernel or fusermount know; nodev and nosuid
            unless dev or suid is among them (root only). default_permissions is
            always set; allow_other by default for root, unless it says allow_root.

    Raises:
        OSError: the reason of the kernel or of fusermount3.
    """
    path = os.fsdecode(mountpoint)
    if os.geteuid() == 0:
        return _mount_as_root(path, fsname, flags)
    return _mount_by_fusermount(path, fsname, flags)


def unmount(mountpoint: StrOrBytesPath, *, lazy: bool = False) -> None:
    """Takes the mount away. Raises OSError: EBUSY, EINVAL, EPERM."""
    path = os.fsdecode(mountpoint)
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(path), _MNT_DETACH if lazy else 0):
            raise _last_error(path)
        return
    command = [_fusermount(), "-u", *(["-z"] if lazy else []), "--", path]
    subprocess.run(command, check=True, capture_output=True)


# -- as root -------------------------------------------------------------------------


def _mount_as_root(path: str, fsname: str, flags: Sequence[str]) -> int:
    mode = stat.S_IFDIR | 0o755
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    words = [
        f"fd={device}", f"rootmode={mode:o}", "user_id=0", "group_id=0",
        "default_permissions",
    ]  # fmt: skip
    if "allow_root" not in flags:  # which is what the kernel does without a word
        words.append("allow_other")
    bits = 0
    for word in (*(w for k, w in _DEFAULT_OFF.items() if k not in flags), *flags):
        bits |= _MS.get(word, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    kind = f"fuse.{SUBTYPE}".encode()
    options = ",".join(words).encode()
    if libc.mount(
        os.fsencode(fsname), os.fsencode(path), kind, ctypes.c_ulong(bits), options
    ):
        problem = _last_error(path)
        os.close(device)
        raise problem
    _widen_read_ahead(path)
    return device


def _widen_read_ahead(path: str) -> None:
    """The kernel reads 128 KiB ahead unless its control file says more.

    Finds the device number in mountinfo: a stat would ask the unserved mount.
    """
    try:
        wanted = os.fsencode(os.path.realpath(os.path.dirname(path)))
        wanted = os.path.join(wanted, os.fsencode(os.path.basename(path)))
        for line in reversed(Path("/proc/self/mountinfo").read_bytes().splitlines()):
            fields = line.split(b" ")
            if _unescape(fields[4]) == wanted:
                control = Path(f"/sys/class/bdi/{fields[2].decode()}/read_ahead_kb")
                control.write_text(str(READ_AHEAD_KB))
                return
    except OSError:
        pass  # slower reads, no reason to refuse the mount


def _unescape(field: bytes) -> bytes:
    for code in (b"040", b"011", b"012", b"134"):
        field = field.replace(b"\\" + code, bytes([int(code, 8)]))
    return field


def _last_error(path: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)


# -- as a user -----------------------------------------------------------------------


def _fusermount() -> str:
    tool = shutil.which("fusermount3") or shutil.which("fusermount")
    if tool is None:
        raise FileNotFoundError(2, "fusermount3 is not installed (package fuse3)")
    return tool


def _mount_by_fusermount(path: str, fsname: str, flags: Sequence[str]) -> int:
    """fusermount opens the device, mounts, and sends the descriptor back."""
    name = words_of_o.escaped(fsname)
    words = [f"fsname={name}", f"subtype={SUBTYPE}", "default_permissions"]
    words += [w for w in flags if w not in _NOT_FOR_FUSERMOUNT]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        done = subprocess.run(
            [_fusermount(), "-o", ",".join(words), "--", path],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
            capture_output=True,
            text=True,
            check=False,
        )
        theirs.close()
        _, received, _, _ = socket.recv_fds(ours, 1, 1)
    if done.returncode or not received:
        reason = done.stderr.strip() or "fusermount failed"
        raise PermissionError(1, reason, path)
    os.set_inheritable(received[0], False)
    return received[0]
