"""What is known of inodes without extended attributes stays true."""

from __future__ import annotations

from pathlib import Path

from fusefs.model.ids import ROOT_INO, NodeId
from fusefs.model.records import S_REG, XATTR
from fusefs.model.tx import State
from fusefs.namespace import Namespace


def two(tmp_path: Path) -> tuple[Namespace, Namespace]:
    made = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        made.append(
            Namespace.create(tmp_path / str(number), NodeId(number), root=number == 1)
        )
    return made[0], made[1]


def test_attributes_set_here_and_elsewhere_are_seen(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    with a.transaction() as t:
        ino = t.new_ino(ROOT_INO, b"f", S_REG)
        t.create(ROOT_INO, b"f", ino, 0o100644, 0, 0)
    assert a.xattr(ino, b"user.x") is None
    queries: list[str] = []
    for db in (a._reader, a._writer):
        db.set_trace_callback(queries.append)
    assert a.xattr(ino, b"security.capability") is None and not queries
    with a.transaction() as t:
        t.set_xattr(ino, b"user.x", b"1")
    assert a.xattr(ino, b"user.x") == b"1" and a.xattrs(ino) == [b"user.x"]
    with a.transaction() as t:
        t.remove_xattr(ino, b"user.x")
    assert a.xattr(ino, b"user.x") is None and a.xattrs(ino) == []

    states = [s for batch in a.delta({}) for s in batch.states]
    b.apply_states([s for s in states if s.key[:1] != XATTR], {})
    assert b.xattr(ino, b"user.x") is None  # known to be bare
    with a.transaction() as t:
        t.set_xattr(ino, b"user.x", b"2")
    states = [s for batch in a.delta({}) for s in batch.states]
    alone: list[State] = [s for s in states if s.key[:1] == XATTR]
    applied = b.apply_states(alone, {})
    assert ino in applied.effects.inodes
    assert b.xattr(ino, b"user.x") == b"2"
