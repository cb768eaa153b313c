"""A damaged small.db is made anew with all that can be read of it."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fusefs.model.ids import ChunkId
from fusefs.store import PUSHED, Store, files, salvage
from fusefs.store.types import RESPONSIBLE
from tests.lib.stores import bytes_of, checked_store

SIZES = (0, 1, 30, 900, 4050, 4061, 4062, 9000, 20_000, 32_767, 40_000)
PAGE = salvage.PAGE_BYTES


def filled(directory: Path, count: int = 150) -> dict[ChunkId, int]:
    """A store of objects of all sizes, some removed again; their flags."""
    rng = random.Random(count)
    with checked_store(directory) as store:
        cids = [store.put(bytes_of(rng.choice(SIZES), n)) for n in range(count)]
        store.set_flags(cids[::3], set_=RESPONSIBLE, clear=PUSHED)
        for cid in set(cids[::10]):
            store.delete(cid)
        return {cid: store.flags(cid) for cid, _ in store.objects()}


def overwrite(path: Path, *pages: int) -> None:
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(random.Random(page).randbytes(PAGE))


def made_anew(directory: Path, flags: dict[ChunkId, int]) -> list[ChunkId]:
    """What is missing; the rest is as it was."""
    salvage.rebuild(directory)
    assert salvage.damage(directory / "small.db") == ""
    with checked_store(directory) as store:
        missing = store.missing(flags)
        for cid in flags.keys() - set(missing):
            assert store.flags(cid) == flags[cid]
        return missing


def test_nothing_is_lost_with_the_first_page(tmp_path):
    flags = filled(tmp_path)
    overwrite(tmp_path / "small.db", 1)
    assert salvage.damage(tmp_path / "small.db") == "file is not a database"
    assert made_anew(tmp_path, flags) == []
    assert (tmp_path / salvage.DAMAGED).exists()


@pytest.mark.parametrize("seed", range(6))
def test_only_what_is_in_damaged_pages_is_lost(tmp_path, seed):
    flags = filled(tmp_path)
    pages = (tmp_path / "small.db").stat().st_size // PAGE
    chosen = random.Random(seed).sample(range(1, pages + 1), 3)
    overwrite(tmp_path / "small.db", *chosen)
    assert len(made_anew(tmp_path, flags)) <= 36  # a page may have a dozen


def test_what_is_in_the_log_alone_is_kept(tmp_path):
    live, copy = tmp_path / "live", tmp_path / "copy"
    live.mkdir()
    with checked_store(live) as store:
        cids = [store.put(bytes_of(n * 100, n)) for n in range(100)]
        shutil.copytree(live, copy)
    (copy / "small.db-shm").unlink()
    overwrite(copy / "small.db", 1)
    assert made_anew(copy, dict.fromkeys(cids, PUSHED)) == []
    with sqlite3.connect(copy / "small.db") as database:
        assert database.execute("SELECT count(*) FROM small").fetchone() == (100,)
    database.close()


def test_garbage_gives_no_objects(tmp_path):
    filled(tmp_path, 3)
    path = tmp_path / "small.db"
    for kind in (b"\x02", b"\x0a", b"\x0d"):
        path.write_bytes(
            b"".join(kind + os.urandom(PAGE - 1) for _ in range(64)) + b"half a page"
        )
        salvage.rebuild(tmp_path)
        store = Store.open(tmp_path, min_free_bytes=0)
        assert list(store.objects()) == []
        store.close()


@pytest.mark.parametrize("emptied", [True, False])
def test_what_a_lost_database_knew_is_looked_for_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, emptied: bool
) -> None:
    with closing(Store.open(tmp_path)) as store:
        assert store.lost_s() is None
        large = store.put(bytes_of(40_000, 1))
    (tmp_path / "small.db").unlink()
    if emptied:
        (tmp_path / "small.db").touch()
    with closing(Store.open(tmp_path)) as store:
        assert store.lost_s() is not None
        assert store.get(large) == bytes_of(40_000, 1)
    assert "small.db was gone" in caplog.text


def test_two_processes_that_make_a_store_have_lost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unannounced warning fails the test."""
    make_fan_out = files._make_fan_out

    def make_it_slowly(directory: Path) -> None:
        make_fan_out(directory)
        monkeypatch.undo()
        with closing(Store.open(tmp_path)) as other:
            assert other.lost_s() is None

    monkeypatch.setattr(files, "_make_fan_out", make_it_slowly)
    with closing(Store.open(tmp_path)) as store:
        assert store.lost_s() is None


def test_a_database_of_a_newer_program_is_left_alone(tmp_path):
    filled(tmp_path, 3)
    database = sqlite3.connect(tmp_path / "small.db")
    database.executescript("DROP TABLE small; PRAGMA user_version = 3")
    database.close()
    assert salvage.damage(tmp_path / "small.db") == ""
