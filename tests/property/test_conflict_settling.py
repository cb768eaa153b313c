"""Conflicts listed and settled: keep ours, theirs or both, and both nodes agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO, ChunkId, Ino, NodeId, chunk_id
from fusefs.model.records import S_REG, Member
from fusefs.namespace import Namespace
from fusefs.namespace.conflicts import settle

A, B = NodeId(1), NodeId(2)


class Pair:
    """Two nodes that edited `plan.txt` apart and met again; B wrote last."""

    def __init__(self, path: Path) -> None:
        self.now = 1_700_000_000_000_000_000
        self.nodes = []
        for node in (A, B):
            (path / str(node)).mkdir()
            self.nodes.append(
                Namespace.create(
                    path / str(node), node, root=node == A, clock=self.clock
                )
            )
        self.a, self.b = self.nodes
        self.a.put_member(A, Member("anna", ()))
        self.a.put_member(B, Member("bob", ()))
        with self.a.transaction() as t:
            self.ino = t.new_ino(ROOT_INO, b"plan.txt", S_REG)
            t.create(ROOT_INO, b"plan.txt", self.ino, 0o100644, 0, 0)
        self.write(self.a, b"base")
        self.meet()
        self.write(self.a, b"from anna")
        self.write(self.b, b"from bob!!")
        self.meet()

    def clock(self) -> int:
        self.now += 2_000_000
        return self.now

    def write(self, node: Namespace, data: bytes) -> None:
        with node.transaction() as t:
            t.set_content(
                self.ino,
                size=len(data),
                root=chunk_id(data),
                chunk_log2=20,
                mtime_ns=t.now_ns,
            )

    def meet(self) -> None:
        for one, other in ((self.a, self.b), (self.b, self.a)):
            for batch in other.delta(one.vector()):
                one.apply_states(batch.states, batch.advance, batch.target)

    def shown(self, node: Namespace) -> dict[bytes, ChunkId]:
        found = node.children_full(ROOT_INO)
        return {e.name: ChunkId(i.root) for e, i in found}

    def close(self) -> None:
        for node in self.nodes:
            assert node.problems() == []
            node.close()


@pytest.fixture
def pair(tmp_path: Path):
    pair = Pair(tmp_path)
    yield pair
    pair.close()


def test_conflict_is_listed_with_who_when_and_sizes(pair: Pair) -> None:
    for node in pair.nodes:
        ((path, conflict),) = node.conflicts()
        assert path.startswith(b"plan.conflict-anna-2023")
        assert path.endswith(b".txt")
        assert conflict.winner == b"plan.txt"
        assert conflict.node == A
        assert (conflict.size, conflict.winner_size) == (9, 10)
        assert pair.shown(node)[b"plan.txt"] == chunk_id(b"from bob!!")


@pytest.mark.parametrize(
    ("keep", "stays"), [("ours", b"from anna"), ("theirs", b"from bob!!")]
)
def test_keeping_one_version_removes_the_other(
    pair: Pair, keep: str, stays: bytes
) -> None:
    ((_, conflict),) = pair.a.conflicts()
    with pair.a.transaction() as t:
        settle(t, conflict, keep, A)
    pair.meet()
    for node in pair.nodes:
        assert pair.shown(node) == {b"plan.txt": chunk_id(stays)}
        assert node.conflicts() == []


def test_keeping_both_makes_an_ordinary_file(pair: Pair) -> None:
    ((path, conflict),) = pair.b.conflicts()
    with pair.b.transaction() as t:
        settle(t, conflict, "both", B)
    pair.meet()
    for node in pair.nodes:
        assert pair.shown(node) == {
            b"plan.txt": chunk_id(b"from bob!!"),
            path: chunk_id(b"from anna"),
        }
        assert node.conflicts() == []


def test_removing_the_shown_loser_settles_it_too(pair: Pair) -> None:
    ((path, _),) = pair.a.conflicts()
    with pair.a.transaction() as t:
        t.unlink(ROOT_INO, path)
    pair.meet()
    for node in pair.nodes:
        assert pair.shown(node) == {b"plan.txt": chunk_id(b"from bob!!")}


def test_writing_over_the_winner_keeps_the_loser(pair: Pair) -> None:
    pair.write(pair.a, b"after")
    pair.meet()
    for node in pair.nodes:
        shown = pair.shown(node)
        assert shown[b"plan.txt"] == chunk_id(b"after")
        assert chunk_id(b"from anna") in shown.values()
        assert len(shown) == 2


def test_delete_does_not_swallow_an_edit_it_had_not_seen(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    ((_, conflict),) = pair.a.conflicts()
    with pair.a.transaction() as t:
        settle(t, conflict, "theirs", A)
    pair.meet()
    with pair.a.transaction() as t:
        t.unlink(ROOT_INO, b"plan.txt")
    pair.write(pair.b, b"an edit")
    pair.meet()
    for node in pair.nodes:
        assert pair.shown(node) == {b"plan.txt": chunk_id(b"an edit")}
        entry = node.entry(ROOT_INO, b"plan.txt")
        assert entry is not None
        assert entry.ino == Ino(pair.ino)
    pair.close()
