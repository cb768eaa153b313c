"""Inodes that lost their name to one that is like them: who has what taken back."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO, Ino, chunk_id
from fusefs.namespace.derive import Derivation
from fusefs.namespace.namespace import Namespace
from tests.lib.namespaces import meet, several

NAME = b"object"
TEMPORARY = b"tmp"


def put(
    node: Namespace,
    data: bytes,
    mode: int = stat.S_IFREG | 0o644,
    target: bytes = b"",
    xattr: bytes = b"",
) -> Ino:
    """As git and rsync do: under another name first, then moved there."""
    temporary = TEMPORARY + b"-%d" % node.node_id
    with node.transaction() as t:
        ino = t.new_ino(ROOT_INO, temporary, mode >> 12)
        t.create(ROOT_INO, temporary, ino, mode, 0, 0, target=target)
        if stat.S_ISREG(mode):
            t.set_content(
                ino,
                size=len(data),
                root=chunk_id(data),
                chunk_log2=20,
                mtime_ns=node.node_id,
            )
        if xattr:
            t.set_xattr(ino, b"user.a", xattr)
        t.rename(ROOT_INO, temporary, ROOT_INO, NAME)
    return ino


def settle(node: Namespace) -> int:
    """How many this node took back."""
    found = node.alike_twins(node.node_id)
    for twin in found:
        with node.transaction() as t:
            assert twin in t.alike_twins()
            entry = t.entry(twin.parent, twin.name)
            assert entry is not None
            t.withdraw(twin.parent, twin.origin, entry)
    return len(found)


def level(nodes: list[Namespace]) -> None:
    for _ in range(2):
        for node in nodes[1:]:
            meet(nodes[0], node)


def names(node: Namespace) -> list[bytes]:
    return sorted(entry.name for entry in node.children(ROOT_INO))


@pytest.fixture
def nodes(tmp_path: Path) -> list[Namespace]:
    made = several(tmp_path, 3)
    level(made)
    return made


def check(nodes: list[Namespace]) -> None:
    for node in nodes:
        assert node.problems() == []
        assert node.snapshot() == nodes[0].snapshot()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_of_the_same_file_put_by_three_nodes_one_is_left(
    nodes: list[Namespace], order: tuple[int, ...]
) -> None:
    inos = [put(node, b"data") for node in nodes]
    level(nodes)
    assert len(names(nodes[0])) == 3
    assert sum(settle(nodes[i]) for i in order) == 2  # the two that lost, each its own
    level(nodes)
    assert names(nodes[0]) == [NAME]
    assert sum(nodes[0].inode(ino) is not None for ino in inos) == 1
    check(nodes)


@pytest.mark.parametrize(
    "other",
    [
        {"data": b"others"},
        {"mode": stat.S_IFREG | 0o600},
        {"xattr": b"x"},
        {"mode": stat.S_IFLNK | 0o777, "target": b"there"},
    ],
    ids=["data", "mode", "xattr", "kind"],
)
def test_what_differs_stays(nodes: list[Namespace], other: dict[str, object]) -> None:
    put(nodes[0], b"data")
    put(nodes[1], **{"data": b"data", **other})  # type: ignore[arg-type]
    level(nodes)
    for node in nodes:
        with node.transaction() as t:
            assert t.alike_twins() == []
    assert len(names(nodes[0])) == 2


def test_links_that_lead_to_the_same_are_alike(nodes: list[Namespace]) -> None:
    for node in nodes[:2]:
        put(node, b"", stat.S_IFLNK | 0o777, target=b"there")
    level(nodes)
    assert settle(nodes[0]) + settle(nodes[1]) == 1
    level(nodes)
    assert names(nodes[2]) == [NAME]
    check(nodes)


def test_directories_are_never_alike(nodes: list[Namespace]) -> None:
    for node in nodes[:2]:
        put(node, b"", stat.S_IFDIR | 0o755)
    level(nodes)
    assert [node.alike_twins(node.node_id) for node in nodes] == [[], [], []]


def test_who_removes_the_file_meanwhile_has_it_removed(nodes: list[Namespace]) -> None:
    """Taking a claim back says nothing of the winner."""
    for node in nodes[:2]:
        put(node, b"data")
    level(nodes)
    for shown in names(nodes[2]):
        with nodes[2].transaction() as t:
            t.unlink(ROOT_INO, shown)
    assert settle(nodes[0]) + settle(nodes[1]) == 1
    level(nodes)
    assert names(nodes[0]) == []
    check(nodes)


def test_what_is_written_to_it_meanwhile_comes_back(nodes: list[Namespace]) -> None:
    for node in nodes[:2]:
        put(node, b"data")
    level(nodes)
    loser = next(twin.ino for node in nodes for twin in node.alike_twins(node.node_id))
    with nodes[2].transaction() as t:
        t.set_content(loser, size=3, root=chunk_id(b"new"), chunk_log2=20, mtime_ns=9)
    assert settle(nodes[0]) + settle(nodes[1]) == 1
    level(nodes)
    roots = {(nodes[1].inode(e.ino) or 0).root for e in nodes[1].children(ROOT_INO)}  # type: ignore[union-attr]
    assert roots == {chunk_id(b"data"), chunk_id(b"new")}
    check(nodes)


def test_a_loser_with_another_name_keeps_that(nodes: list[Namespace]) -> None:
    for node in nodes[:2]:
        ino = put(node, b"data")
        with node.transaction() as t:
            t.add_link(ino, ROOT_INO, b"other-%d" % node.node_id)
    level(nodes)
    assert settle(nodes[0]) + settle(nodes[1]) == 1
    level(nodes)
    assert names(nodes[2]) == sorted(
        [NAME, *(b"other-%d" % node.node_id for node in nodes[:2])]
    )
    check(nodes)


def test_changes_say_when_to_look(nodes: list[Namespace]) -> None:
    a, b, _ = nodes
    put(a, b"data")
    ino = put(b, b"others")
    applied = [
        node.apply_states(part.states, part.advance, part.target).effects
        for node, other in ((a, b), (b, a))
        for part in other.delta(node.vector())
    ]
    assert any(effects.twins for effects in applied)
    with b.transaction() as t:
        t.set_content(ino, size=4, root=chunk_id(b"data"), chunk_log2=20, mtime_ns=9)
    assert t.effects.twins
    with b.transaction() as t:
        t.create(ROOT_INO, b"else", t.new_ino(ROOT_INO, b"else", 8), 0o100644, 0, 0)
    assert not t.effects.twins


def test_one_that_goes_has_no_other_looked_at(
    nodes: list[Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But those that had to avoid its name."""
    for number in range(30):
        monkeypatch.setattr(sys.modules[__name__], "NAME", b"object %d" % number)
        for node in nodes[:2]:
            put(node, b"data")
    level(nodes)
    derive, looked_at = Derivation._derive_name, []

    def counting(self: Derivation, parent: Ino, origin: bytes) -> None:
        looked_at.append(origin)
        derive(self, parent, origin)

    monkeypatch.setattr(Derivation, "_derive_name", counting)
    assert sum(settle(node) for node in nodes) == 30
    assert len(looked_at) <= 3 * 30
    level(nodes)
    check(nodes)
