"""What the kernel is told of the changes of peers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO
from fusefs.vfs import publish
from fusefs.vfs.types import Caller, SetAttr
from tests.lib.local import hear, local_vfs
from tests.lib.pair import random_bytes
from tests.lib.watched import Watched, watched_pair

MIB = 1 << 20


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Watched]:
    with watched_pair(tmp_path) as made:
        yield made


def test_peers_changes_invalidate_exactly_what_changed(pair: Watched) -> None:
    ino = pair.a.put("/f", random_bytes(5 * MIB))
    pair.sync()
    told = pair.kernel.take()
    assert ("entry", ROOT_INO, b"f") in told
    assert ("data", ROOT_INO, 0, 0) in told
    pair.b.cat("/f")
    handle = pair.a.open("/f")
    pair.a.vfs.write(handle, 2 * MIB + 5, b"x")
    pair.a.close(handle)
    pair.sync()
    assert pair.kernel.take() == [("data", ino, 2 * MIB, MIB)]
    pair.a.vfs.setattr(ino, SetAttr(mode=0o600), pair.a.caller)
    pair.sync()
    assert pair.kernel.take() == [("attributes", ino)]
    pair.a.vfs.unlink(ROOT_INO, b"f")
    pair.sync()
    assert ("deleted", ROOT_INO, ino, b"f") in pair.kernel.take()


def test_a_name_that_goes_is_no_delete_while_the_inode_lives(pair: Watched) -> None:
    """A delete makes the kernel take a directory that is in use for dead."""
    ino = pair.a.mkdir("/from")
    one = pair.a.put("/one", b"x")
    pair.a.vfs.link(one, ROOT_INO, b"two")
    pair.sync()
    pair.kernel.take()
    pair.a.vfs.rename(ROOT_INO, b"from", ROOT_INO, b"to")
    pair.a.vfs.unlink(ROOT_INO, b"one")
    pair.sync()
    told = pair.kernel.take()
    assert ("entry", ROOT_INO, b"from") in told
    assert ("entry", ROOT_INO, b"one") in told
    assert not any(word[0] == "deleted" for word in told)
    pair.a.vfs.unlink(ROOT_INO, b"two")
    pair.a.vfs.rmdir(ROOT_INO, b"to")
    pair.sync()
    told = pair.kernel.take()
    assert ("deleted", ROOT_INO, one, b"two") in told
    assert ("deleted", ROOT_INO, ino, b"to") in told


def test_without_the_manifest_everything_of_the_file_is_invalidated(
    pair: Watched,
) -> None:
    ino = pair.a.put("/f", random_bytes(3 * MIB))
    pair.sync()
    pair.kernel.take()
    handle = pair.a.open("/f")
    pair.a.vfs.write(handle, 5, b"x")
    pair.a.close(handle)
    pair.a_peers.published.clear()  # the bodies were lost on the way
    pair.sent[pair.a] = 0
    pair.sync()
    assert pair.kernel.take() == [("data", ino, 0, 0)]


def test_pages_are_kept_exactly_while_the_data_is_the_same(pair: Watched) -> None:
    ino = pair.a.put("/f", b"x" * 10_000)
    pair.sync()
    vfs, user = pair.b.vfs, pair.b.caller

    def kept() -> bool:
        opened = vfs.open(ino, os.O_RDONLY, user)
        pair.b.close(opened.handle)
        return opened.keep_cache

    assert [kept(), kept()] == [False, True]
    pair.a.vfs.setattr(ino, SetAttr(mode=0o600, mtime_ns=5), pair.a.caller)
    pair.sync()
    assert kept()
    handle = pair.a.open("/f")
    pair.a.vfs.write(handle, 5, b"new")
    pair.a.close(handle)
    pair.sync()
    assert kept()  # the pages that changed were invalidated
    mine = pair.b.open("/f")
    vfs.write(mine, 0, b"own")
    pair.b.close(mine)
    assert kept()
    hear(vfs, None)
    assert pair.kernel.take()[-1] == ("everything",)
    assert not kept()


def test_a_conflict_copy_changes_with_its_file_in_the_kernel_too(
    pair: Watched,
) -> None:
    """It has its attributes; the kernel of a program that changes them knows only of
    the file itself."""
    ino = pair.a.put("/file", b"first")
    pair.sync()
    for node, data in ((pair.a, b"of a"), (pair.b, b"of b!")):
        handle = node.open("/file")
        node.vfs.write(handle, 0, data, node.caller)
        node.close(handle)
    pair.sync()
    copy = next(e.ino for e in pair.b.listing() if e.ino != ino)
    pair.kernel.take()
    pair.b.vfs.setattr(ino, SetAttr(mode=0o600), pair.b.caller)
    assert pair.b.vfs.getattr(copy).mode & 0o777 == 0o600
    pair.b.vfs._coherence.close()  # what is told later is told by now
    assert ("attributes", copy) in pair.kernel.take()


def test_conflict_names_that_vanish_are_told_later(pair: Watched) -> None:
    """Both write at once; then b's change of the conflict file reaches its kernel."""
    pair.a.put("/f", b"base")
    pair.sync()
    for local, text in ((pair.a, b"from a"), (pair.b, b"from b")):
        handle = local.open("/f")
        local.vfs.write(handle, 0, text)
        local.close(handle)
    pair.sync()
    names = [e.name for e in pair.b.listing()]
    assert len(names) == 2
    contents = sorted(pair.b.cat(f"/{name.decode()}") for name in names)
    assert contents == [b"from a", b"from b"]
    pair.kernel.take()
    pair.b.vfs.unlink(ROOT_INO, b"f")
    pair.b.vfs._coherence.close()
    pair.sync()
    assert [e.name for e in pair.a.listing()] == [e.name for e in pair.b.listing()]


def test_stateless_listing_notices_peers(pair: Watched) -> None:
    def names() -> list[bytes]:
        return [e.name for e in pair.b.vfs.readdir_ino(ROOT_INO, 2)]

    assert names() == []
    pair.a.put("/new")
    pair.sync()
    assert names() == [b"new"]


def test_a_mode_that_came_with_data_shows_although_writes_hide_the_data(
    pair: Watched,
) -> None:
    ino = pair.a.put("/f", b"old")
    pair.sync()
    hiding = pair.b.open("/f")
    pair.b.vfs.write(hiding, 0, b"here")
    theirs = pair.a.open("/f")
    pair.a.vfs.write(theirs, 0, b"there")
    pair.a.vfs.setattr(ino, SetAttr(mode=0o600), pair.a.caller)  # waits for the close
    pair.a.close(theirs)
    pair.kernel.take()
    pair.tell(pair.a, pair.b)
    assert ("attributes", ino) in pair.kernel.take()
    assert pair.b.stat("/f").mode & 0o777 == 0o600
    pair.b.close(hiding)


@pytest.mark.parametrize("closed", ["another", "inherited"])
def test_a_line_that_crosses_a_page_is_not_published_in_halves(
    pair: Watched, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    """The kernel sends it in two pieces; another descriptor is closed in between, or
    the same one by a child of the program."""
    monkeypatch.setattr(publish, "OTHER_HALF_S", 5.0)  # for a busy machine
    append = os.O_WRONLY | os.O_APPEND
    pair.a.put("/log", b"x" * 4090)
    writing, other = pair.a.open("/log", append), pair.a.open("/log", append)
    before = len(pair.a_peers.published)
    program = Caller(uid=1000, gid=1000, pid=42)
    child = Caller(uid=1000, gid=1000, pid=43)
    pair.a.vfs.write(writing, 4090, b"a line", program)
    rest = threading.Timer(
        0.0005, lambda: pair.a.vfs.write(writing, 4096, b" that goes on\n", program)
    )
    rest.start()
    if closed == "another":
        pair.a.vfs.flush(other)
    else:
        pair.a.vfs.flush(writing, 0, child)
    rest.join()
    published = pair.a_peers.published[before:]
    assert len(published) == 1
    assert pair.a.cat("/log").endswith(b"a line that goes on\n")
    pair.sync()
    assert pair.b.cat("/log").endswith(b"a line that goes on\n")
    pair.a.close(writing)
    pair.a.close(other)


@pytest.mark.parametrize(
    ("offset", "size", "cut"),
    [
        (4090, 6, True),
        (1, 8191, True),
        (4090, 7, False),
        (0, 4096, False),
        (8192, 1 << 20, True),
    ],
)
def test_only_what_the_kernel_may_have_cut_is_waited_for(
    pair: Watched, offset: int, size: int, cut: bool
) -> None:
    pair.a.put("/log", b"x" * offset)
    handle = pair.a.open("/log", os.O_WRONLY | os.O_APPEND)
    pair.a.vfs.write(handle, offset, bytes(size))
    assert (pair.a.vfs._files.handle(handle).file.half_written is not None) == cut


def test_a_writer_that_goes_on_and_on_holds_nobody_up(
    pair: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "OTHER_HALF_S", 0.005)
    append = os.O_WRONLY | os.O_APPEND
    pair.a.put("/log", b"")
    writing, other = pair.a.open("/log", append), pair.a.open("/log", append)
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            pair.a.vfs.write(writing, 1, bytes(4095), appends=True)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            pair.a.vfs.flush(other)  # ends
    finally:
        ended.set()
        writer.join()
    pair.a.close(writing)
    pair.a.close(other)


def test_what_found_no_thread_is_told_with_the_next(
    tmp_path: Path, monkeypatch
) -> None:
    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    told: list[int] = []
    with local_vfs(tmp_path / "s") as local:
        soon = local.vfs._coherence.soon
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            soon(lambda: told.append(1))
        soon(lambda: told.append(2))
    assert told == [1, 2]
