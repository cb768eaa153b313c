"""Names that are looked up in order are read in strides, and stay true."""

from __future__ import annotations

from pathlib import Path

from fusefs.model.ids import ROOT_INO, Ino, NodeId
from fusefs.model.records import S_DIR, S_REG
from fusefs.namespace import Namespace

COUNT = 300


def create(namespace: Namespace, name: bytes) -> Ino:
    with namespace.transaction() as t:
        ino = t.new_ino(ROOT_INO, name, S_REG)
        t.create(ROOT_INO, name, ino, 0o100644, 0, 0)
    return ino


def filled(tmp_path: Path) -> tuple[Namespace, dict[bytes, Ino], list[str]]:
    namespace = Namespace.create(tmp_path, NodeId(1))
    made = {b"f%03d" % n: create(namespace, b"f%03d" % n) for n in range(COUNT)}
    namespace.drop_caches()
    queries: list[str] = []
    for db in (namespace._reader, namespace._writer):
        db.set_trace_callback(queries.append)
    return namespace, made, queries


def test_in_order_a_query_serves_many(tmp_path: Path) -> None:
    namespace, made, queries = filled(tmp_path)
    for name, ino in made.items():
        entry, row = namespace.entry(ROOT_INO, name), namespace.inode(ino)
        assert entry and entry.ino == ino and row and row.ino == ino
    assert len(queries) < 12
    assert namespace.entry(ROOT_INO, b"f999") is None


def test_in_any_other_order_only_what_is_asked_is_read(tmp_path: Path) -> None:
    namespace, made, queries = filled(tmp_path)
    for name in reversed(made):
        assert namespace.entry(ROOT_INO, name)
    assert len(queries) == COUNT
    assert len(namespace._entries) == COUNT


def test_what_was_read_ahead_follows_changes(tmp_path: Path) -> None:
    namespace, made, _ = filled(tmp_path)
    for number in range(8):
        namespace.entry(ROOT_INO, b"f%03d" % number)
    with namespace.transaction() as t:
        t.unlink(ROOT_INO, b"f010")
    assert namespace.entry(ROOT_INO, b"f010") is None
    new = create(namespace, b"f010x")
    found = namespace.entry(ROOT_INO, b"f010x")
    assert found and found.ino == new
    assert namespace.entry(ROOT_INO, b"absent") is None
    there = create(namespace, b"absent")
    found = namespace.entry(ROOT_INO, b"absent")
    assert found and found.ino == there and there not in made.values()


def test_name_that_comes_and_goes_within_a_transaction_is_gone(tmp_path: Path) -> None:
    namespace = Namespace.create(tmp_path, NodeId(1))
    with namespace.transaction() as t:
        ino = t.new_ino(ROOT_INO, b"name", S_REG)
        t.create(ROOT_INO, b"name", ino, 0o100644, 0, 0)
        t.add_link(ino, ROOT_INO, b"other")
        t.unlink(ROOT_INO, b"name")
    passing = [c.new for c in t.effects.entries if c.name == b"name"]
    assert passing == [ino, 0], "it is no test otherwise"
    assert namespace.entry(ROOT_INO, b"name") is None
    found = namespace.entry(ROOT_INO, b"other")
    assert found and found.ino == ino


def test_an_exchange_brings_nothing_back_for_a_moment(tmp_path: Path) -> None:
    """Between its halves one of both has no name: derived the general way, as after
    what a peer did, it came back under one that was removed."""
    namespace = Namespace.create(tmp_path, NodeId(1))
    first = create(namespace, b"first")
    with namespace.transaction() as t:
        below = t.new_ino(ROOT_INO, b"below", S_DIR)
        t.create(ROOT_INO, b"below", below, 0o40755, 0, 0)
        other = t.new_ino(below, b"other", S_REG)
        t.create(below, b"other", other, 0o100644, 0, 0)
    with namespace.transaction() as t:
        t.set_content(first, size=1, root=b"r" * 32, chunk_log2=20, mtime_ns=1)
        t.add_link(first, ROOT_INO, b"second")
    with namespace.transaction() as t:
        t.unlink(ROOT_INO, b"first")
    namespace._warm.clear()
    with namespace.transaction() as t:
        t.exchange(below, b"other", ROOT_INO, b"second")
    assert {c.name for c in t.effects.entries} == {b"other", b"second"}
    assert namespace.entry(ROOT_INO, b"first") is None
    assert namespace.shown(below, b"other") == first
    assert namespace.shown(ROOT_INO, b"second") == other
