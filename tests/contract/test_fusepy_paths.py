"""Paths of the fusepy binding: what is remembered, and libfuse's hidden files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from fusefs.bindings import fusepy_paths
from fusefs.bindings.fusepy_paths import ROOT, Orphans, Pages, Paths
from fusefs.errors import NotFound, Stale
from fusefs.model.ids import Ino
from fusefs.vfs.types import Attr, Caller

HIDDEN = b".fuse_hidden0000000100000001"


class Names:
    """A tree as a dictionary; notes what it is asked."""

    def __init__(self) -> None:
        self.tree: dict[tuple[int, bytes], int] = {}
        self.lookups: list[tuple[int, bytes]] = []
        self.unlinked: list[tuple[int, bytes]] = []

    def lookup(self, parent: Ino, name: bytes) -> Attr:
        self.lookups.append((parent, name))
        if (parent, name) not in self.tree:
            raise NotFound(repr(name))
        return self.getattr(Ino(self.tree[parent, name]))

    def getattr(self, ino: Ino) -> Attr:
        return Attr(ino, 0o100644, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 7)

    def unlink(self, parent: Ino, name: bytes, caller: Caller) -> None:
        self.unlinked.append((parent, name))
        del self.tree[parent, name]


@pytest.fixture
def names() -> Names:
    found = Names()
    found.tree = {(1, b"a"): 2, (2, b"b"): 3, (3, b"file"): 4, (1, b"file"): 5}
    return found


@pytest.fixture
def orphans(names: Names) -> Orphans:
    return Orphans(names)


@pytest.fixture
def paths(names: Names, orphans: Orphans) -> Paths:
    return Paths(names, orphans)


def test_directories_are_remembered_and_last_names_are_not(
    names: Names, paths: Paths
) -> None:
    assert paths.ino(b"/a/b/file") == 4
    names.lookups.clear()
    assert paths.ino(b"/a/b/file") == 4
    assert names.lookups == [(3, b"file")]


def test_forget_walks_again(names: Names, paths: Paths) -> None:
    paths.ino(b"/a/b/file")
    names.tree = {(1, b"a"): 9, (9, b"b"): 10, (10, b"file"): 11}
    paths.forget()
    assert paths.ino(b"/a/b/file") == 11


def test_walk_that_began_before_a_change_leaves_nothing_behind(
    names: Names, paths: Paths
) -> None:
    plain = names.lookup

    def changed_meanwhile(parent: Ino, name: bytes) -> Attr:
        found = plain(parent, name)
        if name == b"b":
            names.tree[2, b"b"] = 30
            names.tree[30, b"file"] = 31
            paths.forget()
        return found

    names.lookup = changed_meanwhile  # type: ignore[method-assign]
    paths.ino(b"/a/b/file")
    names.lookup = plain  # type: ignore[method-assign]
    assert paths.ino(b"/a/b/file") == 31


def test_hidden_name_leads_to_the_file_and_to_nothing_after_release(
    names: Names, paths: Paths, orphans: Orphans
) -> None:
    orphans.hide(ROOT, b"file", HIDDEN, Caller())
    orphans.settle()
    assert names.unlinked == [(1, b"file")]
    assert paths.attr(b"/" + HIDDEN).ino == 5
    assert orphans.release(ROOT, HIDDEN)
    with pytest.raises(Stale):
        paths.attr(b"/" + HIDDEN)


def test_name_that_was_never_hidden_is_not_found(paths: Paths) -> None:
    with pytest.raises(NotFound):
        paths.attr(b"/" + HIDDEN)


def test_removed_file_shows_one_link_more_which_libfuse_takes_off(
    paths: Paths, orphans: Orphans
) -> None:
    orphans.hide(ROOT, b"file", HIDDEN, Caller())
    assert paths.attr(b"/" + HIDDEN).nlink == 2


def test_rename_over_takes_the_place_of_the_unlink(
    names: Names, orphans: Orphans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusepy_paths, "SETTLE_S", 60)
    orphans.hide(ROOT, b"file", HIDDEN, Caller())
    orphans.replaced(ROOT, b"file")
    orphans.settle()
    assert names.unlinked == []


def test_other_rename_lets_the_unlink_happen_first(
    names: Names, orphans: Orphans
) -> None:
    orphans.hide(ROOT, b"file", HIDDEN, Caller())
    orphans.replaced(ROOT, b"other")
    assert names.unlinked == [(1, b"file")]


def test_unlink_happens_by_itself(names: Names, orphans: Orphans) -> None:
    orphans.hide(ROOT, b"file", HIDDEN, Caller())
    deadline = time.monotonic() + 5
    while not names.unlinked and time.monotonic() < deadline:
        time.sleep(0.001)
    assert names.unlinked == [(1, b"file")]


class Slow(Names):
    """Its unlinks wait until they may."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_end = threading.Event(), threading.Event()

    def unlink(self, parent: Ino, name: bytes, caller: Caller) -> None:
        self.began.set()
        assert self.may_end.wait(10)
        super().unlink(parent, name, caller)


def test_whoever_comes_while_an_unlink_is_done_waits_for_it() -> None:
    slow = Slow()
    slow.tree = {(1, b"file"): 5}
    orphans = Orphans(slow)
    orphans.hide(ROOT, b"file", HIDDEN, Caller())
    assert slow.began.wait(10)  # in the time's own thread
    seen: list[bool] = []

    def come() -> None:
        orphans.settle()
        seen.append((1, b"file") in slow.tree)

    comer = threading.Thread(target=come)
    comer.start()
    comer.join(0.05)
    slow.may_end.set()
    comer.join(10)
    assert seen == [False]


def test_no_unlink_is_lost_when_many_are_hidden_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fusepy_paths, "SETTLE_S", 60)
    names = Names()
    names.tree = {(1, b"f%d" % n): n for n in range(2, 10)}
    orphans = Orphans(names)
    together = threading.Barrier(8)
    plain = names.lookup

    def all_at_once(parent: Ino, name: bytes) -> Attr:
        together.wait(10)
        return plain(parent, name)

    names.lookup = all_at_once  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:
        for n in range(2, 10):
            pool.submit(orphans.hide, ROOT, b"f%d" % n, b"%s%d" % (HIDDEN, n), Caller())
    orphans.settle()
    assert names.tree == {}


def test_time_of_one_unlink_does_not_end_that_of_the_next(
    names: Names, orphans: Orphans, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[tuple[Callable[..., None], tuple[object, ...]]] = []

    class Timer:
        def __init__(
            self,
            _after_s: float,
            call: Callable[..., None],
            arguments: tuple[object, ...] = (),
        ) -> None:
            timers.append((call, arguments))

        def start(self) -> None: ...

    monkeypatch.setattr(threading, "Timer", Timer)
    orphans.hide(ROOT, b"file", HIDDEN, Caller())
    orphans.hide(ROOT, b"a", HIDDEN + b"1", Caller())
    assert names.unlinked == [(1, b"file")]
    (first, of_first), (second, of_second) = timers
    first(*of_first)
    assert names.unlinked == [(1, b"file")]
    second(*of_second)
    assert names.unlinked == [(1, b"file"), (1, b"a")]


def test_pages_are_kept_only_while_nothing_changed() -> None:
    pages = Pages()
    attr = Names().getattr(Ino(4))
    assert not pages.current("/f", attr)
    assert pages.current("/f", attr)
    for changed in (
        attr._replace(version=8),
        attr._replace(ctime_ns=2),
        attr._replace(size=1),
        attr._replace(ino=Ino(5)),
    ):
        assert not pages.current("/f", changed)
        assert not pages.current("/f", attr)


def test_name_that_a_peer_took_makes_the_kernel_look_again_once(
    names: Names, paths: Paths
) -> None:
    assert paths.ino(b"/file") == 5
    del names.tree[1, b"file"]
    with pytest.raises(Stale):
        paths.attr(b"/file")
    with pytest.raises(NotFound):
        paths.attr(b"/file")


def test_name_that_the_kernel_itself_removed_is_absent(
    names: Names, paths: Paths
) -> None:
    assert paths.ino(b"/file") == 5
    del names.tree[1, b"file"]
    paths.taken(ROOT, b"file")
    with pytest.raises(NotFound):
        paths.attr(b"/file")
