"""Both forms of readdir, over directories that change meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusefs.errors import BadHandle
from fusefs.model.ids import ROOT_INO
from fusefs.model.records import S_DIR, S_LNK, S_REG
from fusefs.vfs import listing
from fusefs.vfs.types import Attr, DirEntry
from tests.lib.local import Local, local_vfs

Read = Callable[[int], Iterator[DirEntry]]
Plus = Callable[[int], Iterator[tuple[DirEntry, Attr]]]


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with local_vfs(tmp_path / "s") as made:
        yield made


@pytest.fixture(params=["handle", "stateless"])
def read(local: Local, request: pytest.FixtureRequest) -> Iterator[Read]:
    """Reads the root from a cookie on."""
    if request.param == "stateless":
        yield lambda cookie: local.vfs.readdir_ino(ROOT_INO, cookie)
        return
    handle = local.vfs.opendir(ROOT_INO)
    yield lambda cookie: local.vfs.readdir(handle, cookie)
    local.vfs.releasedir(handle)


def fill(local: Local, count: int) -> set[bytes]:
    names = {b"f%04d" % i for i in range(count)}
    for name in names:
        local.vfs.mknod(ROOT_INO, name, 0o100644, 0, local.caller)
    return names


def names_of(entries: Iterator[DirEntry]) -> list[bytes]:
    return [e.name for e in entries]


def test_empty_directory_has_the_dots(local: Local, read: Read) -> None:
    assert names_of(read(0)) == [b".", b".."]


def test_types_and_inodes(local: Local, read: Read) -> None:
    local.mkdir("/d")
    local.put("/f")
    local.vfs.symlink(ROOT_INO, b"l", b"t", local.caller)
    kinds = {e.name: e.kind for e in read(0)}
    assert kinds == {b".": S_DIR, b"..": S_DIR, b"d": S_DIR, b"f": S_REG, b"l": S_LNK}
    assert {e.ino for e in read(0) if e.name == b"f"} == {local.walk("/f")}


@pytest.mark.parametrize("step", [1, 7, 100])
def test_reading_in_pieces_gives_each_entry_once(
    local: Local, read: Read, step: int
) -> None:
    names = fill(local, 230)
    cookie, found = 0, []
    while part := list(itertools.islice(read(cookie), step)):
        found += names_of(iter(part))
        cookie = part[-1].cookie
    assert sorted(found) == sorted([*names, b".", b".."])


def test_removing_while_reading_finds_the_rest(local: Local, read: Read) -> None:
    """rm -r: what was listed is removed, then the listing goes on."""
    names = fill(local, 250)
    cookie, found = 0, []
    while part := list(itertools.islice(read(cookie), 20)):
        cookie = part[-1].cookie
        for entry in part:
            if entry.name not in (b".", b".."):
                found.append(entry.name)
                local.vfs.unlink(ROOT_INO, entry.name)
    assert sorted(found) == sorted(names)
    assert names_of(read(0)) == [b".", b".."]


def test_adding_while_reading_repeats_nothing(local: Local, read: Read) -> None:
    names = fill(local, 120)
    found = []
    cookie = 0
    for number in itertools.count():
        part = list(itertools.islice(read(cookie), 10))
        if not part:
            break
        found += names_of(iter(part))
        cookie = part[-1].cookie
        local.put(f"/new{number}")
    assert len(found) == len(set(found))
    assert names <= set(found)


def test_rewinding_sees_what_is_new(local: Local, read: Read) -> None:
    local.put("/a")
    assert b"b" not in names_of(read(0))
    local.put("/b")
    assert b"b" in names_of(read(0))


def test_seeking_back_to_any_cookie(local: Local, read: Read) -> None:
    fill(local, 40)
    entries = list(read(0))
    for i, entry in enumerate(entries):
        assert list(read(entry.cookie)) == entries[i + 1 :]


def test_stateless_cookies_outlive_the_listing(local: Local) -> None:
    fill(local, 50)
    entries = list(local.vfs.readdir_ino(ROOT_INO, 0))
    local.vfs.unlink(ROOT_INO, entries[20].name)
    local.vfs._listings._snapshots._kept.clear()  # as after a restart
    rest = list(local.vfs.readdir_ino(ROOT_INO, entries[20].cookie))
    assert rest == entries[21:]


@pytest.fixture(params=["handle", "stateless"])
def plus(local: Local, request: pytest.FixtureRequest) -> Iterator[Plus]:
    """The same with attributes."""
    if request.param == "stateless":
        yield lambda cookie: local.vfs.readdirplus_ino(ROOT_INO, cookie)
        return
    handle = local.vfs.opendir(ROOT_INO)
    yield lambda cookie: local.vfs.readdirplus(handle, cookie)
    local.vfs.releasedir(handle)


@pytest.mark.parametrize("before", [3, 20])
def test_plus_tells_of_each_name_what_it_shows_when_it_is_told(
    local: Local, plus: Plus, before: int
) -> None:
    """The kernel takes a line with attributes for the answer to a lookup."""
    fill(local, 60)
    reading = plus(0)
    seen = [next(reading) for _ in range(before)]
    moved, replaced, linked, in_use, gone = [
        name
        for name in (b"f%04d" % i for i in range(60))
        if name not in {line.name for line, _ in seen}
    ][:5]
    local.vfs.link(local.walk("/" + linked.decode()), ROOT_INO, b"other")
    handle = local.open("/" + in_use.decode())
    local.vfs.rename(ROOT_INO, moved, ROOT_INO, b"moved")
    local.put("/new", b"new")
    local.vfs.rename(ROOT_INO, b"new", ROOT_INO, replaced)
    for name in (linked, in_use, gone):
        local.vfs.unlink(ROOT_INO, name)
    left = list(reading)
    left += list(plus(seen[-1][0].cookie))
    for line, attr in left:
        entry = local.namespace.entry(ROOT_INO, line.name)
        assert entry is not None
        assert entry.ino == line.ino == attr.ino
        assert attr.nlink
    told = {line.name for line, _ in left}
    assert replaced in told
    assert not told & {moved, linked, in_use, gone}
    local.close(handle)


def test_plus_brings_attributes(local: Local) -> None:
    local.put("/a", b"12345")
    handle = local.vfs.opendir(ROOT_INO)
    for pairs in (
        list(local.vfs.readdirplus(handle, 0)),
        list(local.vfs.readdirplus_ino(ROOT_INO, 0)),
    ):
        assert [e.name for e, _ in pairs] == [b".", b"..", b"a"]
        assert all(e.ino == attr.ino for e, attr in pairs)
        assert pairs[2][1] == local.stat("/a")
    local.vfs.releasedir(handle)
    with pytest.raises(BadHandle):
        list(local.vfs.readdir(handle, 0))


def test_large_directories_are_read_by_pages(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE", 50)
    monkeypatch.setattr(listing, "FIRST_PAGE", 10)
    monkeypatch.setattr(listing, "ATTRS_WITH_LISTING", 100)
    names = fill(local, 260)
    handle = local.vfs.opendir(ROOT_INO)
    first = local.vfs.readdir(handle, 0)
    for _ in range(4):
        next(first)
    assert len(local.vfs._listings._open[handle].entries) == 10
    assert names_of(local.vfs.readdir(handle, 0))[2:] == sorted(names)
    local.vfs.releasedir(handle)
    assert set(names_of(local.vfs.readdir_ino(ROOT_INO, 2))) == names
