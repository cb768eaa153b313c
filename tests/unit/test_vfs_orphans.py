"""Inodes without a name that somebody still uses."""

from __future__ import annotations

import itertools
import os
import threading
import time
from pathlib import Path

import pytest

from fusefs.errors import FsError, NoAttribute, NotFound, Stale
from fusefs.model.ids import ROOT_INO, ChunkId, Ino, chunk_id
from fusefs.store import gc
from fusefs.vfs import VfsOptions
from fusefs.vfs.types import SetAttr
from tests.lib.local import Local, local_vfs

PATHS = VfsOptions(kernel_refs=False)
BIG = bytes(range(256)) * 4096 * 3


def collect(local: Local) -> gc.Collected:
    """Garbage, when the grace time of all that is there is over."""
    roots = itertools.chain(local.vfs.live_roots(), local.namespace.live_roots())
    return gc.collect(local.store, roots, now_s=time.time() + 2 * gc.GRACE_S)


def test_unlinked_open_file_lives_until_the_last_release(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s", PATHS) as local:
        vfs = local.vfs
        ino = local.put("/a", b"content")
        vfs.setxattr(ino, b"user.x", b"1")
        one, two = local.open("/a"), local.open("/a")
        vfs.unlink(ROOT_INO, b"a")
        assert local.listing() == []
        assert vfs.getattr(ino).nlink == 0
        vfs.write(one, 7, b"+more")
        vfs.flush(one)
        vfs.fsync(one)
        assert vfs.read(two, 0, 100) == b"content+more"
        vfs.setattr(ino, SetAttr(mode=0o600, size=3), local.caller, two)
        assert vfs.getattr(ino).mode & 0o777 == 0o600
        assert vfs.getxattr(ino, b"user.x") == b"1"
        vfs.setxattr(ino, b"user.y", b"2")
        assert sorted(vfs.listxattr(ino)) == [b"user.x", b"user.y"]
        vfs.removexattr(ino, b"user.x")
        with pytest.raises(NoAttribute):
            vfs.getxattr(ino, b"user.x")
        local.close(one)
        assert vfs.read(two, 0, 100) == b"con"
        local.close(two)
        with pytest.raises(Stale):
            vfs.getattr(ino)
        assert vfs.statistics().orphans == 0


@pytest.mark.parametrize("forget_first", [False, True])
def test_kernel_reference_keeps_it_until_forget(
    tmp_path: Path, forget_first: bool
) -> None:
    with local_vfs(tmp_path / "s") as local:
        vfs = local.vfs
        ino = local.put("/a", b"x")
        handle = local.open("/a")
        vfs.unlink(ROOT_INO, b"a")
        if forget_first:  # FORGET may overtake RELEASE
            vfs.forget(ino)
            assert vfs.read(handle, 0, 9) == b"x"
            local.close(handle)
        else:
            local.close(handle)
            assert vfs.getattr(ino).size == 1
            vfs.forget(ino)
        with pytest.raises(Stale):
            vfs.getattr(ino)
        assert vfs.statistics().orphans == 0


def test_rename_over_an_open_file_keeps_it_readable(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s", PATHS) as local:
        vfs = local.vfs
        local.put("/a", b"old")
        local.put("/b", b"new")
        handle = local.open("/a")
        vfs.rename(ROOT_INO, b"b", ROOT_INO, b"a")
        assert vfs.read(handle, 0, 9) == b"old"
        assert local.cat("/a") == b"new"
        local.close(handle)


def test_a_file_with_another_name_is_no_orphan(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        ino = local.put("/a", b"x")
        local.vfs.link(ino, ROOT_INO, b"b")
        local.vfs.unlink(ROOT_INO, b"a")
        assert local.vfs.statistics().orphans == 0
        assert local.stat("/b").nlink == 1


def test_written_and_unlinked_before_flush_publishes_nothing(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        vfs = local.vfs
        handle = local.create("/a", BIG)
        ino = local.walk("/a")
        vfs.unlink(ROOT_INO, b"a")
        commits = vfs.statistics().commits
        vfs.flush(handle)
        assert local.read_all(handle) == BIG
        assert vfs.getattr(ino).blocks == len(BIG) // 512
        assert (vfs.getattr(ino).size, vfs.statistics().commits) == (len(BIG), commits)
        stored = {cid for cid, _ in local.store.objects()}
        assert stored <= {root for root, _, _ in vfs.live_roots()}
        vfs.release(handle)
        vfs.forget(ino)
        assert vfs.statistics().orphans == 0


def test_failed_unlink_makes_no_orphan(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        ino = local.put("/a")
        with pytest.raises(NotFound):
            local.vfs.rename(ROOT_INO, b"none", ROOT_INO, b"a")
        assert local.vfs.statistics().orphans == 0
        assert local.vfs.getattr(ino).nlink == 1


def test_orphans_are_gone_after_a_crash(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        handle = local.create("/a", b"x")
        ino = local.walk("/a")
        local.vfs.unlink(ROOT_INO, b"a")
        local.vfs.flush(handle)
    with local_vfs(tmp_path / "s") as local:
        assert local.listing() == []
        with pytest.raises(Stale):
            local.vfs.getattr(ino)
        assert local.vfs.statistics().orphans == 0


def test_unlinked_file_goes_on_in_another_worker(tmp_path: Path) -> None:
    """What was published before the unlink is there; nobody else sees it."""
    with local_vfs(tmp_path / "s", PATHS) as local:
        ino = local.put("/a", b"published")
        local.vfs.setxattr(ino, b"user.a", b"b")
        handle = local.open("/a")
        local.vfs.unlink(ROOT_INO, b"a")
    with local_vfs(tmp_path / "s", PATHS) as local:
        local.vfs.adopt_handle(handle, ino)
        assert local.vfs.read(handle, 0, 99) == b"published"
        assert local.vfs.getattr(ino).nlink == 0
        assert local.vfs.getxattr(ino, b"user.a") == b"b"
        assert local.listing() == []
        local.close(handle)
        assert local.vfs.statistics().orphans == 0
        with pytest.raises(Stale):
            local.vfs.adopt_handle(handle + 16, Ino(12345))


def test_tmpfile_can_be_named(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        vfs = local.vfs
        opened = vfs.tmpfile(ROOT_INO, 0o640, os.O_RDWR, local.caller)
        ino = opened.attr.ino
        assert (opened.attr.nlink, local.listing()) == (0, [])
        vfs.write(opened.handle, 0, BIG)
        vfs.setxattr(ino, b"user.a", b"b")
        vfs.flush(opened.handle)
        vfs.write(opened.handle, 5, b"late")
        attr = vfs.link(ino, ROOT_INO, b"named")
        assert attr.nlink == 1
        local.close(opened.handle)
        assert local.cat("/named") == BIG[:5] + b"late" + BIG[9:]
        assert vfs.getxattr(ino, b"user.a") == b"b"
        assert local.stat("/named").mode & 0o777 == 0o640


@pytest.mark.parametrize("data", [b"", b"data"])
@pytest.mark.parametrize("published", [False, True])
def test_tmpfile_keeps_the_times_it_was_given(
    tmp_path: Path, data: bytes, published: bool
) -> None:
    with local_vfs(tmp_path / "s") as local:
        opened = local.vfs.tmpfile(ROOT_INO, 0o600, os.O_RDWR, local.caller)
        ino = opened.attr.ino
        if data:
            local.vfs.write(opened.handle, 0, data)
        times = SetAttr(atime_ns=5, mtime_ns=7)
        local.vfs.setattr(ino, times, local.caller, opened.handle)
        if published:
            local.vfs.fsync(opened.handle)
        attr = local.vfs.link(ino, ROOT_INO, b"named")
        assert (attr.atime_ns, attr.mtime_ns) == (5, 7)
        local.close(opened.handle)
        attr = local.stat("/named")
        assert (attr.atime_ns, attr.mtime_ns) == (5, 7)
        assert local.cat("/named") == data


def test_empty_tmpfile_keeps_its_mtime_when_it_is_named(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        opened = local.vfs.tmpfile(ROOT_INO, 0o600, os.O_RDWR, local.caller)
        named = local.vfs.link(opened.attr.ino, ROOT_INO, b"named")
        assert named.mtime_ns == opened.attr.mtime_ns
        assert named.ctime_ns > opened.attr.ctime_ns
        local.close(opened.handle)


def test_extended_attributes_move_the_ctime_of_a_file_without_a_name(
    tmp_path: Path,
) -> None:
    with local_vfs(tmp_path / "s") as local:
        opened = local.vfs.tmpfile(ROOT_INO, 0o600, os.O_RDWR, local.caller)
        ino, before = opened.attr.ino, opened.attr.ctime_ns
        local.vfs.setxattr(ino, b"user.x", b"1")
        changed = local.vfs.getattr(ino).ctime_ns
        assert changed > before
        local.vfs.removexattr(ino, b"user.x")
        assert local.vfs.getattr(ino).ctime_ns > changed
        local.close(opened.handle)


def test_exclusive_tmpfile_and_unlinked_files_cannot_be_named(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        vfs = local.vfs
        flags = os.O_RDWR | os.O_EXCL
        opened = vfs.tmpfile(ROOT_INO, 0o600, flags, local.caller)
        with pytest.raises(NotFound):
            vfs.link(opened.attr.ino, ROOT_INO, b"x")
        local.close(opened.handle)
        ino = local.put("/a")
        handle = local.open("/a")
        vfs.unlink(ROOT_INO, b"a")
        with pytest.raises(NotFound):
            vfs.link(ino, ROOT_INO, b"again")
        local.close(handle)


def test_adopted_handle_goes_on_where_it_was(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        ino = local.put("/a", b"synced")
        writing, reading = local.open("/a"), local.open("/a", os.O_RDONLY)
    with local_vfs(tmp_path / "s") as local:
        vfs = local.vfs
        vfs.adopt_handle(writing, ino)
        vfs.adopt_handle(reading, ino)
        vfs.adopt_handle(reading, ino)
        vfs.write(writing, 6, b"+")
        assert vfs.read(reading, 0, 10) == b"synced+"
        fresh = local.open("/a")
        assert fresh not in (writing, reading)
        for handle in (writing, reading, fresh):
            local.close(handle)
        assert vfs.statistics().handles == 0


def test_leases_are_for_what_only_open_files_name(tmp_path: Path, monkeypatch) -> None:
    """What a register names, garbage collection finds there; of a large file that is
    open it would be a row of the store's index for each chunk, every few minutes."""
    with local_vfs(tmp_path / "s") as local:
        renewed: list[ChunkId] = []
        monkeypatch.setattr(local.store, "touch", renewed.extend)
        local.put("/named", b"n" * 100)
        local.put("/removed", b"r" * 100)
        handles = [local.open(name, os.O_RDONLY) for name in ("/named", "/removed")]
        local.vfs.renew_leases()
        assert renewed == []
        local.vfs.unlink(ROOT_INO, b"removed")
        local.vfs.renew_leases()
        assert renewed == [chunk_id(b"r" * 100)]
        for handle in handles:
            local.close(handle)


def test_what_is_open_as_a_path_only_is_no_garbage(tmp_path: Path) -> None:
    """O_PATH is nothing that a file system hears of; /proc/self/fd/N opens it."""
    with local_vfs(tmp_path / "s") as local:
        ino = local.put("/a", BIG)
        local.vfs.unlink(ROOT_INO, b"a")
        vector = local.namespace.vector()
        local.namespace.put_horizon(vector, vector)
        collect(local)
        handle = local.vfs.open(ino, os.O_RDONLY, local.caller).handle
        assert local.read_all(handle) == BIG
        local.close(handle)
        local.vfs.forget(ino)
        assert collect(local).swept > 0


@pytest.mark.parametrize("killed", [False, True])
def test_open_file_without_a_name_outlives_its_registers(
    tmp_path: Path, killed: bool
) -> None:
    """Every member has forgotten the delete when the next worker comes."""
    options = VfsOptions(unnamed=tmp_path / "orphans")
    with local_vfs(tmp_path / "s", options) as local:
        ino = local.put("/a", BIG)
        other = local.put("/b", b"closed")
        handle = local.open("/a", os.O_RDONLY)
        for name in (b"a", b"b"):
            local.vfs.unlink(ROOT_INO, name)
        vector = local.namespace.vector()
        local.namespace.put_horizon(vector, vector)
        assert local.namespace.unlinked(ino) is None
        if killed:
            local.vfs._files.keep_orphans()
            kept = (tmp_path / "orphans").read_bytes()
    if killed:
        (tmp_path / "orphans").write_bytes(kept)
    for _ in range(2):  # nobody asks the first one
        with local_vfs(tmp_path / "s", options) as local:
            root = next(iter(local.vfs.live_roots()))
            assert root[1] == len(BIG)
    with local_vfs(tmp_path / "s", options) as local:
        local.vfs.adopt_handle(handle, ino)
        assert local.read_all(handle) == BIG
        assert local.vfs.getattr(ino).nlink == 0
        assert not local.vfs.adopt_orphan(other)
        local.close(handle)
        local.vfs.forget(ino)
        assert local.vfs.statistics().orphans == 0
    with local_vfs(tmp_path / "s", options) as local:
        assert not local.vfs.adopt_orphan(ino)


def test_files_without_a_name_are_kept_while_publishing_waits(
    tmp_path: Path, monkeypatch
) -> None:
    """Another file's bytes are with a peer that is slow, or silent."""
    monkeypatch.setattr("fusefs.vfs.background.LOOK_S", 0.01, raising=False)
    path, came, waits = tmp_path / "orphans", threading.Event(), threading.Event()

    def waiting(*_: object, **__: object) -> list[FsError]:
        came.set()
        waits.wait(60)
        return []

    with local_vfs(tmp_path / "s", VfsOptions(unnamed=path)) as local:
        monkeypatch.setattr(local.vfs._writer, "publish_older", waiting)
        assert came.wait(30)
        local.put("/a", BIG)
        handle = local.open("/a", os.O_RDONLY)
        local.vfs.unlink(ROOT_INO, b"a")
        end_s = time.monotonic() + 5
        while not path.exists() and time.monotonic() < end_s:
            time.sleep(0.01)
        kept = path.exists()
        waits.set()
        local.close(handle)
    assert kept


@pytest.mark.parametrize("killed", [False, True])
def test_tmpfile_goes_on_in_another_worker(tmp_path: Path, killed: bool) -> None:
    """As it was at the last fsync, and link(2) can name it."""
    options = VfsOptions(unnamed=tmp_path / "orphans")
    with local_vfs(tmp_path / "s", options) as local:
        vfs = local.vfs
        opened = vfs.tmpfile(ROOT_INO, 0o640, os.O_RDWR, local.caller)
        exclusive = vfs.tmpfile(ROOT_INO, 0o600, os.O_RDWR | os.O_EXCL, local.caller)
        for data in (b"first", b"second"):
            vfs.write(opened.handle, 0, data)
            vfs.fsync(opened.handle)
        kept = (tmp_path / "orphans").read_bytes()
    if killed:
        (tmp_path / "orphans").write_bytes(kept)
    with local_vfs(tmp_path / "s", options) as local:
        vfs = local.vfs
        ino = opened.attr.ino
        vfs.adopt_handle(opened.handle, ino)
        vfs.adopt_handle(exclusive.handle, exclusive.attr.ino)
        assert vfs.read(opened.handle, 0, 99) == b"second"
        with pytest.raises(NotFound):
            vfs.link(exclusive.attr.ino, ROOT_INO, b"x")
        vfs.link(ino, ROOT_INO, b"named")
        assert local.cat("/named") == b"second"
        assert local.stat("/named").mode & 0o777 == 0o640
        for handle in (opened.handle, exclusive.handle):
            local.close(handle)


@pytest.mark.parametrize("killed", [False, True])
def test_attributes_of_a_tmpfile_go_on_in_another_worker(
    tmp_path: Path, killed: bool
) -> None:
    options = VfsOptions(unnamed=tmp_path / "orphans")
    names = ("orphans", "orphans.attributes")
    with local_vfs(tmp_path / "s", options) as local:
        vfs = local.vfs
        opened = vfs.tmpfile(ROOT_INO, 0o640, os.O_RDWR, local.caller)
        ino = opened.attr.ino
        for name in (b"user.a", b"user.b"):
            vfs.setxattr(ino, name, b"value")
        vfs.removexattr(ino, b"user.a")
        kept = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names if killed else ():
        (tmp_path / name).write_bytes(kept[name])
    with local_vfs(tmp_path / "s", options) as local:
        vfs = local.vfs
        vfs.adopt_handle(opened.handle, ino)
        assert vfs.listxattr(ino) == [b"user.b"]
        vfs.setxattr(ino, b"user.c", b"")
    with local_vfs(tmp_path / "s", options) as local:
        vfs = local.vfs
        vfs.adopt_handle(opened.handle, ino)
        vfs.link(ino, ROOT_INO, b"named")
        assert sorted(vfs.listxattr(ino)) == [b"user.b", b"user.c"]
        assert vfs.getxattr(ino, b"user.b") == b"value"
        local.close(opened.handle)


def test_files_without_a_name_are_void_on_another_mount(tmp_path: Path) -> None:
    path = tmp_path / "orphans"
    with local_vfs(tmp_path / "s", VfsOptions(unnamed=path)) as local:
        local.put("/a", BIG)
        local.open("/a", os.O_RDONLY)
        local.vfs.unlink(ROOT_INO, b"a")
    assert path.exists()
    with local_vfs(tmp_path / "s", VfsOptions(unnamed=path, same_mount=False)) as local:
        assert list(local.vfs.live_roots()) == []
    assert not path.exists()
