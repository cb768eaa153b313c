"""A tree that a program with other rules derived becomes what the rules say now."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fusefs.model.hlc import Hlc
from fusefs.model.ids import LOST_FOUND_INO, ROOT_INO
from fusefs.namespace import derive
from fusefs.namespace.namespace import Namespace
from tests.lib.local import USER, Local, local_vfs, replicate


def with_everything_odd(a: Local, b: Local) -> None:
    """Twins, losing versions, a file and a directory that came back, a circle."""
    for name in ("/kept", "/came"):
        a.put(name, b"first")
    for name in ("/x", "/y", "/z"):
        a.mkdir(name)
    replicate(a, b)
    for each, data in ((a, b"of a"), (b, b"of b")):
        each.put("/twin", data)
        handle = each.open("/kept", os.O_WRONLY | os.O_TRUNC)
        each.vfs.write(handle, 0, data)
        each.close(handle)
    handle = b.open("/came", os.O_WRONLY | os.O_TRUNC)
    b.vfs.write(handle, 0, b"edited")
    b.close(handle)
    a.vfs.unlink(ROOT_INO, b"came")
    b.put("/z/inside", b"unseen")
    a.vfs.rmdir(ROOT_INO, b"z")
    a.vfs.rename(ROOT_INO, b"x", a.walk("/y"), b"x", 0, USER)
    b.vfs.rename(ROOT_INO, b"y", b.walk("/x"), b"y", 0, USER)
    replicate(a, b)
    replicate(b, a)


def other_name(origin: bytes, node: str, stamp: Hlc, nth: int) -> bytes:
    return b"%s~%s~%d~%d" % (origin, node.encode(), stamp, nth)


def names(node: Namespace) -> list[bytes]:
    return [entry.name for entry in node.children(ROOT_INO)]


def forget_rules(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "meta.db")) as db, db:
        db.execute("DELETE FROM meta WHERE key = 'rules'")


def test_a_tree_of_earlier_rules_is_derived_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive, "conflict_name", other_name)
    with local_vfs(tmp_path / "a") as a, local_vfs(tmp_path / "b", root=False) as b:
        with_everything_odd(a, b)
        assert sum(b"~" in name for name in names(a.namespace)) == 2
    monkeypatch.undo()
    for name in ("a", "b"):
        forget_rules(tmp_path / name)
        with closing(sqlite3.connect(tmp_path / name / "meta.db")) as db, db:
            db.execute("UPDATE inode SET uid = 77 WHERE ino = ?", (LOST_FOUND_INO,))
    with (
        closing(Namespace.open(tmp_path / "a")) as one,
        closing(Namespace.open(tmp_path / "b")) as other,
        closing(Namespace.open(tmp_path / "b")) as process,
    ):
        assert one.problems() == other.problems() == []
        assert one.snapshot() == other.snapshot() == process.snapshot()
        assert sum(b".conflict-" in name for name in names(one)) == 2


def test_where_a_register_is_damaged_the_tree_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with local_vfs(tmp_path / "a") as a, local_vfs(tmp_path / "b", root=False) as b:
        with_everything_odd(a, b)
    forget_rules(tmp_path / "a")
    with closing(sqlite3.connect(tmp_path / "a" / "meta.db")) as db, db:
        odd = "SELECT key FROM extra_dot LIMIT 1"
        db.execute(f"UPDATE register SET sum = sum + 1 WHERE key IN ({odd})")
    with closing(Namespace.open(tmp_path / "a")) as node:
        assert "as an earlier dfs derived it" in caplog.text
        node.repair()
        assert node.problems() == []
