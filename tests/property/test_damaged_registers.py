"""A register damaged on one disk: noticed by the digest, repaired from a peer."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fusefs.errors import Corrupt
from fusefs.model.ids import ROOT_INO, NodeId
from fusefs.model.records import S_REG, attrs_key
from fusefs.namespace import Namespace


@pytest.fixture
def nodes(tmp_path: Path):
    made = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        made.append(
            Namespace.create(tmp_path / str(number), NodeId(number), root=number == 1)
        )
    with made[0].transaction() as t:
        for name in (b"a", b"b", b"c"):
            t.create(ROOT_INO, name, t.new_ino(ROOT_INO, name, S_REG), 0o100644, 0, 0)
    for batch in made[0].delta({}):
        made[1].apply_states(batch.states, batch.advance, batch.target)
    yield made
    for node in made:
        assert node.problems() == []
        node.close()


def damage(node: Namespace, sql: str, *args: object) -> None:
    db = sqlite3.connect(node.path)
    assert db.execute(sql, args).rowcount == 1
    db.commit()
    db.close()


def reconcile(node: Namespace, peer: Namespace) -> None:
    for bucket, (mine, theirs) in enumerate(zip(node.buckets(), peer.buckets())):
        if mine != theirs:
            have = dict(node.bucket_keys(bucket))
            keys = [k for k, h in peer.bucket_keys(bucket) if have.get(k) != h]
            node.apply_states(peer.states(keys), {})


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE register SET state = zeroblob(9) WHERE key = ?",
        "UPDATE register SET state = substr(state, 1, 20) || x'ff' WHERE key = ?",
        "DELETE FROM register WHERE key = ?",
    ],
)
def test_damage_shows_in_the_digest_and_is_repaired(nodes: list, sql: str) -> None:
    one, other = nodes
    entry = one.entry(ROOT_INO, b"b")
    assert entry is not None
    assert one.verify() == 0
    damage(one, sql, attrs_key(entry.ino))
    assert one.verify() == 1
    assert one.digest() != other.digest()
    reconcile(one, other)
    assert one.verify() == 0
    assert one.digest() == other.digest()
    assert one.snapshot() == other.snapshot()


def test_local_write_does_not_build_on_damage(nodes: list) -> None:
    one, other = nodes
    entry = one.entry(ROOT_INO, b"b")
    assert entry is not None
    damage(one, "UPDATE register SET state = x'00' WHERE key = ?", attrs_key(entry.ino))
    one.verify()
    with pytest.raises(Corrupt), one.transaction() as t:
        t.set_attrs(entry.ino, mode=0o100600)
    reconcile(one, other)
