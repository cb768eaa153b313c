"""Going through the small files of a directory whose bytes are elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.model.ids import chunk_id
from fusefs.vfs import VfsOptions, siblings
from tests.lib.pair import Pair, pair_of, random_bytes

FILES = 60


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Nothing travels with its transaction: `b` has to ask for every byte."""
    with pair_of(tmp_path, VfsOptions(body_bytes=0)) as made:
        yield made


def fill(pair: Pair, count: int = FILES, size: int = 4000) -> list[str]:
    """Files of /d, in the order of their names."""
    pair.a.mkdir("/d")
    paths = [f"/d/f{number:03}" for number in range(count)]
    for number, path in enumerate(paths):
        pair.a.put(path, random_bytes(size, number))
    pair.sync()
    return paths


def read(pair: Pair, path: str) -> list[str]:
    """What was asked ahead of it, which is there soon afterwards."""
    peers = pair.b_peers
    peers.prefetched.clear()
    number = int(path[-3:])
    assert pair.b.cat(path) == random_bytes(pair.b.stat(path).size, number)
    for cid in peers.prefetched:
        pair.b.store.put_verified(cid, pair.a.store.get(cid))
    names = {
        chunk_id(random_bytes(4000, number)): f"/d/f{number:03}"
        for number in range(FILES)
    }
    return [names.get(cid, "") for cid in peers.prefetched]


def test_the_second_file_asks_for_those_behind_it_and_each_wait_for_more(
    pair: Pair,
) -> None:
    paths = fill(pair)
    assert read(pair, paths[0]) == []
    assert read(pair, paths[1]) == paths[2:10]
    assert read(pair, paths[5]) == []  # it is here
    assert read(pair, paths[10]) == paths[11:27]


@pytest.mark.parametrize("as_listed", [False, True])
def test_a_directory_is_read_with_few_waits_in_any_order(
    pair: Pair, as_listed: bool
) -> None:
    paths = fill(pair)
    if as_listed:
        directory = pair.b.walk("/d")
        lines = pair.b.vfs.readdir_ino(directory, 0)
        paths = [f"/d/{line.name.decode()}" for line in lines][2:]
        assert paths != sorted(paths)
    for path in paths:
        read(pair, path)
    assert len(pair.b_peers.fetched) <= 6


def test_only_small_files_that_are_not_here_are_asked_for(pair: Pair) -> None:
    paths = fill(pair, 4)
    pair.a.mkdir("/d/directory")
    pair.a.put("/d/empty")
    pair.a.put("/d/large", random_bytes(70_000))
    pair.sync()
    pair.b.store.put(pair.a.cat(paths[2]))
    read(pair, paths[0])
    assert read(pair, paths[1]) == [paths[3]]


def test_a_directory_is_gone_round_once(pair: Pair) -> None:
    paths = fill(pair, 12)
    read(pair, paths[6])
    assert read(pair, paths[8]) == [paths[7], *paths[9:], *paths[:4]]
    for path in paths[4:6]:
        pair.b.store.delete(chunk_id(pair.a.cat(path)))
        assert read(pair, path) == [paths[5]] * (path == paths[4])
    pair.b.store.delete(chunk_id(pair.a.cat(paths[0])))
    assert read(pair, paths[0]) == []


def test_so_many_bytes_are_asked_for_at_a_time(pair: Pair) -> None:
    paths = fill(pair, FILES, 60_000)
    for path in paths[:40]:
        read(pair, path)
        assert len(pair.b_peers.prefetched) <= siblings.MOST_BYTES // 60_000


def test_a_directory_is_forgotten_after_a_while(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = fill(pair)
    now = [0.0]
    monkeypatch.setattr(siblings.time, "monotonic", lambda: now[0])
    read(pair, paths[0])
    now[0] += siblings.FORGET_S + 1
    assert read(pair, paths[30]) == []
    assert read(pair, paths[31])


def test_so_many_directories_are_remembered(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings, "MOST_WALKS", 1)
    paths = fill(pair)
    pair.a.put("/f000", random_bytes(4000, 0) + b"other")
    pair.sync()
    read(pair, paths[0])
    pair.b.cat("/f000")
    assert read(pair, paths[1]) == []


def test_a_file_without_a_name_has_none_beside_it(pair: Pair) -> None:
    paths = fill(pair)
    read(pair, paths[0])
    handle = pair.b.open(paths[1])
    pair.b.vfs.unlink(*pair.b.split(paths[1]))
    pair.b_peers.prefetched.clear()
    assert pair.b.read_all(handle) == random_bytes(4000, 1)
    assert pair.b_peers.prefetched == []
