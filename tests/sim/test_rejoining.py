"""Nodes that come back after the cluster went on without them."""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path

import pytest
import trio

from fusefs.model.ids import ROOT_INO, Ino, NodeId, chunk_id
from fusefs.model.records import Member
from fusefs.namespace.namespace import Namespace
from netnode import aside, rejoining
from netnode.connection import Connection
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.running import simulated

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def forget(node: SimNode, gone: SimNode) -> None:
    node.publish(node.namespace.put_member(gone.id, Member(gone.name, (), b"", True)))


def join_anew(node: SimNode) -> None:
    """What `python -m netnode init` does with a new token."""
    aside.set_aside(node.directory, node.name, NOW)
    node.id = NodeId(node.id ^ 0xABCDEF0)
    namespace = Namespace.create(
        node.directory, node.id, root=False, clock=node.wall_ns
    )
    namespace.close()


def paths(node: SimNode) -> dict[str, bytes]:
    """Path to root of everything below the root."""
    out: dict[str, bytes] = {}
    stack = [("", 1)]
    while stack:
        path, ino = stack.pop()
        for entry, row in node.namespace.children_full(ino):
            where = os.path.join(path, os.fsdecode(entry.name))
            out[where] = row.root
            if entry.kind == 4:
                stack.append((where, entry.ino))
    return out


def ino_at(node: SimNode, path: str) -> Ino:
    ino = ROOT_INO
    for name in path.encode().split(b"/"):
        entry = node.namespace.entry(ino, name)
        assert entry is not None
        ino = entry.ino
    return ino


@simulated
async def test_forgotten_node_is_refused_and_joins_anew(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    for name in (b"stays", b"goes", b"edited"):
        a.create(name, data=name)
    await cluster.until_equal()
    cluster.fabric.partition({"c"}, {"a", "b"})
    await trio.sleep(10)
    # What only it knows: a file, an edit, and a version of what is deleted elsewhere.
    c.create(b"new", data=b"only c has this")
    new, entry = c.namespace.entry(1, b"new"), c.namespace.entry(1, b"edited")
    assert new is not None and entry is not None
    with c.namespace.transaction() as t:
        t.set_xattr(new.ino, b"user.colour", b"blue")
    c.publish(t.tx)
    cid = c.store.put(b"an edit")
    with c.namespace.transaction() as t:
        t.set_content(entry.ino, size=7, root=cid, chunk_log2=20, mtime_ns=t.now_ns)
    c.publish(t.tx)
    forget(a, c)
    a.unlink(b"goes")
    await trio.sleep(1500)  # until the others have forgotten the delete
    cluster.fabric.heal()
    await trio.sleep(60)
    assert c.node is not None and a.node is not None
    assert "removed from the cluster" in c.node.refused
    assert "--join" in c.node.refused
    assert c.id not in a.node.peers

    await c.stop()
    join_anew(c)
    node = await c.start()
    await rejoining.bring_when_level(node, c.directory)
    await cluster.until_connected()
    await cluster.until_equal()
    top = "lost+found/c-20260102T030405Z"
    for each in (a, b, c):
        assert paths(each) == {
            "stays": chunk_id(b"stays"),
            "edited": chunk_id(b"edited"),
            "lost+found": b"",
            top: b"",
            f"{top}/new": chunk_id(b"only c has this"),
            f"{top}/edited": chunk_id(b"an edit"),
        }
        brought = ino_at(each, f"{top}/new")
        assert each.namespace.xattr(brought, b"user.colour") == b"blue"
    assert await b.fetch([chunk_id(b"an edit")]) == 0
    assert not list((c.directory / rejoining.ASIDE).iterdir())


async def close_at_once(self: Connection, reason: str, fatal: bool = False) -> None:
    """As where the network resets the connection before the reason is read."""
    self.stream.close()


@simulated
async def test_store_restored_from_an_old_copy_is_refused(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    for number in range(30):
        a.create(b"f%d" % number)
    await cluster.until_equal()
    await b.stop()
    copy = cluster.directory / "copy"
    shutil.copytree(b.directory, copy)
    await b.start()
    for number in range(30):
        a.unlink(b"f%d" % number)
    b.create(b"later")
    await trio.sleep(1500)
    await b.stop()
    shutil.rmtree(b.directory)
    shutil.copytree(copy, b.directory)
    await b.start()
    await trio.sleep(30)
    assert b.node is not None and a.node is not None
    assert "older than" in b.node.refused
    assert len(a.node.peers) == 0
    assert a.names() == [b"later"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "say_bye", close_at_once)
        await trio.sleep(120)  # it is dialled, too
        assert "older than" in b.node.refused

    await b.stop()
    former = b.id
    join_anew(b)
    node = await b.start()
    await rejoining.bring_when_level(node, b.directory)
    await cluster.until_equal()
    assert a.namespace.members()[former].forgotten
    ino = ino_at(a, "later")
    a.unlink(b"later")
    await trio.sleep(300)
    for each in (a, b):
        assert each.namespace.unlinked(ino) is None, "the delete is forgotten"


@simulated
async def test_who_joins_with_the_copy_of_a_store_in_use_does_not_remove_its_node(
    cluster: SimCluster,
) -> None:
    """That one is connected to a peer only."""
    a, b = await cluster.start(2)
    b.create(b"file", data=b"bytes")
    await cluster.until_equal()
    await b.stop()
    c = cluster.add()
    shutil.rmtree(c.directory)
    shutil.copytree(b.directory, c.directory)
    await b.start()
    await cluster.until_connected()
    cluster.fabric.partition({b.name}, {c.name})
    join_anew(c)
    node = await c.start()
    await rejoining.bring_when_level(node, c.directory)
    assert b.id not in node.peers
    await cluster.until_equal()
    assert not a.namespace.members()[b.id].forgotten


@simulated
async def test_a_copy_of_a_store_in_use_is_refused_and_what_it_wrote_is_brought(
    cluster: SimCluster,
) -> None:
    """As a cloned machine starts it, beside the one that was cloned."""
    a, b = await cluster.start(2)
    for name in (b"stays", b"changes", b"goes"):
        b.create(name, data=name)
    await cluster.until_equal()
    await b.stop()
    c = cluster.add()
    shutil.rmtree(c.directory)
    shutil.copytree(b.directory, c.directory)
    await b.start()
    await cluster.until_connected()
    c.id = b.id
    node = await c.start()
    await trio.sleep(60)
    assert a.node is not None and b.node is not None
    assert "copy of one that is in use" in node.refused
    assert b.node.refused == ""
    assert [peer.name for peer in a.node.peers] == ["b"]
    c.create(b"alone", data=b"only the copy has this")
    write(b, b"changes", b"changed since")
    b.unlink(b"goes")
    for number in range(50):
        b.create(b"%d" % number)
    await c.stop()
    join_anew(c)
    node = await c.start()
    await rejoining.bring_when_level(node, c.directory)
    await cluster.until_equal()
    (top,) = (path for path in paths(a) if path.count("/") == 1)
    assert [path for path in paths(a) if path.startswith(top + "/")] == [f"{top}/alone"]
    assert not a.namespace.members()[b.id].forgotten


def write(node: SimNode, name: bytes, data: bytes) -> None:
    entry = node.namespace.entry(1, name)
    assert entry is not None
    cid = node.store.put(data)
    with node.namespace.transaction() as t:
        t.set_content(
            entry.ino, size=len(data), root=cid, chunk_log2=20, mtime_ns=t.now_ns
        )
    node.publish(t.tx)


async def restored(cluster: SimCluster, node: SimNode, copy: Path) -> None:
    """The node's store is an old copy of it, and it starts without its peers."""
    await node.stop()
    shutil.rmtree(node.directory)
    shutil.copytree(copy, node.directory)
    names = {n.name for n in cluster.nodes}
    cluster.fabric.partition({node.name}, names - {node.name})
    await node.start()


@simulated
async def test_what_a_restored_store_wrote_before_it_met_the_others_is_kept(
    cluster: SimCluster,
) -> None:
    """Its numbers would be those of what it wrote before it was restored."""
    a, b, c, away = await cluster.start(4)
    b.create(b"file", data=b"first")
    await cluster.until_equal()
    await away.stop()  # so no deletes are forgotten
    await b.stop()
    copy = cluster.directory / "copy"
    shutil.copytree(b.directory, copy)
    for data in (b"second", b"third"):  # restored twice, to the same state
        await restored(cluster, b, copy) if b.node else await b.start()
        cluster.fabric.heal()
        await cluster.until_connected()
        await cluster.until_equal()
        write(b, b"file", data)
        await cluster.until_equal()
        await trio.sleep(700)
    await restored(cluster, b, copy)
    write(b, b"file", b"fourth")
    cluster.fabric.heal()
    await cluster.until_connected()
    await cluster.until_equal()
    for node in (a, b, c):
        assert set(paths(node).values()) == {chunk_id(b"third"), chunk_id(b"fourth")}


@simulated
async def test_a_restored_store_brings_no_deleted_file_back_by_writing(
    cluster: SimCluster,
) -> None:
    a, b, _ = await cluster.start(3)
    for number in range(30):
        b.create(b"f%d" % number)
    await cluster.until_equal()
    await b.stop()
    copy = cluster.directory / "copy"
    shutil.copytree(b.directory, copy)
    await b.start()
    await cluster.until_connected()
    for number in range(30):
        b.unlink(b"f%d" % number)
    await trio.sleep(1500)
    await restored(cluster, b, copy)
    for number in range(40):
        b.create(b"new%d" % number)
    cluster.fabric.heal()
    await trio.sleep(10)
    assert b.node is not None
    for _ in range(30):  # others dial it, too, and it does not know yet what for
        await trio.sleep(1)
        assert "older than" in b.node.refused
    assert a.names() == []


def test_log_says_where_the_files_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @simulated
    async def body(cluster: SimCluster) -> None:
        (a,) = await cluster.start(1)
        assert a.node is not None
        old, known = a.namespace, a.namespace.vector()
        await rejoining._bring_all(a.node, old, b"c-20260102T030405Z", known)

    body(tmp_path)
    assert "0 files that only this node had are in /lost+found/c-2026" in caplog.text
