"""When garbage is collected, and with which grace."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusefs import housekeeping
from fusefs.errors import NoSpace, Unreachable
from fusefs.model.ids import ROOT_INO, ChunkId, NodeId, Seq, chunk_id
from fusefs.model.records import S_REG
from fusefs.namespace import Namespace
from fusefs.store import Store, gc
from fusefs.store.files import path_of
from fusefs.store.types import PUSHED, RESPONSIBLE


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A store with one named and one forgotten object, and its housekeeping."""
    namespace = Namespace.create(tmp_path, NodeId(1))
    store = Store.open(tmp_path)
    for name in ("SCARCE_EVERY_S", "SCARCE_GRACE_S", "LOOK_EVERY_S"):
        monkeypatch.setattr(housekeeping, name, 0.0)
    yield namespace, store
    assert namespace.problems() == []
    store.close()
    namespace.close()


def test_scarce_disk_lets_old_versions_go_at_once(kept, monkeypatch) -> None:
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "SCARCE_SHARE", 2.0)
    # Only the look below: without grace one takes what no transaction names yet.
    monkeypatch.setattr(housekeeping, "LOOK_EVERY_S", 3600.0)
    leased = threading.Event()
    house = housekeeping.Housekeeping(store, namespace, renew_leases=leased.set)
    monkeypatch.setattr(housekeeping.time, "time", lambda: 4e9)  # grace is over
    named, old = store.put(b"n" * 40_000), store.put(b"o" * 40_000)
    with namespace.transaction() as t:
        ino = t.new_ino(ROOT_INO, b"file", S_REG)
        t.create(ROOT_INO, b"file", ino, 0o100644, 0, 0)
        t.set_content(ino, size=40_000, root=named, chunk_log2=20, mtime_ns=t.now_ns)
    house._look()
    house.stop()
    assert leased.is_set()
    assert store.missing([named, old]) == [old]
    assert named == chunk_id(b"n" * 40_000)


def test_a_full_disk_is_a_line_of_the_log_and_no_traceback(
    kept, monkeypatch, caplog
) -> None:
    namespace, store = kept

    class Full:
        def sync(self) -> None:
            pass

        def checkpoint(self, at_least_bytes: int) -> None:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

        def close(self) -> None:
            pass

    monkeypatch.setattr(namespace, "_wal", Full())
    house = housekeeping.Housekeeping(store, namespace)
    with caplog.at_level("INFO"):
        house._do(house._sync)
    house.stop()
    ours = [r for r in caplog.records if r.thread == threading.get_ident()]
    assert [(r.levelname, r.exc_info) for r in ours] == [("INFO", None)]
    assert "full (meta.db)" in caplog.text


def test_roomy_disk_keeps_young_objects(kept, monkeypatch) -> None:
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "SCARCE_SHARE", 0.0)
    house = housekeeping.Housekeeping(store, namespace)
    monkeypatch.setattr(housekeeping.time, "time", lambda: 4e9)
    old = store.put(b"o" * 40_000)
    house._look()
    house.stop()
    assert store.missing([old]) == []


def test_what_was_cut_on_a_full_disk_goes_once_it_is_old_enough(
    kept, monkeypatch
) -> None:
    """Nothing is written any more, and a collection ran while it was too young."""
    namespace, store = kept
    for name, value in (("SCARCE_SHARE", 2.0), ("LOOK_EVERY_S", 3600.0)):
        monkeypatch.setattr(housekeeping, name, value)
    monkeypatch.setattr(housekeeping, "SCARCE_GRACE_S", 100.0)
    now = [1000.0]
    monkeypatch.setattr(housekeeping.time, "monotonic", lambda: now[0])
    house = housekeeping.Housekeeping(store, namespace)
    root = store.put(b"n" * 40_000)
    with namespace.transaction() as t:
        ino = t.new_ino(ROOT_INO, b"file", S_REG)
        t.create(ROOT_INO, b"file", ino, 0o100644, 0, 0)
        t.set_content(ino, size=40_000, root=root, chunk_log2=20, mtime_ns=t.now_ns)
    house._look()
    with namespace.transaction() as t:
        t.set_content(ino, size=0, root=b"", chunk_log2=20, mtime_ns=t.now_ns)
    began_s = housekeeping.time.time()
    for later_s in (0, 60, 99, 101, 160):
        now[0] = 1000.0 + later_s
        monkeypatch.setattr(
            housekeeping.time, "time", lambda later_s=later_s: began_s + later_s
        )
        house._look()
        assert store.missing([root]) == ([root] if later_s > 100 else [])
    runs = house._runs
    now[0] += 1000.0
    house._look()
    assert house._runs == runs, "nothing changed: there is nothing to collect"
    house.stop()


def test_a_small_disk_is_scarce_when_writes_are_about_to_be_refused(
    kept, monkeypatch
) -> None:
    """With min_free, a tenth of the disk may never be reached."""
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "SCARCE_SHARE", 0.0)
    house = housekeeping.Housekeeping(store, namespace)
    found = store.statistics()
    monkeypatch.setattr(store.space, "min_free_bytes", found.free_bytes)
    assert house._is_scarce()
    monkeypatch.setattr(store.space, "min_free_bytes", found.free_bytes // 3)
    assert not house._is_scarce()
    house.stop()


def test_a_refused_write_has_what_was_written_here_collected_soon(
    kept, monkeypatch
) -> None:
    namespace, store = kept
    for name, value in (("SCARCE_SHARE", 2.0), ("LOOK_EVERY_S", 3600.0)):
        monkeypatch.setattr(housekeeping, name, value)
    monkeypatch.setattr(housekeeping, "SCARCE_GRACE_S", 3600.0)
    house = housekeeping.Housekeeping(store, namespace)
    house.stop()
    own, small = store.put(b"o" * 40_000), store.put(b"s" * 4000)
    of_peer = chunk_id(b"p" * 40_000)
    store.put_verified(of_peer, b"p" * 40_000, RESPONSIBLE)
    everything = [own, small, of_peer]
    later_s = housekeeping.time.time() + housekeeping.FULL_GRACE_S + 2
    house._make_room()
    assert house._runs == 0, "nothing was refused"
    with pytest.raises(NoSpace):
        store.require_space(1 << 60)
    house._make_room()
    assert store.missing(everything) == [], "it may still be named"
    monkeypatch.setattr(housekeeping.time, "time", lambda: later_s)
    house._make_room()
    assert store.missing(everything) == [], "nothing was refused since"
    with pytest.raises(NoSpace):
        store.require_space(1 << 60)
    house._make_room()
    assert store.missing(everything) == [own]


def test_what_replaced_a_version_is_on_disk_before_that_goes(kept, monkeypatch) -> None:
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "LOOK_EVERY_S", 3600.0)
    house = housekeeping.Housekeeping(store, namespace)
    house.stop()
    old = store.put(b"o" * 40_000)
    happened: list[str] = []
    delete_older = store.delete_older

    def deleting(*words: object, **more: object) -> bool:
        happened.append("delete")
        return delete_older(*words, **more)

    monkeypatch.setattr(store, "delete_older", deleting)
    monkeypatch.setattr(store, "sync_all", lambda: happened.append("chunks"))
    monkeypatch.setattr(namespace, "sync", lambda: happened.append("registers"))
    monkeypatch.setattr(housekeeping.time, "time", lambda: 4e9)
    house._collect(1.0)
    monkeypatch.undo()
    assert happened == ["chunks", "registers", "delete"]
    assert store.missing([old]) == [old]


def test_a_long_collection_does_not_keep_writes_from_the_disk(
    kept, monkeypatch
) -> None:
    namespace, store = kept
    synced: list[int] = []
    ended = threading.Event()

    def long(*_: object, pause: Callable[[], None], **more: object) -> gc.Collected:
        before = len(synced)
        while len(synced) == before:
            pause()
        ended.set()
        return gc.Collected(0, 0, 0, 0)

    monkeypatch.setattr(gc, "collect", long)
    monkeypatch.setattr(namespace, "sync", lambda: synced.append(1))
    monkeypatch.setattr(housekeeping, "SYNC_EVERY_S", 0.01)
    monkeypatch.setattr(housekeeping, "SCARCE_SHARE", 2.0)
    house = housekeeping.Housekeeping(store, namespace)
    found = ended.wait(10)
    house.stop()
    assert found


def test_a_collection_goes_on_when_an_index_has_no_room(kept, monkeypatch) -> None:
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "LOOK_EVERY_S", 3600.0)
    house = housekeeping.Housekeeping(store, namespace)
    house.stop()
    old = [store.put(bytes((n,)) * 40_000) for n in range(3)]
    restarts: list[int] = []
    delete_large = store.index.delete_large

    def without_room(cid: ChunkId) -> None:
        if not restarts:
            raise NoSpace("the disk is full (small.db)")
        delete_large(cid)

    monkeypatch.setattr(store.index, "delete_large", without_room)
    checkpoint = store.database.checkpoint

    def noting(*at_least_bytes: int) -> None:
        if at_least_bytes == (0,):
            restarts.append(1)
        checkpoint(*at_least_bytes)

    monkeypatch.setattr(store.database, "checkpoint", noting)
    monkeypatch.setattr(housekeeping.time, "time", lambda: 4e9)
    house._collect(1.0)
    monkeypatch.undo()
    assert store.missing(old) == old


def test_a_full_disk_is_synced_all_the_same(kept, monkeypatch) -> None:
    """Where a reader opens files meanwhile, their times find no room each time."""
    namespace, store = kept
    house = housekeeping.Housekeeping(store, namespace)
    house.stop()
    cid = store.put(b"n" * 40_000)
    synced: list[int] = []

    def full(*_: object) -> None:
        raise NoSpace("the store's disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(namespace, "sync", lambda: synced.append(1))
        patch.setattr(namespace, "fold", full)
        for name in ("used", "set_state"):
            patch.setattr(store.index, name, full)
        for _ in range(3):
            store._used[cid] = 1
            house._do(house._sync)
        assert len(synced) == 3
        assert store.statistics().unsynced == 0


@pytest.mark.parametrize("share", [0.0, 2.0])
def test_logs_are_moved_while_there_is_room_for_what_they_hold(
    kept, monkeypatch, share: float
) -> None:
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "SCARCE_SHARE", share)
    monkeypatch.setattr(store.space, "min_free_bytes", 0)
    house = housekeeping.Housekeeping(store, namespace)
    house.stop()
    store.put(b"n" * 30_000)
    with namespace.transaction() as t:
        for number in range(200):
            ino = t.new_ino(ROOT_INO, b"%d" % number, S_REG)
            t.create(ROOT_INO, b"%d" % number, ino, 0o100644, 0, 0)
    paths = [namespace.path.parent / name for name in ("meta.db", "small.db")]
    before = [path.stat().st_size for path in paths]
    house._sync()
    grown = [path.stat().st_size > size for path, size in zip(paths, before)]
    assert grown == [bool(share)] * 2


@pytest.mark.parametrize("share", [0.0, 2.0])
def test_what_small_files_took_goes_back_to_a_scarce_disk(
    kept, monkeypatch, share: float
) -> None:
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "SCARCE_SHARE", share)
    monkeypatch.setattr(store.space, "min_free_bytes", 0)
    house = housekeeping.Housekeeping(store, namespace)
    for number in range(300):
        store.put(b"%d" % number * 5000)
    store.database.checkpoint(0)
    for cid, _ in list(store.objects()):
        store.delete(cid)
    house._shrink()
    house.stop()
    size = (namespace.path.parent / "small.db").stat().st_size
    assert (size < 2 << 20) is bool(share)


def test_garbage_goes_although_a_manifest_is_kept_by_others_only(
    kept, monkeypatch
) -> None:
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "LOOK_EVERY_S", 3600.0)
    chunks = [store.put(bytes((n,)) * 4096) for n in range(2)]
    node = b"".join(chunks)
    root = chunk_id(node)
    with namespace.transaction() as t:
        ino = t.new_ino(ROOT_INO, b"file", S_REG)
        t.create(ROOT_INO, b"file", ino, 0o100644, 0, 0)
        t.set_content(ino, size=8192, root=root, chunk_log2=12, mtime_ns=t.now_ns)
    garbage = store.put(b"o" * 40_000)
    asked: list[bytes] = []
    reachable = False

    def fetch(cid: ChunkId, cancelled: Callable[[], bool]) -> None:
        asked.append(cid)
        if not reachable:
            raise Unreachable("no peer has it")
        store.put_verified(cid, node)

    house = housekeeping.Housekeeping(store, namespace, fetch=fetch)
    for clock in ((housekeeping.time, "time"), (store, "_clock")):
        monkeypatch.setattr(*clock, lambda: 4e9)  # grace is over for what is here
    house._collect(1.0)
    assert (asked, store.missing([garbage])) == ([root], [])
    reachable = True
    house._collect(1.0)
    house.stop()
    assert asked == [root, root]
    assert store.missing([*chunks, root, garbage]) == [garbage]


def test_a_collection_without_peers_does_not_ask_for_every_manifest(
    kept, monkeypatch
) -> None:
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "LOOK_EVERY_S", 3600.0)
    store.put(b"o" * 40_000)
    for number in range(10):
        with namespace.transaction() as t:
            ino = t.new_ino(ROOT_INO, b"%d" % number, S_REG)
            t.create(ROOT_INO, b"%d" % number, ino, 0o100644, 0, 0)
            root = chunk_id(b"%d" % number)
            t.set_content(ino, size=8192, root=root, chunk_log2=12, mtime_ns=t.now_ns)
    asked: list[bytes] = []

    def fetch(cid: ChunkId, cancelled: Callable[[], bool]) -> None:
        asked.append(cid)
        raise Unreachable("no peer has it")

    house = housekeeping.Housekeeping(store, namespace, fetch=fetch)
    monkeypatch.setattr(housekeeping.time, "time", lambda: 4e9)
    house._collect(0.0)
    house.stop()
    assert len(asked) == housekeeping.MOST_FAILURES


@pytest.mark.parametrize("why", ["held", "aside/name-date/meta.db"])
def test_what_is_kept_for_files_not_known_yet_stays(
    kept, monkeypatch, why: str
) -> None:
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "LOOK_EVERY_S", 3600.0)
    house = housekeeping.Housekeeping(store, namespace)
    monkeypatch.setattr(housekeeping.time, "time", lambda: 4e9)
    cids = [store.put(bytes((n,)) * 40_000, pushed=False) for n in range(3)]
    store.set_flags(cids[:1], set_=RESPONSIBLE)
    store.set_flags(cids[1:2], set_=PUSHED)
    reason = namespace.path.parent / why
    reason.parent.mkdir(parents=True, exist_ok=True)
    reason.touch()
    house._collect(1.0)
    assert store.missing(cids) == cids[2:]
    reason.unlink()
    house._collect(1.0)
    house.stop()
    assert store.missing(cids) == cids


def test_copies_that_came_while_their_registers_come_stay(kept, monkeypatch) -> None:
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "LOOK_EVERY_S", 3600.0)
    house = housekeeping.Housekeeping(store, namespace)
    house.stop()
    now_s = time.time()
    old, young = (store.put(bytes((n,)) * 40_000, pushed=False) for n in range(2))
    store.set_flags((old, young), set_=RESPONSIBLE)
    times = (now_s + 1500, now_s + 1500)
    os.utime(namespace.path.parent / "objects" / path_of(young), times)
    target = {NodeId(2): Seq(5)}
    namespace.apply_states([], {}, target)
    with monkeypatch.context() as later:
        later.setattr(housekeeping.time, "time", lambda: now_s + 1000)
        house._sync()
        later.setattr(housekeeping.time, "time", lambda: now_s + 5000)
        house._collect(120.0)
        assert store.missing([old, young]) == [old], "the disk may be full"
        namespace.apply_states([], target)
        house._collect(120.0)
    assert store.missing([young]) == [young]
