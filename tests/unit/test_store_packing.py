"""Objects that are kept compressed: nothing else knows of it."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fusefs.errors import ChunkMissing, Corrupt, DiskFailed, NotSupported
from fusefs.model.ids import ChunkId, chunk_id
from fusefs.store import Store, database, files, packing, salvage
from fusefs.store.files import path_of
from tests.lib.stores import bytes_of, checked_store

TEXT = b"words that come again and again\n" * 20_000
NOISE = bytes_of(300_000)


def names_of(directory: Path, cid: ChunkId) -> list[str]:
    """The ends of the names of its files."""
    there = (directory / "objects" / cid.hex()[:2]).glob(f"{cid.hex()}*")
    return sorted(path.name.removeprefix(cid.hex()) for path in there)


def packed_path(directory: Path, cid: ChunkId) -> Path:
    return directory / "objects" / f"{path_of(cid)}.z"


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def test_what_gets_smaller_is_kept_so_and_read_as_it_was(tmp_path: Path) -> None:
    with checked_store(tmp_path, compress=True) as store:
        text, noise = store.put(TEXT), store.put(NOISE)
        assert (names_of(tmp_path, text), names_of(tmp_path, noise)) == ([".z"], [""])
        assert packed_path(tmp_path, text).stat().st_size < len(TEXT) // 20
        assert (store.get(text), store.get(noise)) == (TEXT, NOISE)
        assert store.size(text) == len(TEXT)
        assert store.missing([text, noise]) == []
        into = bytearray(1000)
        for at in (0, 12_345, len(TEXT) - 10):
            count = store.read_into(text, at, memoryview(into))
            assert into[:count] == TEXT[at : at + 1000]
        store.sync([text, noise])
        assert store.statistics().large_bytes == len(TEXT) + len(NOISE)
        store.delete(text)
        assert names_of(tmp_path, text) == []
        with pytest.raises(ChunkMissing):
            store.get(text)


@pytest.mark.parametrize("again", [False, True])
def test_it_is_read_by_whoever_has_the_store_now(tmp_path: Path, again: bool) -> None:
    """With the option or without it; what is written again stays as it is."""
    with checked_store(tmp_path, compress=not again) as store:
        cid = store.put(TEXT)
    kept = [".z"] if not again else [""]
    with checked_store(tmp_path, compress=again) as store:
        assert store.get(cid) == TEXT
        store.put(TEXT)
        assert names_of(tmp_path, cid) == kept
        other = TEXT[:-1]
        assert names_of(tmp_path, store.put(other)) == ([".z"] if again else [""])


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda frame: frame[:-10],
        lambda frame: frame[: len(frame) // 2] + b"\xff" + frame[len(frame) // 2 + 1 :],
        lambda frame: b"",
        lambda frame: os.urandom(len(frame)),
        lambda frame: packing.zstd().compress(TEXT + b"more"),
        lambda frame: packing.zstd().compress(bytes(64 << 20)),
    ],
)
def test_a_damaged_one_is_gone_and_can_be_stored_again(
    tmp_path: Path, spoil, compress: bool
) -> None:
    with checked_store(tmp_path, compress=True) as store:
        cid = store.put(TEXT)
    path = packed_path(tmp_path, cid)
    overwrite(path, spoil(path.read_bytes()))
    with checked_store(tmp_path, compress=compress) as store:
        with pytest.raises(ChunkMissing):
            store.get(cid)
        assert names_of(tmp_path, cid) == []
        store.put_verified(cid, TEXT)
        assert names_of(tmp_path, cid) == ([".z"] if compress else [""])
        assert store.get(cid) == TEXT


def test_damage_while_it_is_in_use_is_found_by_who_opens_it_next(
    tmp_path: Path,
) -> None:
    with checked_store(tmp_path, compress=True) as store:
        cid = store.put(TEXT)
        assert store.get(cid) == TEXT
        overwrite(packed_path(tmp_path, cid), b"x")
        store._unpacked.clear()
        with pytest.raises(ChunkMissing):
            store.get(cid)


def test_an_object_that_is_there_in_both_forms_is_there_in_one_afterwards(
    tmp_path: Path,
) -> None:
    with checked_store(tmp_path, compress=True) as store:
        cid = store.put(TEXT)
    path = packed_path(tmp_path, cid)
    damaged = path.with_suffix("")
    damaged.write_bytes(b"?" * len(TEXT))
    with checked_store(tmp_path, compress=True) as store:
        store._began_s += 60  # it is of earlier times
        store.put(TEXT)
        assert names_of(tmp_path, cid) == [".z"]
        assert store.get(cid) == TEXT


def faults(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Its first sector cannot be read."""
    pread, inode = os.pread, path.stat().st_ino

    def fails(fd: int, count: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", fails)


def test_one_that_cannot_be_read_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with checked_store(tmp_path, compress=True) as store:
        cid, other = store.put(TEXT), store.put(TEXT + b"x")
        with monkeypatch.context() as patch:
            faults(patch, packed_path(tmp_path, cid))
            assert {item.cid for item in store.stored()} == {cid, other}
            assert store.missing([cid, other]) == []
            found = {p.kind for p in store.check(contents=True)}
            assert found == {"damaged", "wrong-size"}
            store.put(TEXT)
        assert store.get(cid) == TEXT


def test_a_size_that_no_chunk_has_is_none(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path, min_free_bytes=0, compress=True)) as store:
        cid = store.put(TEXT)
        header = b"\x28\xb5\x2f\xfd\xc0\x00" + b"\xfd" + b"\xff" * 7
        overwrite(packed_path(tmp_path, cid), header + bytes(100))
        store.lock.note(cid)  # killed before the row was made
        store.index.delete_large(cid)
    with checked_store(tmp_path, compress=True) as store:
        assert store.put(TEXT) == cid
        assert store.get(cid) == TEXT


@pytest.mark.parametrize("compress", [False, True])
def test_an_object_that_cannot_be_kept_in_the_other_form_stays_in_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: bool
) -> None:
    """Its sync failed, and it was to be written anew."""
    with checked_store(tmp_path, compress=True) as store:
        kept = store.put(TEXT) if not compress else ChunkId(b"")
    if compress:
        with checked_store(tmp_path) as store:
            kept = store.put(TEXT)
    with checked_store(tmp_path, compress=compress) as store:
        store.put(TEXT)

        def fails(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fails)
            with pytest.raises(DiskFailed):
                store.sync([kept])
            patch.setattr(os, "rename", fails)
            with pytest.raises(DiskFailed):
                store.sync([kept])
        assert store.get(kept) == TEXT
        store.sync([kept])
        assert names_of(tmp_path, kept) == ([".z"] if compress else [""])


def test_the_database_says_so_before_there_is_one(tmp_path: Path) -> None:
    """As after a power cut: what was not synced of the log is lost."""
    live, copy = tmp_path / "live", tmp_path / "copy"
    with checked_store(live, compress=True) as store:
        cid = store.put(TEXT)
        store.sync([cid])
        shutil.copytree(live / "objects", copy / "objects")
        for name in ("small.db", "small.db-wal"):
            shutil.copy(live / name, copy / name)
    with closing(Store.open(copy, min_free_bytes=0)) as store:
        assert store.database.has_packed
    rows = sqlite3.connect(copy / "small.db")
    rows.execute("PRAGMA user_version = 1")  # an older copy of it
    rows.close()
    with closing(Store.open(copy, min_free_bytes=0, looks=True)) as store:
        list(store.check(repair=True))
        assert store.get(cid) == TEXT


def test_what_is_evicted_counts_as_it_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with checked_store(tmp_path, compress=True) as store:
        chunks = [bytes_of(20_000, number) * 10 for number in range(64)]
        for chunk in chunks:
            store.put_verified(chunk_id(chunk), chunk)
        kept = packed_path(tmp_path, chunk_id(chunks[0])).stat().st_size
        assert kept < 25_000
        floor = 1_000_000

        def free_bytes() -> int:
            """Ten of them too few, as long as all are there."""
            left = len(list((tmp_path / "objects").glob("??/*.z")))
            return floor + kept * (54 - left)

        monkeypatch.setattr(store.space, "free_bytes", free_bytes)
        store.space.min_free_bytes = floor
        store.evict()
        assert floor <= free_bytes() < floor + 10 * kept


def test_not_many_are_held_in_memory(tmp_path: Path) -> None:
    with checked_store(tmp_path, compress=True) as store:
        cids = [store.put(TEXT + bytes([number])) for number in range(40)]
        assert all(len(store.get(cid)) == len(TEXT) + 1 for cid in cids)
        assert store.statistics().open_files == packing.MOST_UNPACKED


def test_what_a_killed_writer_left_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid = chunk_id(TEXT)
    with closing(Store.open(tmp_path, min_free_bytes=0, compress=True)) as store:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(store.index, "put_large", killed)
            with pytest.raises(KeyboardInterrupt):
                store.put(TEXT)
        assert names_of(tmp_path, cid) == [".z"]
    with checked_store(tmp_path, compress=True) as store:
        assert (store.get(cid), store.size(cid)) == (TEXT, len(TEXT))
        assert store.index.get_large(cid) is not None


def test_checks_know_them(tmp_path: Path) -> None:
    with checked_store(tmp_path, compress=True) as store:
        cids = [store.put(TEXT + bytes([number])) for number in range(4)]
    rows = sqlite3.connect(tmp_path / "small.db")
    rows.execute("DELETE FROM large WHERE id = ?", (cids[0],))
    rows.commit()
    rows.close()
    overwrite(packed_path(tmp_path, cids[1]), b"x")
    packed_path(tmp_path, cids[2]).unlink()
    with closing(Store.open(tmp_path, min_free_bytes=0)) as store:
        found = {p.kind: p.subject for p in store.check(repair=True, contents=True)}
        assert found == {
            "unindexed": cids[0].hex(),
            "damaged": cids[1].hex(),
            "row-without-file": cids[2].hex(),
        }
        assert [cid for cid in cids if store.has(cid)] == [cids[0], cids[3]]
        assert list(store.check(repair=False, contents=True)) == []


@pytest.mark.parametrize("lost", ["damaged", "gone"])
def test_they_are_known_without_the_database(
    tmp_path: Path, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    with checked_store(tmp_path, compress=True) as store:
        cids = [store.put(TEXT + bytes([number])) for number in range(20)]
    path = tmp_path / "small.db"
    if lost == "gone":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[100:400] = random.Random(1).randbytes(300)
        path.write_bytes(data)
        assert salvage.damage(path)
        assert salvage.rebuild(tmp_path) == (0, len(cids))
    with closing(Store.open(tmp_path, min_free_bytes=0)) as store:
        list(store.check(repair=True))
        assert [store.get(cid)[-1] for cid in cids] == [*range(20)]
    assert ("was gone" in caplog.text) == (lost == "gone")


def test_earlier_programs_leave_such_a_store_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with checked_store(tmp_path, compress=False) as store:
        assert not store.database.has_packed
    with checked_store(tmp_path, compress=True) as store:
        assert store.database.has_packed
    monkeypatch.setattr(database, "PACKED_VERSION", 1)
    with pytest.raises(Corrupt, match="newer version"):
        Store.open(tmp_path)


def test_without_the_package_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tmp_path, tmp_path / "other")
    with checked_store(tmp_path / "other", compress=True) as store:
        store.put(TEXT)
    monkeypatch.setattr(packing, "_MODULES", ("no.such.module",))
    for directory, compress in ((tmp_path / "new", True), (tmp_path / "other", False)):
        with pytest.raises(NotSupported, match=r"pip install backports\.zstd"):
            Store.open(directory, compress=compress)
    assert not (tmp_path / "new").exists()
    with checked_store(tmp_path / "plain") as store:
        assert type(store.files) is files.Files
