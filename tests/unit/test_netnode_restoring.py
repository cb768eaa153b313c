"""What of an identity is lost or damaged on the disk, and what is made of the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fusefs.config import Config
from fusefs.errors import ConfigError
from fusefs.model.ids import NodeId
from fusefs.model.records import Member
from fusefs.namespace.namespace import Namespace
from netnode import identity as identities
from netnode import running
from netnode.founding import init
from netnode.identity import Identity, Token, encode_token
from netnode.tls import issue

Damage = Callable[[Path], None]


def removed(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


def a_store(path: Path, others: bool = True) -> Identity:
    """Of a member of a cluster, with another one if so."""
    init(Config(store=str(path), name="mine"))
    who = identities.load(path)
    namespace = Namespace.open(path)
    namespace.put_member(who.node_id, Member("mine", ()))
    if others:
        namespace.put_member(NodeId(77), Member("other", ("other:4000",)))
    namespace.close()
    return who


def is_one(path: Path, before: Identity) -> Identity:
    """The identity and the namespace are of one node, and it can be shown to peers."""
    now = identities.load(path)
    namespace = Namespace.open(path)
    assert now.node_id == namespace.node_id == before.node_id
    namespace.close()
    assert now.name == "mine"
    issue(now)
    return now


@pytest.mark.parametrize("damage", [removed, emptied, flipped])
@pytest.mark.parametrize("name", ["node.json", "node.key"])
def test_what_can_be_known_of_an_identity_is_made_anew(
    tmp_path: Path, name: str, damage: Damage
) -> None:
    store = tmp_path / "s"
    store.mkdir()
    before = a_store(store)
    damage(store / "identity" / name)
    init(Config(store=str(store)))
    assert is_one(store, before).secret == before.secret


@pytest.mark.parametrize("damage", [removed, emptied, flipped])
def test_a_lost_secret_comes_from_a_token_of_the_cluster_only(
    tmp_path: Path, damage: Damage
) -> None:
    store = tmp_path / "s"
    store.mkdir()
    before = a_store(store)
    damage(store / "identity" / "secret")
    with pytest.raises(ConfigError, match="mount once with --join TOKEN"):
        init(Config(store=str(store)))
    stranger = encode_token(Token(os.urandom(32), ("h:1",)))
    with pytest.raises(ConfigError, match="another cluster"):
        init(Config(store=str(store), join=stranger))
    token = encode_token(Token(before.secret, ("other:4000",)))
    init(Config(store=str(store), join=token))
    assert is_one(store, before).secret == before.secret


def test_a_lost_identity_comes_back_with_a_token(tmp_path: Path) -> None:
    before = a_store(tmp_path)
    shutil.rmtree(tmp_path / "identity")
    with pytest.raises(ConfigError, match="mount once with --join TOKEN"):
        init(Config(store=str(tmp_path)))
    token = encode_token(Token(before.secret, ("other:4000",)))
    init(Config(store=str(tmp_path), join=token))
    now = is_one(tmp_path, before)
    assert (now.secret, now.seeds) == (before.secret, ("other:4000",))


def test_a_node_without_others_goes_on_with_a_new_secret(tmp_path: Path) -> None:
    before = a_store(tmp_path, others=False)
    shutil.rmtree(tmp_path / "identity")
    init(Config(store=str(tmp_path)))
    is_one(tmp_path, before)


@pytest.mark.parametrize("name", ["identity", "meta.db"])
def test_what_belongs_to_another_node_is_not_served(tmp_path: Path, name: str) -> None:
    """After a backup was put back in part, and beside the wrong store."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    for store in (mine, other):
        store.mkdir()
        a_store(store)
    (mine / name).rename(tmp_path / "away")
    (other / name).rename(mine / name)
    with pytest.raises(ConfigError, match="of different nodes"):
        running.run(Config(store=str(mine), port=0))
