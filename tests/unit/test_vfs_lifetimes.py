"""Inodes without a name: unlinked while open, killed meanwhile, named, come back."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.errors import NoSpace, Stale
from fusefs.model.ids import ROOT_INO, Ino
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.transaction import Transaction
from fusefs.vfs import VfsOptions
from fusefs.vfs.types import EARLIEST_NS, LATEST_NS, SetAttr
from fusefs.vfs.unlinked import MOST_PATCHES
from tests.lib.local import Local, local_vfs
from tests.lib.pair import Pair, pair_of


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with pair_of(tmp_path) as made:
        yield made


def end(local: Local) -> None:
    """Of a worker that was killed: what it had in memory is not looked at."""
    local.vfs._background.stop()
    local.store.close()
    local.namespace.close()


# -- a kill ---------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [False, True], ids=["written", "fsynced"])
def test_unlinked_file_has_all_its_bytes_after_a_kill(
    tmp_path: Path, saved: bool
) -> None:
    run = VfsOptions(
        journal=tmp_path / "drafts", unfinished=tmp_path / "marks", writeback_s=1e9
    )
    killed = Local(tmp_path / "s", run)
    handle = killed.create("/f", b"a" * 100)
    killed.vfs.flush(handle)
    ino = killed.walk("/f")
    killed.vfs.unlink(ROOT_INO, b"f")
    killed.vfs.write(handle, 100, b"d" * 1000)
    if saved:
        killed.vfs.fsync(handle)
    with local_vfs(tmp_path / "s", run) as now:
        assert now.vfs.adopt_orphan(ino)
        assert now.vfs.getattr(ino).size == 1100
        now.vfs.adopt_handle(handle, ino)
        assert now.vfs.read(handle, 0, 9999) == b"a" * 100 + b"d" * 1000
        now.vfs.fsync(handle)
        now.vfs.release(handle)
        now.vfs.forget(ino)
        found = now.vfs.statistics()
        assert (found.orphans, found.dirty_files, found.buffer_bytes) == (0, 0, 0)
    end(killed)


def test_unlinked_file_of_another_mount_is_void(tmp_path: Path) -> None:
    paths = {"journal": tmp_path / "drafts", "unfinished": tmp_path / "marks"}
    killed = Local(tmp_path / "s", VfsOptions(**paths))
    handle = killed.create("/f", b"published")
    killed.vfs.flush(handle)
    ino = killed.walk("/f")
    killed.vfs.unlink(ROOT_INO, b"f")
    killed.vfs.write(handle, 0, b"not any more")
    with local_vfs(tmp_path / "s", VfsOptions(**paths, same_mount=False)) as now:
        assert now.vfs.statistics().dirty_files == 0
        with pytest.raises(Stale):
            now.vfs.getattr(ino)
    end(killed)


def test_an_orphan_nobody_ever_asked_for_goes_with_the_kernels_reference(
    tmp_path: Path,
) -> None:
    run = VfsOptions(journal=tmp_path / "drafts", unfinished=tmp_path / "marks")
    killed = Local(tmp_path / "s", run)
    handle = killed.create("/f", b"x")
    killed.vfs.flush(handle)
    ino = killed.walk("/f")
    killed.vfs.unlink(ROOT_INO, b"f")
    killed.vfs.write(handle, 0, b"y")
    with local_vfs(tmp_path / "s", run) as now:
        now.vfs._writer.publish_older(0)
        assert now.vfs.statistics().dirty_files == 1, "its handle may come yet"
        now.vfs.forget(ino)
        now.vfs._writer.publish_older(0)
        assert now.vfs.statistics().dirty_files == 0
    end(killed)


# -- it comes back --------------------------------------------------------------------


def test_a_file_that_comes_back_is_one_where_it_was_open(pair: Pair) -> None:
    """A removes what B has written meanwhile, unseen: the file stays, for all."""
    ino = pair.a.put("/f", b"old")
    pair.sync()
    tail = pair.a.open("/f", os.O_RDONLY)
    pair.a.vfs.unlink(ROOT_INO, b"f")
    theirs = pair.b.open("/f", os.O_WRONLY | os.O_TRUNC)
    pair.b.vfs.write(theirs, 0, b"new data")
    pair.b.close(theirs)
    pair.sync()
    assert pair.a.stat("/f").nlink == 1
    assert pair.a.read_all(tail) == pair.a.cat("/f") == b"new data"
    again = pair.a.open("/f", os.O_WRONLY | os.O_TRUNC)
    pair.a.vfs.write(again, 0, b"from a")
    pair.a.close(again)
    pair.sync()
    assert pair.b.cat("/f") == b"from a"
    pair.a.close(tail)
    assert (pair.a.walk("/f"), pair.a.vfs.statistics().orphans) == (ino, 0)


def test_a_directory_that_comes_back_can_be_changed(pair: Pair) -> None:
    ino = pair.a.mkdir("/d")
    pair.sync()
    pair.a.vfs.rmdir(ROOT_INO, b"d")  # the kernel still knows it: a shell is in it
    pair.b.put("/d/x", b"x")
    pair.sync()
    pair.a.vfs.setattr(ino, SetAttr(mode=0o700), pair.a.caller)
    pair.a.vfs.setxattr(ino, b"user.a", b"b")
    pair.sync()
    assert pair.b.stat("/d").mode & 0o777 == 0o700
    assert pair.b.vfs.getxattr(ino, b"user.a") == b"b"
    assert pair.a.stat("/d").nlink == 2


# -- two at once ----------------------------------------------------------------------


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, name: str, local: Local
) -> list[threading.Thread]:
    """In the middle of this operation of a transaction another thread publishes."""
    inside = getattr(Transaction, name)
    threads: list[threading.Thread] = []

    def with_company(self: Transaction, *words: object, **more: object) -> object:
        done = inside(self, *words, **more)
        thread = threading.Thread(target=lambda: local.vfs._writer.publish_older(0))
        thread.start()
        thread.join(0.2)
        threads.append(thread)
        if name == "unlink":
            raise NoSpace("the disk is full")
        return done

    monkeypatch.setattr(Transaction, name, with_company)
    return threads


def test_what_is_written_while_an_unnamed_file_is_named_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_vfs(tmp_path / "s") as local:
        opened = local.vfs.tmpfile(ROOT_INO, 0o600, os.O_RDWR, local.caller)
        local.vfs.write(opened.handle, 0, b"precious")
        threads = meanwhile(monkeypatch, "create", local)
        local.vfs.link(opened.attr.ino, ROOT_INO, b"named")
        monkeypatch.undo()
        for thread in threads:
            thread.join()
        local.close(opened.handle)
        assert local.cat("/named") == b"precious"


def test_what_is_written_while_an_unlink_fails_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_vfs(tmp_path / "s") as local:
        handle = local.create("/f", b"old")
        local.vfs.flush(handle)
        local.vfs.write(handle, 0, b"new data")
        threads = meanwhile(monkeypatch, "unlink", local)
        with pytest.raises(NoSpace):
            local.vfs.unlink(ROOT_INO, b"f")
        monkeypatch.undo()
        for thread in threads:
            thread.join()
        local.close(handle)
        assert local.cat("/f") == b"new data"


def test_a_change_that_comes_while_a_file_is_opened_is_seen(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.a.put("/f", b"old")
    pair.sync()
    theirs = pair.b.open("/f", os.O_WRONLY | os.O_TRUNC)
    pair.b.vfs.write(theirs, 0, b"new data")
    pair.b.close(theirs)
    files = pair.a.vfs._files
    view_of, hears = files.view_of, []

    def with_company(row):  # type: ignore[no-untyped-def]
        if not hears:
            hears.append(threading.Thread(target=lambda: pair.tell(pair.b, pair.a)))
            hears[0].start()
            hears[0].join(0.5)
        return view_of(row)

    monkeypatch.setattr(files, "view_of", with_company)
    handle = pair.a.open("/f", os.O_RDONLY)
    hears[0].join()
    assert pair.a.read_all(handle) == b"new data"
    pair.a.close(handle)


# -- what no handle keeps --------------------------------------------------------------


def unlinked(local: Local) -> tuple[Ino, int]:
    """A file whose name was removed while it was open, and written since."""
    ino = local.put("/f", b"old")
    handle = local.open("/f")
    local.vfs.unlink(ROOT_INO, b"f")
    local.vfs.write(handle, 0, b"new data")
    return ino, handle


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_APPEND])
def test_unnamed_file_that_was_synced_is_named_once(tmp_path: Path, flags: int) -> None:
    """Its draft is not laid over, or behind, what was made of it before."""
    with local_vfs(tmp_path / "s") as local:
        opened = local.vfs.tmpfile(ROOT_INO, 0o600, flags, local.caller)
        local.vfs.write(opened.handle, 0, b"0123456789")
        local.vfs.fsync(opened.handle)
        local.vfs.setattr(opened.attr.ino, SetAttr(size=5), local.caller, opened.handle)
        local.vfs.link(opened.attr.ino, ROOT_INO, b"named")
        local.vfs.write(opened.handle, 5, b"+")
        local.close(opened.handle)
        assert local.cat("/named") == b"01234+"


def test_unlinked_file_is_there_as_long_as_the_kernel_knows_it(tmp_path: Path) -> None:
    """Held by O_PATH it can be opened again, and cut without being open."""
    with local_vfs(tmp_path / "s") as local:
        ino, handle = unlinked(local)
        local.vfs.setattr(ino, SetAttr(mode=0o600), local.caller)
        local.close(handle)
        again = local.vfs.open(ino, os.O_RDWR, local.caller).handle
        assert local.read_all(again) == b"new data"
        local.close(again)
        local.vfs.setattr(ino, SetAttr(size=3), local.caller)
        shown = local.vfs.getattr(ino)
        assert (shown.size, shown.mode & 0o777, shown.nlink) == (3, 0o600, 0)
        local.vfs.forget(ino)
        found = local.vfs.statistics()
        assert (found.orphans, found.dirty_files, found.buffer_bytes) == (0, 0, 0)
        with pytest.raises(Stale):
            local.vfs.getattr(ino)


def test_unlinked_file_that_nobody_has_open_needs_no_buffers(tmp_path: Path) -> None:
    """The kernel may keep an inode for hours after a peer removed its name."""
    with local_vfs(tmp_path / "s") as local:
        ino, handle = unlinked(local)
        local.close(handle)
        assert local.vfs.statistics().dirty_files == 1
        local.vfs._writer.publish_older(0)
        found = local.vfs.statistics()
        assert (found.dirty_files, found.buffer_bytes) == (0, 0)
        again = local.vfs.open(ino, os.O_RDONLY, local.caller).handle
        assert local.read_all(again) == b"new data"
        local.close(again)


def test_unlinked_file_that_is_written_for_long_stays_small(tmp_path: Path) -> None:
    options = VfsOptions(
        chunk_log2=12,
        journal=tmp_path / "drafts",
        unfinished=tmp_path / "marks",
        writeback_s=1e9,
    )
    killed = Local(tmp_path / "s", options)
    handle = killed.create("/f", b"")
    killed.vfs.flush(handle)
    ino = killed.walk("/f")
    killed.vfs.unlink(ROOT_INO, b"f")
    wanted = b""
    for number in range(2 * MOST_PATCHES):
        piece = b"%04d" % number * 1024
        killed.vfs.write(handle, len(wanted), piece)
        wanted += piece
        killed.vfs._writer.publish_older(0)
    draft = killed.vfs._files.handle(handle).file.draft
    assert draft is not None
    assert len(draft.patches) <= MOST_PATCHES
    assert killed.read_all(handle) == wanted
    with local_vfs(tmp_path / "s", options) as now:
        now.vfs.adopt_handle(handle, ino)
        assert now.read_all(handle) == wanted
        now.vfs.release(handle)
        now.vfs.forget(ino)
    end(killed)


def test_draft_without_a_handle_outlives_an_unlink_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise NoSpace("the disk is full")

    with local_vfs(tmp_path / "s") as local:
        handle = local.create("/f", b"old")
        local.vfs.flush(handle)
        local.vfs.write(handle, 0, b"new data")
        with monkeypatch.context() as disk:
            disk.setattr(local.vfs._writer._publisher, "_commit", full)
            with pytest.raises(NoSpace):
                local.vfs.flush(handle)
            local.vfs.release(handle)
        threads = meanwhile(monkeypatch, "unlink", local)
        with pytest.raises(NoSpace):
            local.vfs.unlink(ROOT_INO, b"f")
        monkeypatch.undo()
        for thread in threads:
            thread.join()
        local.vfs._writer.publish_older(0)
        assert local.cat("/f") == b"new data"


def test_close_succeeds_when_a_peer_removed_the_file_this_moment(pair: Pair) -> None:
    """The database knows, our caches were not told yet."""
    pair.a.put("/f", b"old")
    pair.sync()
    handle = pair.b.open("/f")
    pair.b.vfs.write(handle, 0, b"new")
    pair.a.vfs.unlink(ROOT_INO, b"f")
    (tx, _) = pair.a_peers.published[-1]
    assert pair.b.namespace.inode(pair.b.walk("/f")) is not None  # cached
    node = Namespace.open(pair.b.namespace.path.parent)  # the other process
    node.apply([tx])
    node.close()
    pair.b.vfs.flush(handle)
    assert pair.b.read_all(handle) == b"new"
    pair.b.close(handle)


@pytest.mark.parametrize("ns", [2**70, -(2**70), 10_413_792_000 * 10**9])
def test_times_that_cannot_be_kept_become_the_nearest(tmp_path: Path, ns: int) -> None:
    with local_vfs(tmp_path / "s") as local:
        ino = local.put("/old", b"x")
        handle = local.create("/f", b"unpublished")
        for each in (ino, local.walk("/f")):
            change = SetAttr(mtime_ns=ns, atime_ns=ns)
            shown = local.vfs.setattr(each, change, local.caller)
            assert shown.mtime_ns == (LATEST_NS if ns > 0 else EARLIEST_NS)
        local.close(handle)
        assert local.cat("/f") == b"unpublished"
        again = local.stat("/f")
        assert again.mtime_ns == (LATEST_NS if ns > 0 else EARLIEST_NS)


def test_epoch_is_a_time_of_access_like_others(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        ino = local.put("/f", b"x")
        local.vfs.setattr(ino, SetAttr(atime_ns=0, mtime_ns=5 * 10**9), local.caller)
        assert local.stat("/f").atime_ns // 10**9 == 0
