"""`Store.check` finds each kind of damage, repairs it, and is then silent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fusefs.errors import ChunkMissing, Corrupt, NoSpace
from fusefs.model.ids import ChunkId, chunk_id
from fusefs.store import PUSHED, Store
from fusefs.store.files import path_of
from fusefs.store.index import Index
from fusefs.store.scrub import START
from tests.lib.stores import bytes_of, checked_store

LARGE = 40_000


def kinds(store: Store, **options: bool) -> list[str]:
    return [problem.kind for problem in store.check(**options)]


def found_and_repaired(store: Store, kind: str, *, contents: bool = False) -> None:
    """The problem is found, found again, repaired, and gone."""
    assert kinds(store, contents=contents) == [kind]
    assert kinds(store, contents=contents) == [kind]
    repaired = list(store.check(repair=True, contents=contents))
    assert [(p.kind, p.repaired) for p in repaired] == [(kind, True)]
    assert kinds(store, contents=True) == []


def overwrite(directory: Path, cid: ChunkId, data: bytes) -> None:
    path = directory / "objects" / path_of(cid)
    path.chmod(0o600)
    path.write_bytes(data)


def test_check_of_a_healthy_store_finds_nothing_and_counts(tmp_path):
    with checked_store(tmp_path) as store:
        for i in range(100):
            store.put(bytes_of(LARGE if i % 2 else 10, i))
        told: list[int] = []
        assert list(store.check(progress=told.append)) == []
        assert told == [64, 100]


def test_check_finds_a_stray_file(tmp_path):
    with checked_store(tmp_path) as store:
        (tmp_path / "objects/ab/notes.txt").write_text("?")
        found_and_repaired(store, "stray-file")


def test_check_finds_an_object_in_the_wrong_directory(tmp_path):
    with checked_store(tmp_path) as store:
        name = chunk_id(b"").hex()
        assert name[:2] != "00"
        (tmp_path / "objects/00" / name).write_bytes(bytes(LARGE))
        found_and_repaired(store, "stray-file")


def test_check_finds_a_file_without_row_and_keeps_it_as_pushed(tmp_path):
    with checked_store(tmp_path) as store:
        data = bytes_of(LARGE)
        cid = store.put(data, pushed=False)
        with store.lock:
            store.index.delete_large(cid)
        found_and_repaired(store, "unindexed")
        assert store.get(cid) == data
        assert store.flags(cid) == PUSHED


def test_check_finds_a_row_without_file(tmp_path):
    with checked_store(tmp_path) as store:
        cid = store.put(bytes_of(LARGE))
        (tmp_path / "objects" / path_of(cid)).unlink()
        found_and_repaired(store, "row-without-file")
        assert store.missing([cid]) == [cid]


def test_check_finds_a_row_with_the_wrong_size(tmp_path):
    with checked_store(tmp_path) as store:
        cid = store.put(bytes_of(LARGE))
        with store.lock:
            store.index.put_large(cid, 1, 0, 0)
        found_and_repaired(store, "wrong-size")
        assert dict(store.objects()) == {cid: LARGE}


def test_quick_check_believes_the_row_and_not_a_file_cut_short(tmp_path):
    """The row is the only witness: made to agree, the file would be read as zeros."""
    with checked_store(tmp_path) as store:
        cid = store.put(bytes_of(2 * LARGE))
        overwrite(tmp_path, cid, bytes_of(2 * LARGE)[: LARGE + 1])
        found_and_repaired(store, "wrong-size")
        assert store.missing([cid]) == [cid]


def test_check_finds_a_truncated_file_without_reading_contents(tmp_path):
    with checked_store(tmp_path) as store:
        cid = store.put(bytes_of(LARGE))
        overwrite(tmp_path, cid, b"cut")
        repaired = list(store.check(repair=True))
        assert [p.kind for p in repaired] == ["damaged"]
        assert store.missing([cid]) == [cid]


@pytest.mark.parametrize("size", [100, LARGE])
def test_check_of_contents_finds_changed_bytes(tmp_path, size):
    with checked_store(tmp_path) as store:
        cid, good = store.put(bytes_of(size)), store.put(bytes_of(size, 1))
        change(store, tmp_path, cid, size)
        assert kinds(store) == []
        found_and_repaired(store, "damaged", contents=True)
        assert store.missing([cid, good]) == [cid]


def change(store: Store, directory: Path, cid: ChunkId, size: int) -> None:
    if size >= LARGE:
        overwrite(directory, cid, bytes(size))
    else:
        with store.lock:
            store.database.run(
                "UPDATE small SET data = zeroblob(?) WHERE id = ?", (size, cid)
            )


@pytest.mark.parametrize("size", [100, LARGE])
def test_scrub_deletes_damaged_objects_and_names_them(tmp_path, size, caplog):
    with checked_store(tmp_path) as store:
        bad, good = store.put(bytes_of(size)), store.put(bytes_of(size, 1))
        change(store, tmp_path, bad, size)
        step = store.scrub()
        assert (step.next, step.checked, step.damaged) == (None, 2, [bad])
        assert store.missing([bad, good]) == [bad]
        assert "damaged" in caplog.text


def test_scrub_in_steps_sees_every_object_once(tmp_path):
    with checked_store(tmp_path) as store:
        for i in range(300):
            store.put(bytes_of(LARGE if i % 10 == 0 else 1000, i))
        after, seen, seen_bytes, steps = START, 0, 0, 0
        while after is not None:
            step = store.scrub(after, budget_bytes=100_000)
            assert step.checked_bytes < 100_000 + LARGE
            seen, seen_bytes, steps = (
                seen + step.checked,
                seen_bytes + step.checked_bytes,
                steps + 1,
            )
            after = step.next
        assert (seen, seen_bytes) == (300, sum(size for _, size in store.objects()))
        assert steps > 10


def test_check_names_damage_of_the_database(tmp_path):
    with checked_store(tmp_path) as store:
        for i in range(200):
            store.put(bytes_of(4000, i))
    path = tmp_path / "small.db"
    data = bytearray(path.read_bytes())
    at = data.index(bytes_of(4000, 100)[2000:2100]) // 4096 * 4096
    for page in range(at, at + 40 * 4096, 4096):
        data[page : page + 16] = b"\xff" * 16
    path.write_bytes(data)
    store = Store.open(tmp_path, min_free_bytes=0)
    try:
        problems = []
        try:
            problems = [p.kind for p in store.check()]
        except Corrupt as error:
            assert "fsck" in str(error)
        assert problems[:1] in ([], ["database"])
    finally:
        store.close()


def test_store_of_a_newer_format_is_refused(tmp_path):
    with checked_store(tmp_path) as store, store.lock:
        store.database.run("PRAGMA user_version = 99")
    with pytest.raises(Corrupt, match="newer version"):
        Store.open(tmp_path)


def test_check_looks_again_before_it_calls_a_file_unindexed(tmp_path, monkeypatch):
    with checked_store(tmp_path) as store:
        store.put(bytes_of(LARGE))
        with monkeypatch.context() as patch:
            patch.setattr(store.index, "get_large", lambda cid: None)  # too early
            assert kinds(store) == []


def test_check_beside_a_writer_reports_nothing(tmp_path):
    with checked_store(tmp_path) as store, checked_store(tmp_path) as other:
        cid = store.put(bytes_of(LARGE))
        steps = other.check()
        store.put(bytes_of(LARGE, 1))
        store.delete(cid)
        assert list(steps) == []
        assert os.listdir(tmp_path / "objects" / "tmp") == []


@pytest.mark.parametrize("by_put", [True, False])
def test_killed_between_rename_and_row_the_next_makes_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_put: bool
) -> None:
    """The next: who puts an object, or who opens the store."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with checked_store(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(store.index, "put_large", killed)
            with pytest.raises(Killed):
                store.put(bytes_of(100_000))
        assert [p.kind for p in store.check(contents=False)] == ["unindexed"]
        if by_put:
            store.put(bytes_of(200_000))
        else:
            Store.open(tmp_path, min_free_bytes=0).close()
        assert list(store.check(contents=True)) == []


def full(*_: object) -> None:
    raise NoSpace("the store's disk is full")


@pytest.mark.parametrize("by_put", [True, False])
def test_no_room_for_removing_a_row_the_next_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_put: bool
) -> None:
    with checked_store(tmp_path) as store:
        cid = store.put(bytes_of(LARGE))
        with monkeypatch.context() as patch:
            patch.setattr(Index, "delete_large", full)
            with pytest.raises(NoSpace):
                store.delete(cid)
            Store.open(tmp_path, min_free_bytes=0).close()
            assert not store.has(cid)
        assert [p.kind for p in store.check(contents=False)] == ["row-without-file"]
        if by_put:
            store.put(bytes_of(LARGE, 1))
        else:
            Store.open(tmp_path, min_free_bytes=0).close()
        assert list(store.check(contents=True)) == []


# -- what the disk refuses --------------------------------------------------------


def directory_for(directory: Path, cid: ChunkId, *, empty: bool = False) -> None:
    """A directory stands where the object's file should be."""
    path = directory / "objects" / path_of(cid)
    path.unlink()
    path.mkdir()
    if not empty:
        (path / "x").touch()


def test_check_goes_on_behind_what_it_cannot_read_or_remove(tmp_path):
    with checked_store(tmp_path) as store:
        cids = sorted(store.put(bytes_of(LARGE, i)) for i in range(4))
        directory_for(tmp_path, cids[0])
        directory_for(tmp_path, cids[1], empty=True)
        overwrite(tmp_path, cids[2], bytes(LARGE))
        found = {(p.kind, p.repaired) for p in store.check(repair=True, contents=True)}
        assert found == {("unreadable", False), ("damaged", True)}
        assert store.missing(cids) == cids[1:3]
        (tmp_path / "objects" / path_of(cids[0]) / "x").unlink()
        assert kinds(store, repair=True, contents=True) == ["damaged"]


def test_check_finds_a_file_instead_of_a_directory_of_objects(tmp_path):
    with checked_store(tmp_path) as store:
        cid = store.put(bytes_of(LARGE))
        (tmp_path / "objects" / path_of(cid)).unlink()
        (tmp_path / "objects" / cid.hex()[:2]).rmdir()
        (tmp_path / "objects" / cid.hex()[:2]).touch()
        assert store.missing([cid]) == [cid]
        assert kinds(store, repair=True) == ["stray-file", "row-without-file"]
        assert store.put(bytes_of(LARGE)) == cid


def test_what_another_user_owns_is_reported_and_kept(tmp_path, monkeypatch):
    with checked_store(tmp_path) as store:
        cid = store.put(bytes_of(LARGE))

        def refuse(cid: ChunkId) -> int:
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patched:
            patched.setattr(store.files, "open", refuse)
            assert kinds(store, repair=True, contents=True) == ["unreadable"]
            with pytest.raises(Corrupt, match="Permission denied"):
                store.get(cid)
            assert store.scrub().damaged == []
        assert store.get(cid) == bytes_of(LARGE)


def test_a_scrub_goes_on_behind_what_it_cannot_remove(tmp_path):
    with checked_store(tmp_path) as store:
        cids = sorted(store.put(bytes_of(LARGE, i)) for i in range(3))
        directory_for(tmp_path, cids[0])
        overwrite(tmp_path, cids[1], bytes(LARGE))
        step = store.scrub()
        assert (step.next, step.checked, step.damaged) == (None, 3, cids[:2])
        (tmp_path / "objects" / path_of(cids[0]) / "x").unlink()
        assert store.scrub().damaged == cids[:1]


@pytest.mark.parametrize("number", [errno.EIO, errno.EPERM])
def test_a_damaged_file_that_cannot_be_removed_stops_nothing(
    tmp_path, monkeypatch, number
):
    """An inode that is bad, or immutable (chattr(1))."""
    with checked_store(tmp_path) as store:
        cids = sorted(store.put(bytes_of(LARGE, i)) for i in range(4))
    overwrite(tmp_path, cids[1], bytes(LARGE))
    overwrite(tmp_path, cids[2], bytes(LARGE))
    unlink = os.unlink

    def refuses(path, **options) -> None:
        if path == path_of(cids[1]):
            raise OSError(number, os.strerror(number))
        unlink(path, **options)

    with checked_store(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", refuses)
            with pytest.raises(ChunkMissing):
                store.get(cids[1])
            step = store.scrub()
            assert (step.next, step.checked) == (None, 4)
            assert step.damaged == [cids[1], cids[2]]
            problems = kinds(store, repair=True, contents=True)
            assert problems == ["unreadable"]
        assert store.scrub().damaged == [cids[1]]


def test_a_store_opens_with_a_directory_among_its_temporary_files(tmp_path):
    with checked_store(tmp_path):
        pass
    (tmp_path / "objects/tmp/x").mkdir()
    with checked_store(tmp_path, clock=lambda: 1e10):
        pass
