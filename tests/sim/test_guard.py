"""Mass removals by another node wait for a decision."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from fusefs.model.ids import Ino
from fusefs.model.records import S_DIR
from netnode.core.guard import WINDOW_S, YOUNG_S
from netnode.heldfile import Held, HeldFile
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.running import simulated


async def filled(
    cluster: SimCluster, count: int, age_s: float = YOUNG_S + 1
) -> list[SimNode]:
    """Three nodes with a directory of files of an age, guarded as in the product."""
    for _ in range(3):
        node = cluster.add()
        node.mass_delete = 0.3
        await node.start()
    a, *_ = cluster.nodes
    with a.namespace.transaction() as t:
        directory = t.new_ino(1, b"dir", S_DIR)
        t.create(1, b"dir", directory, 0o040755, 0, 0)
    a.publish(t.tx)
    for number in range(count):
        a.create(b"f%d" % number, directory, data=b"data %d" % number)
    await cluster.until_connected()
    await cluster.until_equal()
    await trio.sleep(age_s)
    return cluster.nodes


def empty(node: SimNode) -> None:
    """rm -rf dir, a transaction for each name."""
    entry = node.namespace.entry(1, b"dir")
    assert entry is not None
    for child in node.namespace.children(entry.ino, limit=100_000):
        node.unlink(child.name, entry.ino)
    with node.namespace.transaction() as t:
        t.rmdir(1, b"dir")
    node.publish(t.tx)


def count(node: SimNode) -> int:
    entry = node.namespace.entry(1, b"dir")
    return len(node.namespace.children(entry.ino, limit=10_000)) if entry else 0


@simulated
async def test_files_that_come_and_go_are_never_held(cluster: SimCluster) -> None:
    a, b, _ = await filled(cluster, 3)
    for number in range(300):
        a.create(b"t%d" % number, 1, data=b"temporary")
        a.unlink(b"t%d" % number, 1)
    await cluster.until_equal()
    assert b.node is not None
    assert b.node.replicator.standing.sentence() == "in sync"


@simulated
async def test_small_tree_is_never_held(cluster: SimCluster) -> None:
    a, *_ = await filled(cluster, 90)
    empty(a)
    await cluster.until_equal()
    assert [n.names() for n in cluster.nodes] == [[], [], []]


@simulated
async def test_young_tree_is_never_held(cluster: SimCluster) -> None:
    a, *_ = await filled(cluster, 300, age_s=WINDOW_S + 60)
    empty(a)
    await cluster.until_equal()
    assert [n.names() for n in cluster.nodes] == [[], [], []]


@simulated
async def test_young_files_hide_no_loss_of_the_old(cluster: SimCluster) -> None:
    a, b, c = await filled(cluster, 200)
    for number in range(600):
        a.create(b"young%d" % number)
    await cluster.until_equal()
    empty(a)
    await trio.sleep(10)
    for node in (b, c):
        assert node.node is not None
        assert "holding back" in node.node.replicator.standing.sentence()


@simulated
async def test_reject_brings_young_files_back(cluster: SimCluster) -> None:
    a, b, c = await filled(cluster, 200)
    directory = a.namespace.entry(1, b"dir")
    assert directory is not None
    for number in range(20):
        a.create(b"young%d" % number, directory.ino, data=b"new")
    await cluster.until_equal()
    empty(a)
    await trio.sleep(10)
    assert b.node is not None and c.node is not None
    assert b.node.replicator.decide(False)
    assert c.node.replicator.decide(False)
    await trio.sleep(10)
    await cluster.until_equal()
    assert [count(node) for node in (a, b, c)] == [220] * 3


@pytest.mark.parametrize("away", [False, True])
def test_apply(tmp_path, away: bool) -> None:  # type: ignore[no-untyped-def]
    @simulated
    async def body(cluster: SimCluster) -> None:
        a, b, c = await held(cluster, away)
        for node in (b, c):
            assert node.node is not None
            assert node.node.replicator.decide(True)
        await cluster.until_equal()
        await trio.sleep(10)
        assert [n.names() for n in (a, b, c)] == [[], [], []]
        assert b.node is not None
        assert b.node.replicator.standing.sentence() == "in sync"

    body(tmp_path)


@pytest.mark.parametrize("away", [False, True])
def test_reject(tmp_path, away: bool) -> None:  # type: ignore[no-untyped-def]
    @simulated
    async def body(cluster: SimCluster) -> None:
        a, b, c = await held(cluster, away)
        a.create(b"new meanwhile")
        b.create(b"new here")
        assert b.node is not None and c.node is not None
        assert b.node.replicator.decide(False)
        await trio.sleep(10)
        assert c.node.replicator.decide(True)
        await trio.sleep(10)
        await cluster.until_equal()
        for node in (a, b, c):
            assert count(node) == 200
            assert node.names() == [b"dir", b"new here", b"new meanwhile"]

    body(tmp_path)


async def held(cluster: SimCluster, away: bool) -> list[SimNode]:
    """`a` lost everything; the others hold it back."""
    a, b, c = await filled(cluster, 200)
    if away:
        cluster.fabric.partition({"a"}, {"b", "c"})
        await trio.sleep(10)
    empty(a)
    assert a.names() == []  # one's own rm -rf is nobody's business
    cluster.fabric.heal()
    await cluster.until_connected()
    await trio.sleep(10)
    for node in (b, c):
        assert node.node is not None
        assert count(node) > 100
        assert "holding back" in node.node.replicator.standing.sentence()
        report = node.node.replicator.holding.report()
        assert report is not None and int(str(report["removals"])) >= 60
    return [a, b, c]


async def restarted(cluster: SimCluster, *nodes: SimNode) -> None:
    for node in nodes:
        await node.crash()
        await node.start()
    await cluster.until_connected()
    await trio.sleep(20)


@simulated
async def test_what_is_held_waits_through_a_restart(cluster: SimCluster) -> None:
    a, b, c = await held(cluster, False)
    before = count(b)
    await restarted(cluster, b)
    assert b.node is not None and c.node is not None
    assert count(b) == before
    assert "holding back changes from a" in b.node.replicator.standing.sentence()
    assert b.node.replicator.decide(True)
    assert c.node.replicator.decide(True)
    await trio.sleep(10)
    await cluster.until_equal()
    assert [n.names() for n in (a, b, c)] == [[], [], []]
    assert not (b.directory / "held").exists()


@simulated
async def test_reject_after_a_restart_brings_everything_back(
    cluster: SimCluster,
) -> None:
    a, b, c = await held(cluster, False)
    await restarted(cluster, b, c)
    assert b.node is not None and c.node is not None
    assert b.node.replicator.decide(False)
    assert c.node.replicator.decide(False)
    await trio.sleep(30)
    await cluster.until_equal()
    assert [count(node) for node in (a, b, c)] == [200] * 3


@simulated
async def test_what_was_decided_is_carried_out_by_the_next_process(
    cluster: SimCluster,
) -> None:
    a, b, c = await held(cluster, False)
    assert b.node is not None
    assert b.node.replicator.decide(False)
    await trio.sleep(0.5)  # applied, and not brought back before a heartbeat
    await restarted(cluster, b)
    assert c.node is not None and c.node.replicator.decide(True)
    await trio.sleep(30)
    await cluster.until_equal()
    assert [count(node) for node in (a, b, c)] == [200] * 3
    assert not (b.directory / "held").exists()


def test_a_line_cut_off_is_of_what_did_not_happen(tmp_path: Path) -> None:
    file = HeldFile(tmp_path / "held")
    assert file.read() is None
    file.begin(150, "a", [Ino(5), Ino(6)])
    assert file.read() == Held(150, "a", [Ino(5), Ino(6)])
    file.decided(apply=False)
    file.removing([Ino(7)])
    file.removing([Ino(8)])
    whole = (tmp_path / "held").read_bytes()
    assert file.read() == Held(150, "a", [Ino(n) for n in (5, 6, 7, 8)], apply=False)
    (tmp_path / "held").write_bytes(whole[:-3])
    assert file.read() == Held(150, "a", [Ino(n) for n in (5, 6, 7)], apply=False)
    (tmp_path / "held").write_bytes(b"\xffjunk\n" + whole)
    assert file.read() == Held(150, "a", [Ino(n) for n in (5, 6, 7, 8)], apply=False)
    (tmp_path / "held").write_bytes(whole[:-3])
    file.decided(apply=True)  # behind the one that was cut off
    assert file.read() == Held(150, "a", [Ino(n) for n in (5, 6, 7)], apply=True)
    file.end()
    assert file.read() is None
