"""Blocks kept for removals: made where there is room, given up once, not for others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.errors import NoSpace
from fusefs.model.ids import ROOT_INO, NodeId
from fusefs.model.records import S_DIR
from fusefs.namespace.namespace import Namespace
from fusefs.relief import Relief
from fusefs.store.reserve import Reserve, give_up_if_full
from fusefs.store.space import Space
from fusefs.store.store import Store
from tests.lib import disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disks.small(tmp_path / "disk", "64M") as disk:
        yield disk


@pytest.fixture
def reserve(small_disk: Path) -> Iterator[Reserve]:
    fd = os.open(small_disk, os.O_RDONLY)
    yield Reserve(small_disk, Space(fd, 1 << 20))
    os.close(fd)


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(disk: Path, leave: int = 0) -> Path:
    path = disk / "fill"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free(disk) - leave)
    return path


def test_reserve_takes_blocks_and_gives_them_back_once(
    reserve: Reserve, small_disk: Path
) -> None:
    before = free(small_disk)
    reserve.make()
    reserve.make()
    assert reserve.is_there()
    assert free(small_disk) == before - reserve.size_bytes == before - (8 << 20)
    assert reserve.give_up()
    assert not reserve.give_up()
    assert free(small_disk) == before


def test_reserve_is_not_made_of_what_others_need(
    reserve: Reserve, small_disk: Path
) -> None:
    path = fill(small_disk, leave=2 * reserve.size_bytes - 4096)
    reserve.make()
    assert not reserve.is_there()
    path.unlink()
    reserve.make()
    assert reserve.is_there()


def test_reserve_that_a_crash_left_short_is_made_whole(
    reserve: Reserve, small_disk: Path
) -> None:
    (small_disk / "reserve").write_bytes(bytes(8192))
    assert not reserve.is_there()
    reserve.make()
    assert reserve.is_there()


def test_what_was_given_up_is_not_for_what_only_takes(
    reserve: Reserve, small_disk: Path
) -> None:
    reserve.make()
    path = fill(small_disk)
    reserve.require()  # as ever: nothing was given up
    reserve.give_up()
    (small_disk / "log").write_bytes(b"of a removal")
    with pytest.raises(NoSpace):
        reserve.require()
    path.unlink()
    reserve.require()


def test_reserve_is_given_up_for_a_start_on_a_full_disk_only(
    reserve: Reserve, small_disk: Path
) -> None:
    reserve.make()
    give_up_if_full(small_disk)
    assert reserve.is_there()
    fill(small_disk)
    give_up_if_full(small_disk)
    assert not reserve.is_there()


def test_removals_without_end_need_no_more_than_the_reserve(small_disk: Path) -> None:
    node = Namespace.create(small_disk, NodeId(1))
    store = Store.open(small_disk, min_free_bytes=1 << 20)
    names = [b"%05d" % number for number in range(1500)]
    with node.transaction() as t:
        for name in names:
            ino = t.new_ino(ROOT_INO, name, S_DIR)
            t.create(ROOT_INO, name, ino, 0o040755, 0, 0)
    store.reserve.make()
    fill(small_disk)
    relief = Relief(node, store)

    def remove(name: bytes) -> None:
        with node.transaction() as t:
            t.rmdir(ROOT_INO, name)

    for name in names:
        relief.removing(lambda name=name: remove(name))  # type: ignore[misc]
    assert node.children(ROOT_INO, limit=10) == []
    assert node.problems() == []
    store.close()
    node.close()


def test_what_cannot_be_removed_says_so(small_disk: Path) -> None:
    """Nor is it tried for ever."""
    node = Namespace.create(small_disk, NodeId(1))
    store = Store.open(small_disk, min_free_bytes=1 << 20)
    store.reserve.make()
    tries: list[int] = []

    def never() -> None:
        tries.append(1)
        raise NoSpace

    with pytest.raises(NoSpace):
        Relief(node, store).removing(never)
    assert len(tries) == 3
    with pytest.raises(NoSpace):
        Relief(node, store).removing(never)
    assert len(tries) == 5
    store.close()
    node.close()
