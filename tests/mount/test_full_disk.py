"""A store's disk without a free block: what there is goes on, and room is enough."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lib.cluster import Cluster, Node, dfs, errno_of

pytestmark = [pytest.mark.mount, pytest.mark.timeout(180)]
SIDE_FILES = [(name, kind) for name in ("meta", "small") for kind in ("wal", "shm")]
CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def small_disk(fresh: Cluster) -> Iterator[Node]:
    """A node with its store on a disk of its own."""
    node = fresh.add()
    node.store.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64M", "none", str(node.store)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        node.mount("--min-free=1M")
        yield node
        node.stop()
        node.fsck()
    finally:
        node.destroy()
        fresh.nodes.remove(node)
        subprocess.run(["umount", "-l", str(node.store)], check=True)


_FILLER = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
size, told = 1 << 16, False
while True:
    try:
        os.write(fd, bytes(size))
    except OSError:
        if size == 4096:
            if not told:
                print("full", flush=True)
            told = True
            time.sleep(0.001)
        size = 4096
"""


@contextmanager
def filled(node: Node) -> Iterator[None]:
    """Not a byte is left, and what becomes free another program takes at once."""
    path = node.store / "filler"
    command = [sys.executable, "-c", _FILLER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as filler:
        assert filler.stdout is not None and filler.stdout.readline() == "full\n"
        yield
        filler.kill()
    path.unlink()


def test_a_full_disk_does_not_take_the_mount_when_it_is_upgraded(
    small_disk: Node,
) -> None:
    """Worker and node have to be started again without room for anything new."""
    file = small_disk.mnt / "file"
    file.write_bytes(CONTENT)
    logs = [small_disk.store / f"{name}.db-{kind}" for name, kind in SIDE_FILES]
    before = [path.stat().st_ino for path in logs]
    with file.open("rb") as held, filled(small_disk):
        for _ in range(2):
            dfs("upgrade", str(small_disk.mnt))
        now = small_disk.processes()
        assert now is not None and (now.worker_starts, now.node_starts) == (3, 3)
        assert [path.stat().st_ino for path in logs] == before
        assert held.read() == CONTENT
        assert os.listdir(small_disk.mnt) == ["file"]
        refused = errno_of(lambda: (small_disk.mnt / "new").write_bytes(CONTENT))
        assert refused == errno.ENOSPC
    (small_disk.mnt / "new").write_bytes(CONTENT)
