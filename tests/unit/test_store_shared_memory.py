"""Files that processes share as memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fusefs.namespace.lock import WriteLock
from fusefs.nodelink import fence
from fusefs.store import shared
from fusefs.vfs.unfinished import Unfinished

SIZE = 1 << 20


def allocated(path: Path) -> int:
    return os.stat(path).st_blocks * 512


def test_every_block_is_there_before_it_is_written(tmp_path: Path) -> None:
    """A hole that cannot be filled is SIGBUS."""
    shared.map_file(tmp_path / "new", SIZE)
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", SIZE)
    shared.map_file(tmp_path / "sparse", SIZE)
    fence.map_file(tmp_path / "fence")
    Unfinished(tmp_path / "unfinished", 1)
    WriteLock(tmp_path / "lock").close()
    for path in tmp_path.iterdir():
        assert allocated(path) >= path.stat().st_size > 0, path


def test_what_is_there_stays(tmp_path: Path) -> None:
    first = shared.map_file(tmp_path / "file", SIZE)
    first[SIZE - 1] = 7
    assert shared.map_file(tmp_path / "file", SIZE // 2)[: SIZE // 2] == bytes(
        SIZE // 2
    )
    assert shared.map_file(tmp_path / "file", SIZE)[SIZE - 1] == 7


def test_a_full_disk_leaves_memory_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full)
    memory, problem = shared.map_file_or_own(tmp_path / "file", SIZE)
    assert problem is not None and problem.errno == errno.ENOSPC
    memory[SIZE - 1] = 1
    assert fence.map_file(tmp_path / "fence") is None
    fence.Gate(None).tell()
    Unfinished(tmp_path / "unfinished", 1)
