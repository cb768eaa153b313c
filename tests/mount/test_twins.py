"""What two machines make alike while they do not hear of each other is there once."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lib.cluster import Cluster, dfs, wait_until

pytestmark = pytest.mark.mount


def put(top: Path, name: str, data: str) -> None:
    """As rsync does."""
    temporary = top / f".{name}.tmp"
    temporary.write_text(data)
    temporary.rename(top / name)


def git_object(top: Path, data: str) -> None:
    """As git does, where the file system has links."""
    temporary = top / "tmp_obj"
    temporary.write_text(data)
    os.link(temporary, top / "object")
    temporary.unlink()


def link(top: Path) -> None:
    """As ln -sfn does."""
    os.symlink("target", top / "new")
    os.replace(top / "new", top / "current")


def test_what_two_nodes_make_alike_is_there_once(fresh: Cluster) -> None:
    a, b = fresh.start(2)
    (a.mnt / "d").mkdir()
    fresh.wait_equal()
    with ExitStack() as stack:
        for node in (a, b):
            now = node.processes()
            assert now is not None
            os.kill(now.node, signal.SIGSTOP)
            stack.callback(os.kill, now.node, signal.SIGCONT)
        for node in (a, b):
            for number in range(20):
                put(node.mnt / "d", f"same{number}", f"data {number}")
            git_object(node.mnt / "d", "blob")
            link(node.mnt / "d")
            put(node.mnt / "d", "other", f"of {node.name}")
    wait_until(
        lambda: len(os.listdir(a.mnt / "d")) == len(os.listdir(b.mnt / "d")) == 24,
        "only what differs is there twice",
    )
    fresh.wait_equal()
    for path in (a.mnt, a.mnt / "d", a.mnt / "d" / "other"):
        line, _ = dfs("conflicts", "list", str(path)).stdout.splitlines()
        assert line.startswith("d/other.conflict-A-")
    for path in (a.mnt / "d" / "same1", a.mnt / "d" / "oth"):
        assert dfs("conflicts", "list", str(path)).stdout == "no conflicts\n"
    assert (b.mnt / "d" / "same7").read_text() == "data 7"
    assert os.readlink(b.mnt / "d" / "current") == "target"
    assert (a.mnt / "d" / "object").stat().st_nlink == 1
