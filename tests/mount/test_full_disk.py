"""A store's disk without a free block: what there is goes on, and room is enough."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lib import disks
from tests.lib.cluster import (
    ROOT,
    Cluster,
    Node,
    dfs,
    errno_of,
    holds,
    wait_until,
)

pytestmark = [pytest.mark.mount, pytest.mark.timeout(180)]
SIDE_FILES = [(name, kind) for name in ("meta", "small") for kind in ("wal", "shm")]
CONTENT = bytes(range(256)) * 4000


def _disk_for(kind: str, node: Node) -> list[str]:
    """Words for mount(8)."""
    if kind == "tmpfs":
        return ["-t", "tmpfs", "-o", "size=64M", "none"]
    return disks.ext4_on(node.store.with_suffix(".img"), 96 << 20)


@pytest.fixture
def small_disk(fresh: Cluster, request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node with its store on a disk of its own."""
    node = fresh.add()
    node.store.mkdir()
    options = _disk_for(getattr(request, "param", "tmpfs"), node)
    with disks.mounted(node.store, options):
        if (node.store / "lost+found").exists():
            (node.store / "lost+found").rmdir()
        try:
            node.mount("--min-free=1M")
            yield node
            node.stop()
            node.fsck()
        finally:
            node.destroy()
            fresh.nodes.remove(node)


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


@contextmanager
def filled_once(node: Node, name: str = "filler") -> Iterator[None]:
    """Not a byte is left, and who filled it has given up."""
    path = node.store / name
    with path.open("wb", buffering=0) as filler:
        size = 1 << 20
        while size:
            try:
                filler.write(bytes(size))
            except OSError:
                size //= 2
        yield
    path.unlink()


def _populate(top: Path) -> None:
    for number in range(60):
        (top / f"file{number}").write_bytes(CONTENT[: 20 * number])
        (top / "directory" / f"{number}").mkdir(parents=True)
    for number in range(4):
        (top / f"large{number}").write_bytes(CONTENT * 2)


def _remove_in_every_way(top: Path) -> None:
    (top / "file1").unlink()
    (top / "directory" / "1").rmdir()
    os.truncate(top / "file2", 0)
    (top / "file3").open("wb").close()
    (top / "file4").rename(top / "file5")
    (top / "large0").unlink()
    shutil.rmtree(top / "directory")
    for number in range(5, 50):
        (top / f"file{number}").unlink()


def _refused(new: Path) -> int:
    """With what a directory is. Garbage that is collected for it makes room, which the
    other program may take a moment later: then it is made."""
    while not (refused := errno_of(new.mkdir)):
        new.rmdir()
    return refused


def _kill(node: Node) -> None:
    """Worker and node; returns when others serve."""
    now = node.processes()
    assert now is not None
    for pid in (now.worker, now.node):
        os.kill(pid, signal.SIGKILL)

    def served() -> bool:
        new = node.processes()
        return (
            new is not None
            and new.worker not in (0, now.worker)
            and new.node not in (0, now.node)
            and new.worker_ready
            and new.node_ready
        )

    wait_until(served, "others run instead")


on_both = pytest.mark.parametrize("small_disk", ["tmpfs", "ext4"], indirect=True)


@on_both
@pytest.mark.parametrize("killed", [False, True])
def test_what_removes_is_done_on_a_full_disk(small_disk: Node, killed: bool) -> None:
    """Also where another program takes every block that is free for a moment."""
    top = small_disk.mnt
    _populate(top)
    assert (small_disk.store / "reserve").stat().st_size > 0
    with filled(small_disk):
        if killed:
            _kill(small_disk)
        _remove_in_every_way(top)
        assert _refused(top / "new") == errno.ENOSPC
    kept = {"file0", "file2", "file3", "large1", "large2", "large3"}
    assert {*os.listdir(top)} == kept | {f"file{n}" for n in range(50, 60)}


@on_both
def test_a_file_is_cut_within_a_chunk_on_a_full_disk(small_disk: Node) -> None:
    top = small_disk.mnt
    _populate(top)
    with filled_once(small_disk):
        os.truncate(top / "file59", 100)
        os.truncate(top / "large1", 1_000_100)
    assert (top / "file59").read_bytes() == CONTENT[:100]
    assert (top / "large1").read_bytes() == CONTENT[:1_000_100]


def test_a_full_disk_is_mounted_and_what_removes_is_done(small_disk: Node) -> None:
    top = small_disk.mnt
    _populate(top)
    small_disk.umount()
    with filled_once(small_disk):
        small_disk.mount("--min-free=1M")
        _remove_in_every_way(top)
        os.truncate(top / "file59", 100)
        small_disk.umount()
    small_disk.mount("--min-free=1M")
    assert len(os.listdir(top)) == 16
    wait_until((small_disk.store / "reserve").exists, "there is a reserve again")


@on_both
def test_a_store_on_a_full_disk_is_checked(small_disk: Node) -> None:
    _populate(small_disk.mnt)
    small_disk.umount()
    command = ["fsck", "--store", str(small_disk.store)]
    with filled_once(small_disk):
        assert dfs(*command).stdout.count(": clean, ") == 1
        with filled_once(small_disk, "more"):  # also what was reserved
            done = dfs(*command, check=False)
    assert (done.returncode, done.stdout) == (8, "")
    assert "the store's disk is full" in done.stderr
    small_disk.mount("--min-free=1M")


def test_what_a_peer_removes_goes_from_a_full_disk(
    small_disk: Node, fresh: Cluster
) -> None:
    top = small_disk.mnt
    _populate(top)
    other = fresh.add().mount(token=small_disk.token())
    fresh.wait_connected()
    fresh.wait_equal()
    with filled(small_disk):
        _remove_in_every_way(other.mnt)
        wait_until(lambda: len(os.listdir(top)) == 16, "it is gone here, too")
        assert small_disk.name in other.connected()
    other.stop()


def test_a_quota_that_is_used_up_is_told_as_a_full_disk(
    fresh: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SQLite says "disk I/O error" of it."""
    shim, flag = tmp_path / "quota.so", tmp_path / "used-up"
    source = ROOT / "tests/lib/quota.c"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True
    )
    node, other = fresh.add(), fresh.add()
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(shim))
        patch.setenv("QUOTA_OF", str(node.store))
        patch.setenv("QUOTA_USED_UP", str(flag))
        node.mount()
    top = node.mnt
    _populate(top)
    other.mount(token=node.token())
    fresh.wait_connected()
    flag.touch()

    def make_many() -> None:
        for number in range(10_000):
            (top / f"new{number}").mkdir()

    assert errno_of(make_many) == errno.ENOSPC
    refused = errno_of(lambda: (top / "file0").write_bytes(CONTENT))
    assert refused in (errno.ENOSPC, errno.EDQUOT)
    assert (top / "file59").read_bytes() == CONTENT[: 20 * 59]
    (other.mnt / "from-there").write_bytes(b"1")
    wait_until(lambda: "its disk is full" in other.logs(), "it found no room")
    now = node.processes()
    assert now is not None and (now.worker_starts, now.node_starts) == (1, 1)
    flag.unlink()
    wait_until((top / "from-there").exists, "what came meanwhile is applied")
    (top / "again").write_bytes(CONTENT)
    wait_until(lambda: holds(other.mnt / "again", CONTENT), "it is sent, too")
    assert "I/O error" not in node.logs()
    node.stop()
    other.stop()
    node.fsck()


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
