"""Directories that say how many copies are kept of what is below them."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from tests.lib.cluster import Cluster, dfs, errno_of, status_page, wait_until

pytestmark = pytest.mark.mount

NAME = "user.dfs.replicas"


def kept(path: Path) -> str:
    return os.getxattr(path, NAME).decode()


def here(path: Path) -> bytes:
    """Chunks of it on this node, and all, as 3/5."""
    return os.getxattr(path, "user.dfs.chunks")


def test_what_a_directory_asks_for_is_at_the_other_node(fresh: Cluster) -> None:
    a = fresh.add().mount("--replicas=1")
    b = fresh.add().mount(token=a.token())
    fresh.wait_connected()
    for name in ("kept", "bare"):
        (a.mnt / name).mkdir()
    os.setxattr(a.mnt / "kept", NAME, b"2")
    for bad in (b"0", b"two", b"101"):
        refused = errno_of(lambda bad=bad: os.setxattr(a.mnt / "kept", NAME, bad))
        assert refused == errno.EINVAL
    for name in ("kept", "bare"):
        for number in range(20):
            (a.mnt / name / str(number)).write_bytes(os.urandom(300_000))
    fresh.wait_equal()
    assert kept(b.mnt / "kept" / "0") == "2"
    assert kept(b.mnt / "bare" / "0") == "1"
    assert errno_of(lambda: os.setxattr(b.mnt / "kept/0", NAME, b"2")) == errno.EPERM
    assert os.listxattr(b.mnt / "kept") == []
    shutil.copytree(a.mnt / "kept", a.mnt / "copied")
    assert kept(a.mnt / "copied") == "1"
    files = [b.mnt / "kept" / str(number) for number in range(20)]
    wait_until(lambda: all(here(f) == b"1/1" for f in files), "B has copies")
    (a.mnt / "bare" / "0").rename(a.mnt / "kept" / "moved")
    moved = b.mnt / "kept" / "moved"
    wait_until(lambda: moved.exists() and here(moved) == b"1/1", "B has that, too")
    assert "copies   1 of each chunk, 2 below kept" in status_page(str(b.mnt))
    data = moved.read_bytes()
    a.umount()
    assert all(len(file.read_bytes()) == 300_000 for file in files)
    codes = {errno_of((b.mnt / "bare" / str(n)).read_bytes) for n in range(1, 20)}
    assert errno.EHOSTUNREACH in codes
    os.removexattr(b.mnt / "kept", NAME)
    assert kept(moved) == "1"
    a.mount()
    fresh.wait_equal()
    assert (a.mnt / "kept" / "moved").read_bytes() == data
    assert errno_of(lambda: os.removexattr(a.mnt / "kept", NAME)) == errno.ENODATA
    assert "copies" not in dfs("status", str(a.mnt)).stdout
