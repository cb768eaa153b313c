"""A register damaged on one disk: noticed by the digest, repaired from a peer."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fusefs.errors import Corrupt
from fusefs.model.ids import ROOT_INO, Ino, NodeId
from fusefs.model.records import (
    S_REG,
    Member,
    attrs_key,
    content_key,
    decode_content,
    member_key,
    setting_key,
    xattr_key,
)
from fusefs.model.tx import Tx
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


def test_damage_is_never_handed_to_a_peer(nodes: list, tmp_path: Path) -> None:
    """Not even what still decodes: a newcomer would take it for the truth."""
    one, other = nodes
    entry = one.entry(ROOT_INO, b"b")
    assert entry is not None
    key = attrs_key(entry.ino)
    (good,) = one.states([key])
    last = good.state[-1] ^ 1
    damage(
        one, "UPDATE register SET state = ? WHERE key = ?",
        good.state[:-1] + bytes((last,)), key,
    )  # fmt: skip
    assert one.states([key]) == []
    (tmp_path / "3").mkdir()
    newcomer = Namespace.create(tmp_path / "3", NodeId(3), root=False)
    nodes.append(newcomer)
    for batch in one.delta({}):
        assert key not in [s.key for s in batch.states]
        newcomer.apply_states(batch.states, batch.advance, batch.target)
    assert newcomer.digest() != other.digest()
    assert one.verify() == 1
    for node in (one, newcomer):
        reconcile(node, other)
        assert node.digest() == other.digest()
        assert node.snapshot() == other.snapshot()


@pytest.mark.parametrize("mend", [Namespace.verify, Namespace.repair])
def test_damage_of_a_sum_alone_is_seen_for_what_it_is(nodes: list, mend) -> None:  # type: ignore[no-untyped-def]
    one, other = nodes
    entry = one.entry(ROOT_INO, b"b")
    assert entry is not None
    damage(one, "UPDATE register SET sum = 7 WHERE key = ?", attrs_key(entry.ino))
    (problem,) = one.problems()
    assert "its sum is damaged, itself it is not" in problem
    mend(one)
    assert one.digest() == other.digest()
    with one.transaction() as t:
        t.set_attrs(entry.ino, mode=0o100600)


def test_damaged_sum_beside_a_lost_register_comes_back_with_it(nodes: list) -> None:
    one, other = nodes
    with one.transaction() as t:
        for number in range(100):
            name = b"%d" % number
            t.create(ROOT_INO, name, t.new_ino(ROOT_INO, name, S_REG), 0o100644, 0, 0)
    for batch in one.delta(other.vector()):
        other.apply_states(batch.states, batch.advance, batch.target)
    rows = one.bucket_keys
    bucket = next(b for b in range(256) if len(rows(b)) >= 2)
    lost, beside = (key for key, _ in rows(bucket)[:2])
    damage(one, "DELETE FROM register WHERE key = ?", lost)
    damage(one, "UPDATE register SET sum = 7 WHERE key = ?", beside)
    assert one.verify() == 1
    assert one.verify() == 0
    reconcile(one, other)
    assert one.digest() == other.digest()
    assert one.snapshot() == other.snapshot()


@pytest.mark.parametrize("what", ["sum = 7", "state = zeroblob(9)"])
def test_damage_that_is_only_met_is_not_taken_for_the_truth(
    nodes: list, what: str
) -> None:
    """Where something in the tree is odd, a peer's change of one register looks at the
    others of the inode, too."""
    one, other = nodes

    def write(node: Namespace, name: bytes, size: int) -> Tx:
        with node.transaction() as t:
            ino = node.entry(ROOT_INO, name).ino
            root = bytes([node.node_id]) * 32
            t.set_content(ino, size=size, root=root, chunk_log2=20, mtime_ns=1)
        return t.tx

    both = [write(node, b"a", 6) for node in nodes]  # a conflict
    one.apply(both[1:])
    other.apply(both[:1])
    ino = one.entry(ROOT_INO, b"b").ino
    own = write(one, b"b", 5)
    if what != "sum = 7":  # then only a peer can help
        other.apply([own])
    damage(one, f"UPDATE register SET {what} WHERE key = ?", content_key(ino))
    one.close()
    nodes[0] = one = Namespace.open(one.path.parent)
    with other.transaction() as theirs:
        theirs.set_attrs(ino, mode=0o100600)
    one.apply([theirs.tx])
    assert one.verify() == 0  # the digest tells of it already
    for batch in one.delta(other.vector()):
        other.apply_states(batch.states, batch.advance, batch.target)
    reconcile(one, other)
    assert one.digest() == other.digest()
    assert one.inode(ino).size == other.inode(ino).size == 5


def test_a_write_of_a_peer_does_not_bury_what_only_seems_damaged(nodes: list) -> None:
    one, other = nodes
    entry = one.entry(ROOT_INO, b"b")
    with one.transaction() as t:
        t.set_content(entry.ino, size=5, root=bytes(32), chunk_log2=20, mtime_ns=1)
    with other.transaction() as theirs:
        theirs.set_content(entry.ino, size=9, root=bytes(32), chunk_log2=20, mtime_ns=1)
    damage(one, "UPDATE register SET sum = 7 WHERE key = ?", content_key(entry.ino))
    one.close()
    nodes[0] = one = Namespace.open(one.path.parent)
    one.apply([theirs.tx])
    sizes = {decode_content(s.value).size for s in one.content_versions(entry.ino).live}
    assert sizes == {5, 9}
    assert one.verify() == 0


def put(node: Namespace, name: bytes, root: bytes) -> Ino:
    with node.transaction() as t:
        ino = t.new_ino(ROOT_INO, name, S_REG)
        t.create(ROOT_INO, name, ino, 0o100644, 0, 0)
        t.set_content(ino, size=5, root=root, chunk_log2=20, mtime_ns=1)
    return ino


def level(node: Namespace, peer: Namespace) -> None:
    for batch in node.delta(peer.vector()):
        peer.apply_states(batch.states, batch.advance, batch.target)


ZEROS = "UPDATE register SET state = zeroblob(9) WHERE key = ?"
FLIPPED = "UPDATE register SET state = state || x'00' WHERE key = ?"


@pytest.mark.parametrize("sql", [ZEROS, FLIPPED])
def test_members_and_settings_are_those_that_are_sound(nodes: list, sql: str) -> None:
    one, other = nodes
    one.put_member(NodeId(1), Member("one", ()))
    one.put_member(NodeId(2), Member("two", ()))
    one.put_setting(b"replicas", b"\2")
    level(one, other)
    damage(other, sql, member_key(NodeId(1)))
    damage(other, sql, setting_key(b"replicas"))
    assert set(other.members()) == {NodeId(2)}
    assert other.settings() == {}
    other.verify()
    reconcile(other, one)
    assert set(other.members()) == {NodeId(1), NodeId(2)}
    assert other.settings() == {b"replicas": b"\2"}


@pytest.mark.parametrize("sql", [ZEROS, FLIPPED])
def test_attribute_that_is_damaged_is_not_given_out(nodes: list, sql: str) -> None:
    one, other = nodes
    ino = put(one, b"f", b"1" * 32)
    with one.transaction() as t:
        t.set_xattr(ino, b"user.a", b"precious")
    level(one, other)
    damage(other, sql, xattr_key(ino, b"user.a"))
    assert other.xattr(ino, b"user.a") is None
    other.verify()
    reconcile(other, one)
    assert other.xattr(ino, b"user.a") == b"precious"


@pytest.mark.parametrize("sql", [ZEROS, FLIPPED])
def test_data_of_a_damaged_register_is_no_garbage(nodes: list, sql: str) -> None:
    one, other = nodes
    ino = put(one, b"f", b"1" * 32)
    put(one, b"g", b"2" * 32)
    level(one, other)
    damage(other, sql, content_key(ino))
    roots = list(other.live_roots())
    assert None in roots
    assert {root[0] for root in roots if root} == {b"1" * 32, b"2" * 32}
    other.verify()
    reconcile(other, one)
    assert None not in list(other.live_roots())


@pytest.mark.parametrize("sql", [ZEROS, FLIPPED])
@pytest.mark.parametrize("seen", [True, False])
def test_damaged_register_of_a_file_that_is_gone_stops_nothing(
    nodes: list, sql: str, seen: bool
) -> None:
    one, other = nodes
    ino = put(one, b"f", b"1" * 32)
    with one.transaction() as t:
        t.unlink(ROOT_INO, b"f")
    level(one, other)
    damage(other, sql, attrs_key(ino))
    if seen:
        other.verify()
    upto = dict(one.vector())
    one.put_horizon(upto, {NodeId(1): upto[NodeId(1)], NodeId(2): 0})
    level(one, other)
    put(one, b"later", b"3" * 32)
    level(one, other)
    assert other.entry(ROOT_INO, b"later") is not None
    reconcile(other, one)
    assert other.digest() == one.digest()
