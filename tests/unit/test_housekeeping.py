"""When garbage is collected, and with which grace."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fusefs import housekeeping
from fusefs.model.ids import ROOT_INO, NodeId, chunk_id
from fusefs.model.records import S_REG
from fusefs.namespace import Namespace
from fusefs.store import Store


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


def test_roomy_disk_keeps_young_objects(kept, monkeypatch) -> None:
    namespace, store = kept
    monkeypatch.setattr(housekeeping, "SCARCE_SHARE", 0.0)
    house = housekeeping.Housekeeping(store, namespace)
    monkeypatch.setattr(housekeeping.time, "time", lambda: 4e9)
    old = store.put(b"o" * 40_000)
    house._look()
    house.stop()
    assert store.missing([old]) == []
