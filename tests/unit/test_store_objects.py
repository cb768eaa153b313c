"""Storing and reading objects of one store."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.errors import ChunkMissing, Corrupt, NoSpace
from fusefs.model.ids import HOLE, chunk_id
from fusefs.store import PUSHED, RESPONSIBLE, Store, files
from fusefs.store.descriptors import ChunkFile, Descriptors
from fusefs.store.files import path_of
from tests.lib.stores import bytes_of, checked_store

KIB = 1024
SIZES = [0, 1, 4 * KIB, 32 * KIB - 1, 32 * KIB, 1024 * KIB - 1, 1024 * KIB]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with checked_store(tmp_path) as store:
        yield store


def half_written(store: Store) -> list[str]:
    fd = os.open("tmp", os.O_RDONLY, dir_fd=store.files.fd)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda b: memoryview(bytearray(b))])
def test_put_any_size_and_buffer_reads_back(store, size, kind):
    data = bytes_of(size)
    cid = store.put(kind(data))
    assert cid == chunk_id(data)
    assert store.get(cid) == data
    assert store.has(cid)
    assert store.size(cid) == size
    assert dict(store.objects()) == {cid: size}


@pytest.mark.parametrize("size", SIZES)
def test_get_by_a_store_opened_later_finds_it(tmp_path, size):
    data = bytes_of(size)
    with checked_store(tmp_path) as store:
        cid = store.put(data)
    with checked_store(tmp_path) as again:
        assert again.size(cid) == size
        assert again.get(cid) == data


def test_put_longer_than_a_chunk_is_refused(store):
    with pytest.raises(ValueError, match="longer"):
        store.put(bytes(1024 * KIB + 1))
    assert list(store.objects()) == []


@pytest.mark.parametrize("size", [100, 40_000])
@given(offset=st.integers(0, 50_000), length=st.integers(0, 50_000))
def test_read_into_is_a_slice(tmp_path_factory, size, offset, length):
    data = bytes_of(size)
    directory = tmp_path_factory.getbasetemp() / f"read{size}"
    with checked_store(directory) as store:
        cid = store.put(data)
        for _ in range(2):  # a new descriptor, then the kept one
            into = memoryview(bytearray(b"?" * length))
            count = store.read_into(cid, offset, into)
            assert bytes(into[:count]) == data[offset : offset + length]
            assert bytes(into[count:]) == b"?" * (length - count)


@pytest.mark.parametrize("size", [100, 40_000])
def test_put_again_keeps_one_object(store, size):
    data = bytes_of(size)
    cid = store.put(data)
    inode = os.stat(path_of(cid), dir_fd=store.files.fd).st_ino if size > 100 else 0
    assert store.put(data, cid) == cid
    assert list(store.objects()) == [(cid, size)]
    if size > 100:
        assert os.stat(path_of(cid), dir_fd=store.files.fd).st_ino == inode


@pytest.mark.parametrize("size", [100, 40_000])
def test_put_again_adds_flags(store, size):
    data = bytes_of(size)
    cid = store.put(data, pushed=False)
    assert store.flags(cid) == 0
    store.put_verified(cid, data, RESPONSIBLE)
    store.put(data)
    assert store.flags(cid) == PUSHED | RESPONSIBLE


def test_put_over_a_shortened_file_replaces_it(store):
    data = bytes_of(40_000)
    cid = store.put(data)
    store.get(cid)
    path = path_of(cid)
    os.chmod(path, 0o600, dir_fd=store.files.fd)
    fd = os.open(path, os.O_WRONLY, dir_fd=store.files.fd)
    os.ftruncate(fd, 100)
    os.close(fd)
    store.put(data)
    assert store.get(cid) == data


@pytest.mark.parametrize("call", ["get", "size", "read_into", "flags", "verify"])
def test_absent_object_is_chunk_missing(store, call):
    cid = chunk_id(b"absent")
    arguments = (cid, 0, memoryview(bytearray(4))) if call == "read_into" else (cid,)
    with pytest.raises(ChunkMissing):
        getattr(store, call)(*arguments)
    assert not store.has(cid)


def test_missing_gives_each_absent_id_once_without_holes(store):
    small, large = store.put(b"small"), store.put(bytes_of(40_000))
    absent, other = chunk_id(b"1"), chunk_id(b"2")
    asked = [absent, small, HOLE, other, large, absent]
    assert store.missing(asked) == [absent, other]


def test_missing_of_many_looks_at_all(store):
    present = [store.put(b"%d" % i) for i in range(0, 700, 2)]
    absent = [chunk_id(b"%d" % i) for i in range(1, 700, 2)]
    assert store.missing(present + absent) == absent


@pytest.mark.parametrize("size", [100, 40_000])
def test_delete_forgets_the_object(store, size):
    cid = store.put(bytes_of(size))
    store.get(cid)
    store.delete(cid)
    assert not store.has(cid)
    assert store.missing([cid]) == [cid]
    with pytest.raises(ChunkMissing):
        store.get(cid)
    store.delete(cid)


def test_put_many_stores_small_and_large(store):
    items = [(chunk_id(d), d) for d in (b"a", b"b", bytes_of(40_000), b"")]
    store.put_many(items)
    assert {cid: store.get(cid) for cid, _ in items} == dict(items)
    assert {store.flags(cid) for cid, _ in items} == {PUSHED}


def test_put_many_that_fails_stores_no_small_object(store):
    good = b"good"
    with pytest.raises(Corrupt):
        store.put_many([(chunk_id(good), good), (None, b"bad")])
    assert list(store.objects()) == []
    store.put(good)


@pytest.mark.parametrize("size", [100, 40_000])
def test_put_verified_of_wrong_bytes_stores_nothing(store, size):
    with pytest.raises(Corrupt):
        store.put_verified(chunk_id(b"other"), bytes_of(size))
    assert list(store.objects()) == []


def test_put_verified_is_cache(store):
    data = bytes_of(40_000)
    store.put_verified(chunk_id(data), data)
    assert store.flags(chunk_id(data)) == 0
    assert store.statistics().cache_bytes == 40_000


@pytest.mark.parametrize("size", [100, 40_000])
def test_put_on_a_full_disk_says_so_before_storing(store, size):
    store.space.min_free_bytes = 1 << 62
    for attempt in (
        lambda: store.put(bytes_of(size)),
        lambda: store.put_many([(chunk_id(bytes_of(size)), bytes_of(size))]),
        lambda: store.put_verified(chunk_id(bytes_of(size)), bytes_of(size)),
        lambda: store.require_space(1),
    ):
        with pytest.raises(NoSpace):
            attempt()
    assert list(store.objects()) == []
    assert half_written(store) == []


def test_put_that_meets_a_full_disk_leaves_nothing(store, monkeypatch):
    def full(fd, data):
        os.pwrite(fd, b"half", 0)
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(files, "_write_all", full)
    cid = chunk_id(bytes_of(40_000))
    with pytest.raises(NoSpace):
        store.put(bytes_of(40_000))
    assert not store.has(cid)
    assert half_written(store) == []


def test_write_in_pieces_stores_all(store, monkeypatch):
    data = bytes_of(100_000)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, part: write(fd, part[:7001]))
    assert store.get(store.put(data)) == data


def test_put_makes_a_directory_that_is_gone(store):
    data = bytes_of(40_000)
    os.rmdir(path_of(chunk_id(data))[:2], dir_fd=store.files.fd)
    assert store.get(store.put(data)) == data


def test_objects_and_pages_list_more_than_one_page(store):
    store.put_many([(chunk_id(b"%d" % i), b"%d" % i) for i in range(2500)])
    assert len(dict(store.objects())) == 2500


def test_descriptors_over_capacity_close_the_oldest(tmp_path):
    kept = Descriptors(capacity=2)
    fds = []
    for number in range(3):
        fd = os.open(tmp_path, os.O_RDONLY)
        fds.append(fd)
        kept.add(chunk_id(b"%d" % number), ChunkFile(fd, 0))
        kept.get(chunk_id(b"0"))
    assert len(kept) == 2
    assert kept.get(chunk_id(b"1")) is None
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fds[1])
    os.fstat(fds[0])


def test_few_descriptors_are_left_to_what_else_needs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with checked_store(tmp_path) as store:
        for number in range(40):
            cid = store.put(bytes_of(33_000, number))
            store.read_into(cid, 0, memoryview(bytearray(10)))
        assert store.statistics().open_files == 16


def test_descriptor_in_use_outlives_its_removal(tmp_path):
    kept = Descriptors()
    (tmp_path / "file").write_bytes(b"bytes")
    kept.add(HOLE, ChunkFile(os.open(tmp_path / "file", os.O_RDONLY), 5))
    file = kept.get(HOLE)
    kept.drop(HOLE)
    assert file is not None
    assert os.pread(file.fd, 5, 0) == b"bytes"


def test_store_closes_every_descriptor(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    with checked_store(tmp_path) as store:
        for number in range(300):
            cid = store.put(bytes_of(33_000, number))
            store.read_into(cid, 0, memoryview(bytearray(10)))
        assert store.statistics().open_files == 256
    store.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_known_sizes_are_bounded(store, monkeypatch):
    monkeypatch.setattr("fusefs.store.objects.KNOWN_LIMIT", 10)
    cids = [store.put(b"%d" % i) for i in range(50)]
    assert len(store._known) <= 10
    assert all(store.has(cid) for cid in cids)


def test_statistics_count_objects(store):
    store.put(b"small")
    large = store.put(bytes_of(40_000))
    store.put_verified(chunk_id(bytes_of(50_000)), bytes_of(50_000))
    found = store.statistics()
    assert (found.small, found.large, found.chunks) == (1, 2, 3)
    assert found.large_bytes == 90_000
    assert (found.cache_bytes, found.pushed, found.unsynced) == (50_000, 1, 2)
    store.sync([large])
    assert store.statistics().unsynced == 1


def damage(directory: Path, data: bytes) -> None:
    """One byte is another one, as after years on a disk."""
    cid, bad = chunk_id(data), b"X" + data[1:]
    with sqlite3.connect(directory / "small.db") as db:
        db.execute("UPDATE small SET data = ? WHERE id = ?", (bad, cid))
    db.close()
    path = directory / "objects" / path_of(cid)
    if path.exists():
        then = path.stat().st_mtime - 1000
        path.chmod(0o600)
        path.write_bytes(bad)
        os.utime(path, (then, then))


@pytest.mark.parametrize("size", [100, 40_000])
def test_damaged_object_is_never_given_out(tmp_path, size):
    data = bytes_of(size)
    with checked_store(tmp_path) as store:
        cid = store.put(data)
    damage(tmp_path, data)
    with checked_store(tmp_path) as again:
        into = memoryview(bytearray(10))
        with pytest.raises(ChunkMissing):
            again.read_into(cid, size - 10, into)
        assert again.missing([cid]) == [cid], "so that it is fetched again"
        again.put_verified(cid, data)
        assert again.get(cid) == data


@pytest.mark.parametrize("size", [100, 40_000])
def test_damaged_object_does_not_stand_for_what_is_written_again(tmp_path, size):
    data = bytes_of(size)
    with checked_store(tmp_path) as store:
        store.put(data)
    damage(tmp_path, data)
    with checked_store(tmp_path) as again:
        assert again.get(again.put(data)) == data


@pytest.mark.parametrize("size", [100, 40_000])
def test_damaged_object_that_somebody_relies_on_is_not_given_out_either(tmp_path, size):
    """What is told of an object says nothing of its bytes."""
    data = bytes_of(size)
    with checked_store(tmp_path) as store:
        cid = store.put(data)
    damage(tmp_path, data)
    with checked_store(tmp_path) as again:
        again.set_flags([cid], set_=RESPONSIBLE)
        again.touch([cid])
        with pytest.raises(ChunkMissing):
            again.get(cid)


def test_object_of_earlier_times_is_hashed_once(tmp_path, monkeypatch):
    data = bytes_of(40_000)
    with checked_store(tmp_path) as store:
        cid = store.put(data)
        then = os.stat(tmp_path / "objects" / path_of(cid)).st_mtime - 1000
        os.utime(tmp_path / "objects" / path_of(cid), (then, then))
    with checked_store(tmp_path) as again:
        hashed = []
        monkeypatch.setattr(again, "_sound", lambda *_: not hashed.append(1))
        again._seen_whole.add(cid)
        assert again.get(cid) == data
        assert hashed == []
        again._seen_whole.clear()
        again._descriptors.clear()
        assert again.get(cid) == data
        assert hashed == [1]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "rename"])
def test_disk_without_inodes_or_over_its_quota_is_no_space(
    store, monkeypatch, call, code
):
    real = getattr(os, call)

    def refuse(path, *args, **keywords):
        if str(path).startswith("tmp/"):
            raise OSError(code, "refused")
        return real(path, *args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(NoSpace):
            store.put(bytes_of(40 * KIB))
    assert half_written(store) == []


def test_what_finds_no_room_in_the_index_leaves_no_file(store, monkeypatch):
    def full(*_):
        raise NoSpace("the store's disk is full (small.db)")

    with monkeypatch.context() as patch:
        patch.setattr(store.index, "put_large", full)
        for seed in range(2):  # the second one has to end what the first one began
            with pytest.raises(NoSpace):
                store.put(bytes_of(40 * KIB, seed))
    assert half_written(store) == []
    store.put(bytes_of(40 * KIB))
