"""fsync, the background sync, and what a power cut or a killed process leaves."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fusefs.errors import ChunkMissing
from fusefs.model.ids import ChunkId, NodeId, chunk_id
from fusefs.namespace import Namespace, schema
from fusefs.store import Store, files, sidefiles
from fusefs.store import database as database_module
from fusefs.store import objects as objects_module
from fusefs.store import wal as wal_module
from fusefs.store.files import path_of
from fusefs.store.suspects import window_start
from tests.lib.stores import Clock, bytes_of, checked_store

LARGE = 40_000


@pytest.fixture
def synced(monkeypatch):
    """The inodes fdatasync and fsync were called for, and "all" for syncfs."""
    calls: list[object] = []

    def record(name):
        real = getattr(os, name)

        def call(fd):
            calls.append(os.fstat(fd).st_ino)
            real(fd)

        monkeypatch.setattr(os, name, call)

    record("fdatasync")
    record("fsync")
    real = files.Files.sync_filesystem

    def whole(self):
        calls.append("all")
        real(self)

    monkeypatch.setattr(files.Files, "sync_filesystem", whole)
    return calls


def inode(store: Store, path: str) -> int:
    return os.stat(path, dir_fd=store.files.fd).st_ino


def wal(directory: Path) -> int:
    return (directory / "small.db-wal").stat().st_ino


def damage(store_directory: Path, cid: ChunkId, mtime_s: float) -> None:
    """What a power cut does to a file that was renamed and not synced."""
    path = store_directory / "objects" / path_of(cid)
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, (mtime_s, mtime_s))


def test_sync_syncs_file_and_directory_once(tmp_path, synced):
    with checked_store(tmp_path) as store:
        cid, other = store.put(bytes_of(LARGE)), store.put(bytes_of(LARGE, 1))
        synced.clear()
        store.sync([cid])
        path = path_of(cid)
        assert synced == [inode(store, path), inode(store, path[:2])]
        synced.clear()
        store.sync([cid])
        assert synced == []
        store.sync([other])
        assert inode(store, path_of(other)) in synced


def test_sync_of_a_small_object_syncs_the_wal_once(tmp_path, synced):
    with checked_store(tmp_path) as store:
        cid = store.put(b"small")
        synced.clear()
        store.sync([cid])
        assert synced == [wal(tmp_path)]
        store.sync([cid])
        assert synced == [wal(tmp_path)]
        store.put_many([(chunk_id(b"x"), b"x")])
        store.sync([chunk_id(b"x")])
        assert synced == [wal(tmp_path)] * 2


def test_sync_after_another_process_wrote_it_syncs_it_here(tmp_path, synced):
    data = bytes_of(LARGE)
    with checked_store(tmp_path) as node, checked_store(tmp_path) as worker:
        cid = node.put(data)
        worker.put(data)
        worker.put(b"small")
        node.put(b"small")
        synced.clear()
        worker.sync([cid])
        assert inode(worker, path_of(cid)) in synced
        assert wal(tmp_path) in synced


def test_sync_of_many_objects_is_one_sync(tmp_path, synced):
    with checked_store(tmp_path) as store:
        cids = [store.put(bytes_of(LARGE, i)) for i in range(40)]
        synced.clear()
        store.sync(cids)
        assert synced == ["all"]
        store.sync(cids)
        assert synced == ["all"]


def test_sync_of_a_removed_object_is_an_error(tmp_path):
    with checked_store(tmp_path) as store, checked_store(tmp_path) as other:
        cid = store.put(bytes_of(LARGE))
        other.delete(cid)
        with pytest.raises(ChunkMissing):
            store.sync([cid])


def test_sync_all_leaves_nothing_to_sync(tmp_path, synced):
    with checked_store(tmp_path) as store:
        cids = [store.put(bytes_of(LARGE)), store.put(b"small")]
        synced.clear()
        store.sync_all()
        assert synced == ["all", wal(tmp_path)]
        store.sync(cids)
        store.sync_all()
        assert synced == ["all", wal(tmp_path)]
        assert store.statistics().unsynced == 0


def test_object_written_during_a_sync_stays_unsynced(tmp_path, monkeypatch):
    with checked_store(tmp_path) as store:
        data = bytes_of(LARGE)
        cid = store.put(data)
        real = files.Files.sync_filesystem

        def during(self):
            real(self)
            store.put(data)

        with monkeypatch.context() as patch:
            patch.setattr(files.Files, "sync_filesystem", during)
            store.sync_all()
        assert store.statistics().unsynced == 1
        store.sync([cid])
        assert store.statistics().unsynced == 0


def test_power_cut_damaged_object_is_missing_and_can_be_stored_again(tmp_path, caplog):
    data, clock = bytes_of(LARGE), Clock()
    with checked_store(tmp_path, clock=clock) as store:
        cid = store.put(data)
    damage(tmp_path, cid, clock.now_s + 5)
    with checked_store(tmp_path, clock=clock, power_cut=True) as store:
        assert store.missing([cid]) == []  # nobody has looked at it yet
        with pytest.raises(ChunkMissing):
            store.get(cid)
        assert "damaged" in caplog.text
        assert store.missing([cid]) == [cid]
        store.put_verified(cid, data)
        assert store.get(cid) == data


def test_power_cut_damaged_object_is_missing_for_read_into(tmp_path):
    clock = Clock()
    with checked_store(tmp_path, clock=clock) as store:
        cid = store.put(bytes_of(LARGE))
    damage(tmp_path, cid, clock.now_s + 5)
    with (
        checked_store(tmp_path, clock=clock, power_cut=True) as store,
        pytest.raises(ChunkMissing),
    ):
        store.read_into(cid, 0, memoryview(bytearray(10)))


def test_power_cut_damaged_object_is_replaced_by_a_put(tmp_path):
    data, clock = bytes_of(LARGE), Clock()
    with checked_store(tmp_path, clock=clock) as store:
        cid = store.put(data)
    damage(tmp_path, cid, clock.now_s + 5)
    with checked_store(tmp_path, clock=clock, power_cut=True) as store:
        store.put(data)
        assert store.get(cid) == data


def test_what_was_stored_before_is_hashed_once_whether_synced_or_not(
    tmp_path, monkeypatch
):
    clock = Clock()
    with checked_store(tmp_path, clock=clock) as store:
        old = store.put(bytes_of(LARGE))
        clock.now_s += 100
        store.sync_all()
        new = store.put(bytes_of(LARGE, 1))
    os.utime(tmp_path / "objects" / path_of(old), (clock.now_s - 50,) * 2)
    os.utime(tmp_path / "objects" / path_of(new), (clock.now_s + 1,) * 2)
    hashed = []
    real = chunk_id
    monkeypatch.setattr(
        objects_module, "chunk_id", lambda data: hashed.append(real(data)) or real(data)
    )
    with checked_store(tmp_path, clock=clock, power_cut=True) as store:
        for cid in (old, new):
            store.get(cid)
            store._descriptors.clear()
            store.get(cid)
        assert hashed == [old, new]


def test_suspicion_outlives_a_restart_until_all_were_looked_at(tmp_path):
    clock = Clock()
    with checked_store(tmp_path, clock=clock) as store:
        good, bad = store.put(bytes_of(LARGE)), store.put(bytes_of(LARGE, 1))
    damage(tmp_path, bad, clock.now_s + 5)
    os.utime(tmp_path / "objects" / path_of(good), (clock.now_s + 5,) * 2)
    Store.open(tmp_path, clock=clock, power_cut=True).close()
    clock.now_s += 1000
    with checked_store(tmp_path, clock=clock) as store:
        assert store.suspects.since_s is not None
        assert store.check_suspects() == [bad]
        assert store.suspects.since_s is None
        assert store.get(good) == bytes_of(LARGE)
        assert store.check_suspects() == []
    with checked_store(tmp_path, clock=clock) as store:
        assert store.suspects.since_s is None


def test_window_of_suspicion_reaches_back_to_the_first_power_cut():
    assert window_start(None, None) == 0.0
    assert window_start(100.0, None) == 98.0
    assert window_start(100.0, 40.0) == 40.0
    assert window_start(20.0, 40.0) == 18.0


def test_open_removes_old_leftovers_and_keeps_a_running_write(tmp_path):
    Store.open(tmp_path).close()
    old, young = tmp_path / "objects/tmp/old", tmp_path / "objects/tmp/young"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    with checked_store(tmp_path):
        assert not old.exists()
        assert young.exists()


WRITER = """
import os, sys
from pathlib import Path
from fusefs.store import Store
store = Store.open(Path(sys.argv[1]), min_free_bytes=0)
n = 0
while True:
    for size in (200, 5000, 40000):
        store.put(b"%d" % n + bytes(size))
        n += 1
    print(n, flush=True)
"""


def test_killed_writer_loses_nothing_it_had_stored(tmp_path):
    for attempt in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": "."},
        )
        assert writer.stdout
        for _ in range(5 + attempt * 7):
            count = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        count = int([count, *writer.stdout.read().split()][-1])
        writer.wait()
        with checked_store(tmp_path) as store:
            left = list(store.check(repair=True, contents=True))
            assert {problem.kind for problem in left} <= {"unindexed"}
            for n in range(count):
                data = b"%d" % n + bytes((200, 5000, 40000)[n % 3])
                assert store.get(chunk_id(data)) == data


def test_checkpoint_restarts_the_wal_that_a_writer_kept_ahead_of(tmp_path, monkeypatch):
    with checked_store(tmp_path) as store:
        for i in range(300):
            store.put(bytes_of(20_000, i))
        real = wal_module.moved

        def moved(connection, mode):
            return 5000 if mode == "PASSIVE" else real(connection, mode)

        with monkeypatch.context() as patch:
            patch.setattr(wal_module, "moved", moved)
            store.database.checkpoint(at_least_bytes=1 << 20)
        store.put(b"the first of the new beginning")
        pages = store.database.one("PRAGMA wal_checkpoint(PASSIVE)")
        assert pages and pages[1] < 100


def test_checkpoint_shortens_a_long_wal_and_keeps_everything(tmp_path):
    with checked_store(tmp_path) as store, checked_store(tmp_path) as other:
        cids = [store.put(bytes_of(20_000, i)) for i in range(300)]
        pages = store.database.one("PRAGMA wal_checkpoint(PASSIVE)")
        assert pages and pages[1] > 1500
        store.database.checkpoint(at_least_bytes=1 << 20)
        store.put(b"the first of the new beginning")
        pages = store.database.one("PRAGMA wal_checkpoint(PASSIVE)")
        assert pages and pages[1] < 100
        assert [len(other.get(cid)) for cid in cids] == [20_000] * 300


def test_sync_covers_what_a_killed_predecessor_wrote(tmp_path, synced):
    with checked_store(tmp_path) as store:
        cid, small = store.put(bytes_of(LARGE)), store.put(b"small")
    with checked_store(tmp_path) as store:
        store.inherit()
        synced.clear()
        store.sync([cid, small])
        assert synced == ["all", wal(tmp_path)]
        store.sync([cid, small])
        assert synced == ["all", wal(tmp_path)]


def test_power_cut_rows_and_files_agree_after_the_suspects_were_looked_at(tmp_path):
    """The disk had one row without its file, and one file without its row."""
    store = Store.open(tmp_path, min_free_bytes=0)
    gone, left = (store.put(bytes_of(100_000, seed)) for seed in (1, 2))
    store.files.unlink(path_of(gone))
    store.index.delete_large(left)
    store.close()
    with checked_store(tmp_path, power_cut=True) as store:
        found = {problem.kind for problem in store.check(contents=False)}
        assert found == {"row-without-file", "unindexed"}
        assert store.check_suspects() == []
        assert list(store.check(contents=True)) == []
        assert store.get(left) == bytes_of(100_000, 2)


@pytest.mark.parametrize("name", ["small.db", "meta.db"])
def test_a_wal_that_grew_behind_a_reader_is_cut(
    tmp_path: Path, monkeypatch, name: str
) -> None:
    """One that is long is read at each start after a crash, and fills the disk."""
    for module in (database_module, schema):
        monkeypatch.setattr(module, "LONGEST_BYTES", 1 << 20)
    wal = tmp_path / f"{name}-wal"
    namespace = Namespace.create(tmp_path, NodeId(1))
    with checked_store(tmp_path) as store:

        def write(number: int) -> None:
            store.put(b"%d" % number * 3000)
            with namespace.transaction() as t:
                t.put_setting(b"x", bytes(4096) + b"%d" % number)

        reader = sqlite3.connect(tmp_path / name)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        for number in range(200):
            write(number)
        assert wal.stat().st_size > 2 << 20
        reader.close()
        store.database.checkpoint(0)
        namespace._wal.checkpoint(0)
        write(200)
        assert wal.stat().st_size <= 1 << 20
        namespace.close()


def test_side_files_stay_while_they_are_kept(tmp_path: Path) -> None:
    """On a full disk there is no room to make them again."""

    def use() -> None:
        Namespace.open(tmp_path).close()
        with checked_store(tmp_path) as store:
            store.put(b"data")

    names = [
        f"{name}-{kind}" for name in sidefiles.DATABASES for kind in ("wal", "shm")
    ]
    Namespace.create(tmp_path, NodeId(1)).close()
    use()
    assert not any((tmp_path / name).exists() for name in names)
    kept = sidefiles.SideFiles(tmp_path)
    kept.keep()
    for _ in range(2):
        use()
        assert all((tmp_path / name).exists() for name in names)
    kept.let_go()
    assert not any((tmp_path / name).exists() for name in names)
