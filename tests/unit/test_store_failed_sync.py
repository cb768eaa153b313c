"""A disk that fails once: the kernel calls pages clean then that it could not write,
so the next fsync succeeds (fsync(2)). What it is about has to be written anew."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable

import pytest

from fusefs.errors import ChunkMissing, Corrupt, NoSpace
from fusefs.model.ids import NodeId
from fusefs.namespace import Namespace
from fusefs.store import Store, files, wal
from fusefs.store.files import path_of
from tests.lib.stores import bytes_of, checked_store

LARGE = 40_000


class Disk:
    """The next fdatasync fails with `errno`, and the pages of that file are clean."""

    def __init__(self) -> None:
        self.errno = 0
        self.unwritten: set[int] = set()
        """Inodes whose pages are in memory only."""
        self._fdatasync, self._pwrite = os.fdatasync, os.pwrite

    def fdatasync(self, fd: int) -> None:
        code, self.errno = self.errno, 0
        if code:
            self.unwritten.add(os.fstat(fd).st_ino)
            raise OSError(code, os.strerror(code))
        self._fdatasync(fd)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self.unwritten.discard(os.fstat(fd).st_ino)
        return self._pwrite(fd, data, offset)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fdatasync", disk.fdatasync)
    monkeypatch.setattr(os, "pwrite", disk.pwrite)
    return disk


def inode(store: Store, cid: bytes) -> int:
    return os.stat(path_of(cid), dir_fd=store.files.fd).st_ino


@pytest.mark.parametrize("again", [False, True])
def test_an_object_whose_sync_failed_is_written_anew(tmp_path, disk, again):
    with checked_store(tmp_path) as store, checked_store(tmp_path) as other:
        cid = store.put(bytes_of(LARGE))
        assert len(other.get(cid)) == LARGE
        disk.errno = errno.EIO
        with pytest.raises(Corrupt):
            store.sync([cid])
        assert disk.unwritten == {inode(store, cid)}
        if again:  # a program writes it all once more, as it should
            store.put(bytes_of(LARGE))
        store.sync([cid])
        assert inode(store, cid) not in disk.unwritten
        assert store.get(cid) == other.get(cid) == bytes_of(LARGE)
        before = inode(store, cid)
        store.put(bytes_of(LARGE))
        store.sync([cid])
        assert inode(store, cid) == before


def test_all_objects_are_written_anew_when_syncing_the_disk_failed(
    tmp_path, monkeypatch
):
    with checked_store(tmp_path) as store:
        cids = [store.put(bytes_of(LARGE, i)) for i in range(3)]
        before = [
            os.open(path_of(cid), os.O_RDONLY, dir_fd=store.files.fd) for cid in cids
        ]

        def fails(self) -> None:
            raise files.failed(tmp_path, "syncing", OSError(errno.EIO, "no"))

        with monkeypatch.context() as patch:
            patch.setattr(files.Files, "sync_filesystem", fails)
            with pytest.raises(Corrupt):
                store.sync_all()
        store.delete(cids[2])
        store.sync([cids[0]])
        store.sync_all()
        for cid, fd in zip(cids, before, strict=True):
            assert cid == cids[2] or inode(store, cid) != os.fstat(fd).st_ino
            os.close(fd)


@pytest.mark.parametrize("count", [1, 40])
def test_an_object_that_is_damaged_by_then_is_gone(tmp_path, disk, count):
    """One, or so many that the whole file system is synced for them."""
    with checked_store(tmp_path) as store:
        cids = [store.put(bytes_of(LARGE, i)) for i in range(count)]
        disk.errno = errno.EIO
        with pytest.raises(Corrupt):
            store.sync(cids[:1])
        path = tmp_path / "objects" / path_of(cids[0])
        path.chmod(0o600)
        path.write_bytes(bytes(LARGE))
        with pytest.raises(ChunkMissing):
            store.sync(cids)
        assert not path.exists()


def test_an_object_that_cannot_be_written_anew_is_not_called_durable(
    tmp_path, disk, monkeypatch
):
    with checked_store(tmp_path) as store:
        cid = store.put(bytes_of(LARGE))
        disk.errno = errno.EIO
        with pytest.raises(Corrupt):
            store.sync([cid])

        def full(self, data) -> str:
            raise NoSpace("full")

        with monkeypatch.context() as patch:
            patch.setattr(files.Files, "write", full)
            for _ in range(2):
                with pytest.raises(NoSpace):
                    store.sync([cid])
        store.sync([cid])
        assert inode(store, cid) not in disk.unwritten


def test_a_quota_met_when_syncing_is_no_damage(tmp_path, disk):
    with checked_store(tmp_path) as store:
        cid = store.put(bytes_of(LARGE))
        disk.errno = errno.EDQUOT
        with pytest.raises(NoSpace):
            store.sync([cid])
        store.sync([cid])


def test_a_log_whose_sync_failed_is_written_anew(tmp_path, disk):
    with checked_store(tmp_path) as store:
        cids = [store.put(bytes_of(9000, i)) for i in range(300)]
        disk.errno = errno.EIO
        with pytest.raises(Corrupt):
            store.sync(cids[-1:])
        assert disk.unwritten == {os.stat(tmp_path / "small.db-wal").st_ino}
        store.sync(cids[-1:])
        assert not disk.unwritten
    with checked_store(tmp_path) as store:
        assert [store.get(cid) for cid in cids] == [
            bytes_of(9000, i) for i in range(300)
        ]


def test_transactions_whose_sync_failed_are_written_anew(tmp_path, disk):
    namespace = Namespace.create(tmp_path, NodeId(7))
    namespace.put_setting(b"a", b"1")
    disk.errno = errno.EIO
    with pytest.raises(Corrupt):
        namespace.sync()
    assert disk.unwritten == {os.stat(tmp_path / "meta.db-wal").st_ino}
    namespace.put_setting(b"b", b"2")
    namespace.sync()
    assert not disk.unwritten
    assert not namespace.problems()
    namespace.close()


@pytest.fixture
def failing_meanwhile(disk, monkeypatch) -> Callable[[Callable[[], None]], None]:
    """During the next sync another thread's is told of an error, so that this one is
    not."""

    def arrange(others: Callable[[], None]) -> None:
        sync = os.fdatasync

        def meanwhile(fd: int) -> None:
            monkeypatch.setattr(os, "fdatasync", sync)
            disk.errno = errno.EIO
            with pytest.raises(Corrupt):
                others()
            sync(fd)

        monkeypatch.setattr(os, "fdatasync", meanwhile)

    return arrange


def test_of_two_who_sync_a_log_at_once_both_know_that_one_failed(
    tmp_path, disk, failing_meanwhile
):
    namespace = Namespace.create(tmp_path, NodeId(7))
    namespace.put_setting(b"a", b"1")
    failing_meanwhile(namespace.sync)
    namespace.sync()
    assert not disk.errno
    assert not disk.unwritten
    namespace.close()


def test_of_two_who_sync_an_object_at_once_both_know_that_one_failed(
    tmp_path, disk, failing_meanwhile
):
    with checked_store(tmp_path) as store:
        cid = store.put(bytes_of(LARGE))
        failing_meanwhile(lambda: store.sync([cid]))
        store.sync([cid])
        assert not disk.errno
        assert inode(store, cid) not in disk.unwritten


def test_a_checkpoint_whose_sync_failed_has_the_log_written_anew(
    tmp_path, disk, monkeypatch
):
    """What it is told of nobody else is, perhaps."""
    namespace = Namespace.create(tmp_path, NodeId(7))
    namespace.put_setting(b"a", b"1")
    for code, written in (
        (None, False),
        (sqlite3.SQLITE_IOERR_READ, False),
        (sqlite3.SQLITE_IOERR_FSYNC, True),
    ):
        disk.unwritten = {os.stat(tmp_path / "meta.db-wal").st_ino}

        def fails(connection, mode, code=code) -> int:
            error = sqlite3.OperationalError("of the disk")
            if code is not None:
                error.sqlite_errorcode = code
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(wal, "moved", fails)
            with pytest.raises(Corrupt):
                namespace.checkpoint(0)
        namespace.sync()
        assert bool(disk.unwritten) != written
    namespace.close()
