"""Inodes and bytes are known without counting them, in stores of both versions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fusefs.errors import Corrupt
from fusefs.model.ids import ROOT_INO, Ino, NodeId
from fusefs.model.records import S_REG
from fusefs.namespace import namespace as module
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.totals import Totals


def make(node: Namespace, name: bytes, size: int) -> Ino:
    with node.transaction() as t:
        ino = t.new_ino(ROOT_INO, name, S_REG)
        t.create(ROOT_INO, name, ino, 0o100644, 0, 0)
        t.set_content(ino, size=size, root=b"r" * 32, chunk_log2=20, mtime_ns=1)
    return ino


def without_totals(directory: Path) -> None:
    """What a program before them left."""
    with sqlite3.connect(directory / "meta.db") as db:
        for column in ("inodes", "bytes"):
            db.execute(f"ALTER TABLE digest_delta DROP COLUMN {column}")
            db.execute("DELETE FROM meta WHERE key = ?", (column,))
    db.close()


def test_they_follow_every_change_folded_or_not(tmp_path: Path) -> None:
    node = Namespace.create(tmp_path, NodeId(1))
    assert node.totals() == Totals(1, 0)
    ino = make(node, b"a", 1000)
    make(node, b"b", 50)
    assert node.totals() == Totals(3, 1050)
    node.buckets()  # folds
    assert node.totals() == Totals(3, 1050)
    with node.transaction() as t:
        t.set_content(ino, size=10, root=b"s" * 32, chunk_log2=20, mtime_ns=1)
    with node.transaction() as t:
        t.unlink(ROOT_INO, b"b")
    assert node.totals() == Totals(2, 10)
    assert node.problems() == []
    node.close()


def test_a_store_of_an_earlier_program_is_counted_once(tmp_path: Path) -> None:
    node = Namespace.create(tmp_path, NodeId(1))
    make(node, b"a", 1000)
    node.buckets()
    make(node, b"b", 50)
    node.close()
    without_totals(tmp_path)
    node, other = Namespace.open(tmp_path), Namespace.open(tmp_path)
    assert node.totals() == other.totals() == Totals(3, 1050)
    make(other, b"c", 5)
    assert node.totals() == Totals(4, 1055)
    assert node.problems() == []
    node.close()
    other.close()


def test_a_store_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    Namespace.create(tmp_path, NodeId(1)).close()
    with sqlite3.connect(tmp_path / "meta.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(Corrupt, match="format 99"):
        Namespace.open(tmp_path)


def test_wrong_totals_are_a_problem_that_rebuilding_mends(tmp_path: Path) -> None:
    node = Namespace.create(tmp_path, NodeId(1))
    make(node, b"a", 1000)
    with sqlite3.connect(tmp_path / "meta.db") as db:
        db.execute("UPDATE meta SET value = 7 WHERE key = 'bytes'")
    db.close()
    assert any("totals" in problem for problem in node.problems())
    node.repair()
    assert node.problems() == []
    assert node.totals() == Totals(2, 1000)
    node.close()


def test_what_an_earlier_program_writes_is_counted_by_the_next_look(
    tmp_path: Path,
) -> None:
    """While one is being replaced, or after going back to it."""
    node = Namespace.create(tmp_path, NodeId(1))
    make(node, b"a", 1000)
    with sqlite3.connect(tmp_path / "meta.db") as db:
        db.execute("UPDATE digest_delta SET inodes = 0, bytes = 0")
    db.close()
    assert node.totals() == Totals(1, 0)
    assert node.verify() == 0
    assert node.totals() == Totals(2, 1000)
    assert node.problems() == []
    node.close()


def test_notes_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLD_FROM", 3)
    node = Namespace.create(tmp_path, NodeId(1))
    for number in range(5):
        make(node, b"%d" % number, 1)
    before = node.digest()
    node.fold()
    with sqlite3.connect(tmp_path / "meta.db") as db:
        assert db.execute("SELECT count(*) FROM digest_delta").fetchone() == (0,)
    db.close()
    assert node.digest() == before
    assert node.totals() == Totals(6, 5)
    node.close()


def test_sparse_files_show_more_than_63_bits_count(tmp_path: Path) -> None:
    node = Namespace.create(tmp_path, NodeId(1))
    for number in range(3):
        with node.transaction() as t:
            ino = t.new_ino(ROOT_INO, b"%d" % number, S_REG)
            t.create(ROOT_INO, b"%d" % number, ino, 0o100644, 0, 0)
            t.set_content(
                ino, size=(1 << 63) - 1, root=b"", chunk_log2=20, mtime_ns=t.now_ns
            )
        node.totals()
        node.fold()
        node.buckets()
        assert node.problems() == []
        assert node.verify() == 0
    assert node.totals().inodes == 4
    with node.transaction() as t:
        for number in range(2):
            t.unlink(ROOT_INO, b"%d" % number)
    assert node.totals() == Totals(2, (1 << 63) - 1)
    assert node.totals().shown_bytes == (1 << 63) - 1
    with node.transaction() as t:
        t.unlink(ROOT_INO, b"2")
    assert node.totals() == Totals(1, 0)
    assert node.problems() == []
    node.close()
