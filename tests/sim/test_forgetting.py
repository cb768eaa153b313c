"""Deletes are forgotten once every member has them on its disk, and no sooner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from fusefs.model.ids import Seq
from fusefs.namespace import replicate, tombstones, writing
from netnode import deltas
from netnode.core import horizon
from netnode.wire.messages import Want
from netnode.wire.session import Received
from tests.sim.cluster import SimCluster
from tests.sim.running import simulate, simulated


@simulated
async def test_deletes_are_forgotten_when_everybody_knows(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    for number in range(500):
        a.create(b"f%d" % number)
    for number in range(500):
        b.namespace.drop_caches()
        a.unlink(b"f%d" % number)
    await cluster.until_equal()
    before = c.namespace.registers_count()
    await trio.sleep(200)
    await cluster.until_equal()
    assert before > 1500
    for node in (a, b, c):
        assert node.namespace.registers_count() < 50


@pytest.mark.parametrize("lowest_at_the_end", [False, True])
def test_deletes_are_forgotten_in_a_chain_of_members(
    tmp_path: Path, lowest_at_the_end: bool
) -> None:
    """None is connected to all. Who says what is forgotten has the lowest id."""

    async def body(cluster: SimCluster) -> None:
        nodes = await cluster.start(4)
        chain = sorted(nodes, key=lambda n: n.namespace.node_id)
        if not lowest_at_the_end:
            chain[0], chain[1] = chain[1], chain[0]
        names = [node.name for node in chain]
        for at, one in enumerate(names):
            for other in names[at + 2 :]:
                cluster.fabric.partition({one}, {other})
                cluster.fabric.sever(one, other)
        for number in range(500):
            chain[0].create(b"f%d" % number)
        for number in range(500):
            chain[0].unlink(b"f%d" % number)
        await trio.sleep(20)
        assert chain[0].node is not None
        assert len(chain[0].node.peers) == 1
        assert chain[3].namespace.registers_count() > 1500
        await trio.sleep(300)
        for node in chain:
            assert node.namespace.registers_count() < 50
        cut = chain[3]
        cluster.fabric.partition({cut.name}, {n.name for n in chain[:3]})
        for number in range(500, 1000):
            chain[0].create(b"f%d" % number)
            chain[0].unlink(b"f%d" % number)
        await trio.sleep(600)
        assert chain[0].namespace.registers_count() > 1000, "one does not know them"

    simulate(body, tmp_path)


@simulated
async def test_deletes_are_forgotten_although_a_clock_was_set_back(
    cluster: SimCluster,
) -> None:
    a, b, c = await cluster.start(3)
    await trio.sleep(130)
    for number in range(500):
        a.create(b"f%d" % number)
        a.unlink(b"f%d" % number)
    c.skew_ms = -280_000
    await cluster.until_equal()
    await trio.sleep(250)
    for node in (a, b, c):
        assert node.namespace.registers_count() < 50


def test_who_has_joined_in_part_does_not_say_what_all_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id is the lowest, and it has not heard of a member that is away."""
    monkeypatch.setattr(deltas, "DELTA_BYTES", 20_000)
    monkeypatch.setattr(deltas, "DELTA_AHEAD_BYTES", 20_000)

    async def body(cluster: SimCluster) -> None:
        founder, joins, away = (cluster.add() for _ in range(3))
        assert joins.id < founder.id < away.id, "a delta goes by id"
        await founder.start()
        await away.start()
        await cluster.until_connected()
        for number in range(300):
            founder.create(b"f%d" % number)
        await cluster.until_equal()
        await away.stop()
        for number in range(300):
            founder.unlink(b"f%d" % number)
        for number in range(1000):
            founder.create(b"g%d" % number)
        await trio.sleep(150)
        cluster.fabric.bytes_per_s = 20_000
        await joins.start()
        await cluster.until(lambda: joins.namespace.vector().get(founder.id, 0) > 650)
        cluster.fabric.partition({joins.name}, {founder.name})
        cluster.fabric.sever(joins.name, founder.name)
        assert away.id not in joins.namespace.members()
        await trio.sleep(200)
        cluster.fabric.heal()
        cluster.fabric.bytes_per_s = 1e9
        await trio.sleep(60)
        assert joins.namespace.horizon() == founder.namespace.horizon() == {}
        await away.start()
        await cluster.until_connected()
        await cluster.until_equal()
        for node in cluster.nodes:
            assert len(node.names()) == 1000, "removed files came back"

    simulate(body, tmp_path, seed=3)


@simulated
async def test_deletes_are_remembered_while_a_member_is_away(
    cluster: SimCluster,
) -> None:
    a, b, c = await cluster.start(3)
    for number in range(500):
        a.create(b"f%d" % number)
    await cluster.until_equal()
    await c.stop()
    for number in range(500):
        a.unlink(b"f%d" % number)
    await trio.sleep(1000)
    assert b.namespace.registers_count() > 1500
    await c.start()
    await cluster.until_connected()
    await cluster.until_equal()
    assert c.names() == []


def test_many_deletes_are_forgotten_in_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member was away for long: nobody writes while one step is taken."""
    monkeypatch.setattr(horizon, "STEP_REGISTERS", 100)
    dropped: list[int] = []

    def counted(*arguments: Any) -> int:
        dropped.append(tombstones.collect(*arguments))
        return dropped[-1]

    for module in (writing, replicate):
        monkeypatch.setattr(module, "collect", counted)

    async def body(cluster: SimCluster) -> None:
        a, b, c = await cluster.start(3)
        await c.stop()
        for number in range(300):
            a.create(b"f%d" % number)
            a.unlink(b"f%d" % number)
            b.create(b"g%d" % number)
            b.unlink(b"g%d" % number)
        await trio.sleep(200)
        assert not any(dropped)
        await c.start()
        await cluster.until_connected()
        await trio.sleep(200)
        await cluster.until_equal()
        for node in (a, b, c):
            assert node.namespace.registers_count() < 50
        assert 0 < max(dropped) <= 110

    simulate(body, tmp_path)


@simulated
async def test_after_a_power_cut_nobody_counts_on_what_may_not_be_back(
    cluster: SimCluster,
) -> None:
    """It asks each member for what it lost; as long as it cannot reach one of them, its
    Hello says of its own transactions no more than what it had on its disk."""
    a, b, c = await cluster.start(3)
    await cluster.until_equal()
    cluster.fabric.partition({a.name}, {c.name})
    cluster.fabric.sever(a.name, c.name)
    a.checkpoint()
    for number in range(20):
        a.create(b"f%d" % number)
        a.unlink(b"f%d" % number)
    await cluster.until_equal()
    await a.power_cut()
    await a.start()
    await cluster.until_equal()
    for number in range(200):
        b.create(b"g%d" % number)
        b.unlink(b"g%d" % number)
    await cluster.until_equal()
    assert c.namespace.registers_count() > 600
    await trio.sleep(400)
    assert c.namespace.registers_count() < 200
    cluster.fabric.heal()
    await trio.sleep(60)
    assert a.node is not None
    assert c.id in a.node.peers


@simulated
async def test_who_came_before_deletes_were_forgotten_gets_no_delta_without_them(
    cluster: SimCluster,
) -> None:
    """A store restored from a copy, whose Hello was a moment too early."""
    a, b = await cluster.start(2)
    for number in range(600):
        a.create(b"f%d" % number)
        a.unlink(b"f%d" % number)
    await trio.sleep(300)
    assert a.node is not None
    peer = a.node.peers.get(b.id)
    assert peer is not None and a.namespace.horizon()
    a.node._horizons.admits(peer, a.namespace.horizon())
    assert not peer.why_closed
    await a.node._serving._handle(peer, Received(Want(7, {b.id: Seq(1)}), b""))
    assert "deletes were forgotten" in peer.why_closed
    assert not peer.outgoing.behind


@pytest.mark.parametrize("power_cut", [False, True])
def test_what_nobody_has_does_not_keep_deletes_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power_cut: bool
) -> None:
    """A delta was broken off, and what it was to bring is gone: who made it was lost
    for good, and forgotten, or lost it in a power cut."""
    monkeypatch.setattr(deltas, "DELTA_BYTES", 5_000)
    monkeypatch.setattr(deltas, "DELTA_AHEAD_BYTES", 5_000)

    async def body(cluster: SimCluster) -> None:
        a, b, lost = await cluster.start(3)
        apart = {lost.name}, {a.name, b.name}
        await cluster.until_equal()
        cluster.fabric.partition(*apart)
        for node in (a, b):
            cluster.fabric.sever(lost.name, node.name)
        await trio.sleep(20)
        lost.checkpoint()
        for number in range(300):
            lost.create(b"lost%d" % number)
        cluster.fabric.heal()
        cluster.fabric.partition({lost.name}, {a.name})
        cluster.fabric.bytes_per_s = 10_000
        await cluster.until(lambda: lost.id in b.namespace.awaited())
        cluster.fabric.partition(*apart)
        cluster.fabric.sever(lost.name, b.name)
        cluster.fabric.bytes_per_s = 1e9
        await (lost.power_cut() if power_cut else lost.stop())
        assert b.namespace.in_delta()
        if power_cut:
            cluster.fabric.heal()
            await lost.start()
            await cluster.until_connected()
        else:
            member = a.namespace.members()[lost.id]
            a.publish(a.namespace.put_member(lost.id, member.removed()))
        for number in range(300):
            a.create(b"f%d" % number)
            a.unlink(b"f%d" % number)
        await trio.sleep(300)
        await cluster.until_equal()
        for node in cluster.running:
            assert not node.namespace.in_delta()
            assert node.namespace.registers_count() < 1000

    simulate(body, tmp_path)
