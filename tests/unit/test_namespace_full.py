"""A disk that takes no more: an error a program understands, and nothing half done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.errors import NoSpace
from fusefs.model.ids import ROOT_INO, NodeId
from fusefs.model.records import S_DIR
from fusefs.namespace.namespace import Namespace
from tests.lib import disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disks.small(tmp_path / "disk", "8M") as disk:
        yield disk


def make(node: Namespace, name: bytes) -> None:
    with node.transaction() as t:
        ino = t.new_ino(ROOT_INO, name, S_DIR)
        t.create(ROOT_INO, name, ino, 0o040755, 0, 0)


def test_full_disk_is_enospc_and_what_was_there_stays(small_disk: Path) -> None:
    node = Namespace.create(small_disk, NodeId(1))
    made = 0
    with open(small_disk / "fill", "wb", buffering=0) as fill:
        with pytest.raises(OSError, match="No space left"):
            while True:
                fill.write(bytes(65536))
        with pytest.raises(NoSpace):
            for made in range(10_000):
                make(node, b"%05d" % made)
        (small_disk / "fill").unlink()
    make(node, b"again")
    names = [entry.name for entry in node.children(ROOT_INO, limit=20_000)]
    assert names == [b"%05d" % number for number in range(made)] + [b"again"]
    assert node.problems() == []
    node.close()


def test_an_opening_that_finds_no_room_says_so(small_disk: Path) -> None:
    Namespace.create(small_disk, NodeId(1)).close()
    with open(small_disk / "fill", "wb", buffering=0) as fill:
        for size in (65536, 512):
            with pytest.raises(OSError, match="No space left"):
                while True:
                    fill.write(bytes(size))
        with pytest.raises(NoSpace, match="disk is full"):
            Namespace.open(small_disk)
    (small_disk / "fill").unlink()
    Namespace.open(small_disk).close()
