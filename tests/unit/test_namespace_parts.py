"""A delta that arrives in parts: what is derived from each part is what a rebuild
from the registers gives, and what is done meanwhile does not disturb it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO, Ino, NodeId, chunk_id
from fusefs.model.records import S_DIR, S_REG
from fusefs.namespace import replicate
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.replicate import DeltaBatch

MODES = {S_REG: 0o100644, S_DIR: 0o040755}


@pytest.fixture
def nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Namespace, Namespace]]:
    monkeypatch.setattr(replicate, "_PAGE", 1)
    made = []
    for number in (1, 2):
        path = tmp_path / str(number)
        path.mkdir()
        made.append(Namespace.create(path, NodeId(number), root=number == 1))
    yield made[0], made[1]
    for node in made:
        assert node.problems() == []
        node.close()


def make(node: Namespace, name: bytes, kind: int, parent: Ino = ROOT_INO) -> Ino:
    with node.transaction() as t:
        ino = t.new_ino(parent, name, kind)
        t.create(parent, name, ino, MODES[kind], 0, 0)
    return ino


def parts(source: Namespace, target: Namespace) -> list[DeltaBatch]:
    """One transaction each."""
    return list(source.delta(target.vector(), 1))


def receive(node: Namespace, part: DeltaBatch) -> None:
    node.apply_states(part.states, part.advance, part.target)


def test_attributes_behind_a_name_all_names_count(
    nodes: tuple[Namespace, Namespace],
) -> None:
    a, b = nodes
    ino = make(a, b"one", S_REG)
    with a.transaction() as t:
        t.add_link(ino, ROOT_INO, b"two")
    for part in parts(a, b):
        receive(b, part)
        assert b.problems() == []
    row = b.inode(ino)
    assert row is not None and row.nlink == 2


@pytest.mark.parametrize("kind", [S_REG, S_DIR])
def test_made_here_while_it_is_under_way_one_inode(
    nodes: tuple[Namespace, Namespace], kind: int
) -> None:
    a, b = nodes
    ino = make(a, b"name", kind)
    if kind == S_DIR:
        make(a, b"child", S_DIR, ino)
    else:
        with a.transaction() as t:
            t.add_link(ino, ROOT_INO, b"other")
    with a.transaction() as t:
        t.rename(ROOT_INO, b"name", ROOT_INO, b"moved")
    received = parts(a, b)
    rename, end = received[-2:]
    for part in received[:-2]:
        receive(b, part)
    make(b, b"another", S_REG)  # what is derived next is derived in one go
    assert make(b, b"name", kind) == ino
    assert b.problems() == []
    receive(b, rename)
    receive(b, end)
    row = b.inode(ino)
    assert row is not None and row.nlink == 3


def test_made_here_while_its_data_is_under_way_both_are_kept(
    nodes: tuple[Namespace, Namespace],
) -> None:
    a, b = nodes
    ino = make(a, b"name", S_REG)
    write(a, ino, b"of a")
    with a.transaction() as t:
        t.rename(ROOT_INO, b"name", ROOT_INO, b"other")
    with a.transaction() as t:
        t.rename(ROOT_INO, b"other", ROOT_INO, b"name")
    received = parts(a, b)
    for part in received[:-2]:
        receive(b, part)
    write(b, make(b, b"name", S_REG), b"of b")
    for part in received[-2:]:
        receive(b, part)
    shown = {row.root for _, row in b.children_full(ROOT_INO)}
    assert shown == {chunk_id(b"of a"), chunk_id(b"of b")}


def write(node: Namespace, ino: Ino, data: bytes) -> None:
    with node.transaction() as t:
        t.set_content(
            ino, size=len(data), root=chunk_id(data), chunk_log2=20, mtime_ns=t.now_ns
        )
