"""Changing a file or name that stands in conflict loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO, Ino, chunk_id
from fusefs.model.records import S_DIR, S_REG, content_key
from fusefs.namespace import replicate
from fusefs.namespace.namespace import Namespace
from tests.lib.namespaces import meet, several

NAME = b"file.txt"


def pair(directory: Path) -> tuple[Namespace, Namespace]:
    a, b = several(directory, 2)
    return a, b


def write(node: Namespace, ino: Ino, data: bytes) -> None:
    with node.transaction() as t:
        t.set_content(
            ino, size=len(data), root=chunk_id(data), chunk_log2=20, mtime_ns=t.now_ns
        )


def roots(node: Namespace) -> set[bytes]:
    return {row.root for _, row in node.children_full(ROOT_INO)}


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Namespace, Namespace, Ino]:
    """Two versions of one file, both shown on both nodes."""
    a, b = pair(tmp_path)
    with a.transaction() as t:
        ino = t.new_ino(ROOT_INO, NAME, S_REG)
        t.create(ROOT_INO, NAME, ino, 0o100644, 0, 0)
    meet(a, b)
    write(a, ino, b"of a")
    write(b, ino, b"of b")
    meet(a, b)
    assert roots(a) == roots(b) == {chunk_id(b"of a"), chunk_id(b"of b")}
    return a, b, ino


def test_touch_keeps_both_versions(versions: tuple[Namespace, Namespace, Ino]) -> None:
    a, b, ino = versions
    with a.transaction() as t:
        t.set_times(ino, mtime_ns=5)
    meet(a, b)
    assert roots(b) == {chunk_id(b"of a"), chunk_id(b"of b")}
    row = b.inode(ino)
    assert row is not None and (row.size, row.mtime_ns) == (4, 5)


def test_removing_the_winner_keeps_the_loser(
    versions: tuple[Namespace, Namespace, Ino],
) -> None:
    a, b, ino = versions
    shown = a.inode(ino)
    assert shown is not None
    with a.transaction() as t:
        t.unlink(ROOT_INO, NAME)
    meet(a, b)
    assert roots(b) == {chunk_id(b"of a"), chunk_id(b"of b")} - {shown.root}
    assert a.problems() == b.problems() == []


def test_replacing_the_winner_keeps_the_loser(
    versions: tuple[Namespace, Namespace, Ino],
) -> None:
    a, b, ino = versions
    shown = a.inode(ino)
    assert shown is not None
    with a.transaction() as t:
        other = t.new_ino(ROOT_INO, b"other", S_REG)
        t.create(ROOT_INO, b"other", other, 0o100644, 0, 0)
        t.rename(ROOT_INO, b"other", ROOT_INO, NAME)
    meet(a, b)
    assert roots(b) == {b"", chunk_id(b"of a"), chunk_id(b"of b")} - {shown.root}


@pytest.mark.parametrize("change", ["unlink", "rename", "exchange"])
def test_a_twin_stays_when_the_winner_goes(tmp_path: Path, change: str) -> None:
    a, b = pair(tmp_path)
    meet(a, b)
    for node, mode in ((a, 0o100644), (b, 0o010644)):
        with node.transaction() as t:
            ino = t.new_ino(ROOT_INO, NAME, mode >> 12)
            t.create(ROOT_INO, NAME, ino, mode, 0, 0)
            t.create(ROOT_INO, b"x", t.new_ino(ROOT_INO, b"x", 8), 0o100644, 0, 0)
    meet(a, b)
    assert len(a.children(ROOT_INO)) == 3
    with a.transaction() as t:
        if change == "unlink":
            t.unlink(ROOT_INO, NAME)
        elif change == "rename":
            t.rename(ROOT_INO, NAME, ROOT_INO, b"new")
        else:
            t.exchange(ROOT_INO, NAME, ROOT_INO, b"x")
    meet(a, b)
    assert len(b.children(ROOT_INO)) == (2 if change == "unlink" else 3)
    assert a.snapshot() == b.snapshot()
    assert a.problems() == b.problems() == []


def test_version_changed_elsewhere_whose_data_came_first_is_not_written_over(
    versions: tuple[Namespace, Namespace, Ino],
) -> None:
    """Registers come in any order: here of the new file only its content."""
    a, b, ino = versions
    loser = next(e for e in a.children(ROOT_INO) if e.name != NAME)
    write(a, loser.ino, b"of the loser")
    states = [s for part in a.delta(b.vector()) for s in part.states]
    b.apply_states([s for s in states if s.key == content_key(loser.ino)], {})
    row = b.inode(loser.ino)
    assert row is not None and row.root == chunk_id(b"of the loser")
    assert b.problems() == []
    with b.transaction() as t:
        t.set_times(ino, mtime_ns=6)
    meet(a, b)
    assert roots(a) == roots(b)
    assert chunk_id(b"of the loser") in roots(b)
    assert a.problems() == b.problems() == []


def test_version_kept_and_changed_elsewhere_is_not_kept_again(
    versions: tuple[Namespace, Namespace, Ino], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, ino = versions
    loser = next(e for e in a.children(ROOT_INO) if e.name != NAME)
    write(a, loser.ino, b"of the loser")  # makes it a file of its own
    with a.transaction() as t:
        t.set_times(ino, mtime_ns=5)
    monkeypatch.setattr(replicate, "_PAGE", 1)
    part = next(iter(a.delta(b.vector(), 1)))  # not yet that the conflict is settled
    b.apply_states(part.states, part.advance, part.target)
    with b.transaction() as t:
        t.set_times(ino, mtime_ns=6)
    meet(a, b)
    assert roots(a) == roots(b)
    assert chunk_id(b"of the loser") in roots(b)
    assert a.problems() == b.problems() == []


@pytest.mark.parametrize("change", ["touch", "unlink"])
def test_changing_one_of_two_twins_keeps_the_other(tmp_path: Path, change: str) -> None:
    nodes = several(tmp_path, 3)
    a = nodes[0]
    for node in nodes[1:]:
        meet(a, node)
    for node, mode in zip(nodes, (0o100644, 0o010644, 0o120777)):
        with node.transaction() as t:
            ino = t.new_ino(ROOT_INO, NAME, mode >> 12)
            t.create(ROOT_INO, NAME, ino, mode, 0, 0, target=b"to")
    for node in (*nodes[1:], *nodes[1:]):
        meet(a, node)
    inos = {e.ino for e in a.children(ROOT_INO)}
    assert len(inos) == 3
    changed = next(e for e in a.children(ROOT_INO) if e.name != NAME)
    with a.transaction() as t:
        if change == "touch":
            t.set_times(changed.ino, mtime_ns=5)
        else:
            t.unlink(ROOT_INO, changed.name)
            inos.remove(changed.ino)
    for node in nodes[1:]:
        meet(a, node)
        assert {e.ino for e in node.children(ROOT_INO)} == inos
        assert node.problems() == []
        assert node.snapshot() == a.snapshot()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_directory_removed_and_filled_comes_back_where_both_arrive_at_once(
    tmp_path: Path, kind: str
) -> None:
    a, b, c = several(tmp_path, 3)
    with a.transaction() as t:
        directory = t.new_ino(ROOT_INO, b"d", S_DIR)
        t.create(ROOT_INO, b"d", directory, 0o040755, 0, 0)
    meet(a, b)
    meet(a, c)
    with a.transaction() as t:
        mode = 0o100644 if kind == "file" else 0o040755
        t.create(directory, NAME, t.new_ino(directory, NAME, mode >> 12), mode, 0, 0)
    with b.transaction() as t:
        t.rmdir(ROOT_INO, b"d")
    meet(a, b)
    meet(b, c)
    assert c.problems() == []
    assert [e.name for e in c.children(directory)] == [NAME]
    assert c.snapshot() == a.snapshot() == b.snapshot()
