"""A daemon that mounts a directory when somebody looks into it (autofs(5))."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusefs.mountpoint import unmounting
from tests.lib.cluster import ROOT, clean_environment

LIMIT_S = 30.0
MISSING_DIRECT = 5
READY, FAIL = 0x9360, 0x9361
"""Requests of ioctl(2), with the token of the packet (linux/auto_fs.h)."""


@contextmanager
def automount(where: str, command: Sequence[str]) -> Iterator[Callable[[], int]]:
    """Runs the command, in the process group that may, each time it is to be mounted;
    gives a function that tells how often that was."""
    if "autofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no autofs")
    said, says = os.pipe()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "tests.lib.autofs", where, str(says), *command],
        env=clean_environment(),
        cwd=ROOT,
        pass_fds=[says],
    )
    os.close(says)
    count = 0

    def mounted() -> int:
        nonlocal count
        os.set_blocking(said, False)
        try:
            count += len(os.read(said, 4096))
        except BlockingIOError:
            pass
        return count

    try:
        assert os.read(said, 1) == b"r"
        yield mounted
    finally:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        os.close(said)
        unmounting.detach(where)


def main(where: str, says: int, command: Sequence[str]) -> None:
    """Until it is killed."""
    os.setpgid(0, 0)
    packets, theirs = os.pipe()
    pipe = f"fd={theirs},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"test", os.fsencode(where), b"autofs", 0, pipe.encode()):
        raise OSError(ctypes.get_errno(), "autofs cannot be mounted")
    root = os.open(where, os.O_RDONLY)
    os.write(says, b"r")
    while True:
        _, kind, token = struct.unpack_from("iiI", os.read(packets, 4096))
        if kind != MISSING_DIRECT:
            continue
        os.write(says, b"m")
        try:
            done = subprocess.run(command, timeout=LIMIT_S, check=False).returncode
        except subprocess.TimeoutExpired:
            done = 1
        fcntl.ioctl(root, FAIL if done else READY, token)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
