"""Whole nodes over the network in memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from fusefs.model.ids import chunk_id
from fusefs.model.records import Member
from netnode.transport import BrokenStream
from tests.sim.cluster import SimCluster, SimWorker
from tests.sim.running import simulate, simulated


@simulated
async def test_live_transaction_arrives_with_its_bytes(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    seq = a.create(b"file", data=b"hello")
    assert await a.barrier(seq)
    assert b.names() == [b"file"]
    assert b.store.get(chunk_id(b"hello")) == b"hello"


@simulated
async def test_barrier_waits_until_the_worker_has_forgotten(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    worker = SimWorker(b, delay_s=0.05)
    cluster.nursery.start_soon(worker.run)
    await trio.sleep(1)
    began = trio.current_time()
    assert await a.barrier(a.create(b"file"))
    assert 0.05 <= trio.current_time() - began < 0.07
    assert [e.name for f in worker.effects for e in f.entries] == [b"file"]


@simulated
async def test_barrier_with_a_stuck_worker_times_out_and_later_is_not_waited_for(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    SimWorker(b)  # never answers
    assert not await a.barrier(a.create(b"one"), 0.02)
    await trio.sleep(1.5)
    began = trio.current_time()
    assert await a.barrier(a.create(b"two"), 0.02)
    assert trio.current_time() == began


@simulated
async def test_far_peers_are_not_waited_for(cluster: SimCluster) -> None:
    cluster.fabric.far("a", "b", 0.04)
    a, _ = await cluster.start(2)
    began = trio.current_time()
    assert await a.barrier(a.create(b"file"))
    assert trio.current_time() == began
    await cluster.until_equal()


@simulated
async def test_near_peer_whose_first_answer_was_late_is_soon_waited_for(
    cluster: SimCluster,
) -> None:
    cluster.fabric.far("a", "b", 0.012)
    a, b = cluster.add(), cluster.add()
    await a.start()
    await b.start()
    await cluster.until(lambda: bool(a.connected() and b.connected()))
    await trio.sleep(0.03)  # one round trip
    cluster.fabric.far("a", "b", 0.0)
    await trio.sleep(0.1)
    assert a.node is not None and b.node is not None
    assert a.node.replicator.near_peers() == b.node.replicator.near_peers() == 1


@simulated
async def test_joining_one_connects_to_all(cluster: SimCluster) -> None:
    nodes = await cluster.start(5)
    for node in nodes:
        assert node.node is not None
        assert len(node.node.peers) == 4


@simulated
async def test_writes_of_both_sides_of_a_partition_meet(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    cluster.fabric.partition({"a"}, {"b", "c"})
    await trio.sleep(10)
    assert a.node is not None and len(a.node.peers) == 0
    for number in range(50):
        a.create(b"a%d" % number)
        b.create(b"b%d" % number)
        c.create(b"c%d" % number)
    cluster.fabric.heal()
    await cluster.until_connected()
    await cluster.until_equal()
    assert len(a.names()) == 150


@simulated
async def test_away_for_a_thousand_operations(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    await b.stop()
    for number in range(1000):
        a.create(b"f%d" % number)
    for number in range(0, 1000, 2):
        a.unlink(b"f%d" % number)
    await b.start()
    await cluster.until_connected()
    await cluster.until_equal()
    assert len(b.names()) == 500


@simulated
async def test_relay_through_a_middle_node(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    cluster.fabric.partition({"a"}, {"c"})
    await trio.sleep(10)
    assert a.node is not None and c.node is not None
    assert a.node.peers.ids() == (b.id,)
    a.create(b"from a", data=b"x" * 100)
    c.create(b"from c")
    await cluster.until_equal()
    assert c.store.has(chunk_id(b"x" * 100))
    await trio.sleep(20)
    assert c.names() == [b"from a", b"from c"]


@simulated
async def test_full_mesh_sends_each_transaction_once_per_peer(
    cluster: SimCluster,
) -> None:
    nodes = await cluster.start(5)
    await trio.sleep(5)
    before = [n.node.replicator.sent_messages for n in nodes if n.node]
    for number in range(100):
        nodes[number % 5].create(b"f%d" % number)
        await trio.sleep(0.01)
    await cluster.until_equal()
    after = [n.node.replicator.sent_messages for n in nodes if n.node]
    # 100 operations to 4 peers each, and an acknowledgement for each of these.
    assert sum(after) - sum(before) <= 100 * 4 * 2


@simulated
async def test_connection_breaks_in_the_stream_lose_nothing(
    cluster: SimCluster,
) -> None:
    a, b, c = await cluster.start(3)
    for number in range(300):
        a.create(b"f%d" % number)
        await trio.sleep(0.002)
        if number % 37 == 0:
            cluster.fabric.sever("a", "b")
        if number % 53 == 0:
            cluster.fabric.sever("b", "c")
    await cluster.until_connected()
    await cluster.until_equal()
    assert len(b.names()) == len(c.names()) == 300


@simulated
async def test_crash_and_restart_converge(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    for round_ in range(5):
        for number in range(20):
            a.create(b"%d-%d" % (round_, number))
            c.create(b"c%d-%d" % (round_, number))
        await b.crash()
        a.create(b"while away %d" % round_)
        await b.start()
    await cluster.until_connected()
    await cluster.until_equal()
    assert len(b.names()) == 205


@simulated
async def test_transactions_the_node_never_heard_of_travel_by_delta(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    with a.namespace.transaction() as t:
        ino = t.new_ino(1, b"silent", 8)
        t.create(1, b"silent", ino, 0o100644, 0, 0)
    await trio.sleep(1)
    assert b.names() == []
    a.create(b"said")
    await cluster.until_equal()
    assert b.names() == [b"said", b"silent"]


@simulated
async def test_slow_peer_does_not_slow_the_others(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    cluster.fabric.block("a", "c")
    began = trio.current_time()
    for number in range(200):
        await a.barrier(a.create(b"f%d" % number, data=b"y" * 60_000), 0.02)
    assert trio.current_time() - began < 2
    assert len(b.names()) == 200
    cluster.fabric.heal()
    await cluster.until_equal()
    assert len(c.names()) == 200


@simulated
async def test_clock_five_minutes_ahead_is_refused(cluster: SimCluster) -> None:
    (a,) = await cluster.start(1)
    b = cluster.add()
    b.skew_ms = 400_000
    await b.start()
    await trio.sleep(10)
    assert a.node is not None and b.node is not None
    assert len(a.node.peers) == len(b.node.peers) == 0
    (failed,) = b.node.dialler.failures()
    assert "400 s ahead" in failed.last_error
    b.skew_ms = 0
    await trio.sleep(60)
    await cluster.until_connected()
    await cluster.until_equal()


def test_node_that_is_refused_again_and_again_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(cluster: SimCluster) -> None:
        await cluster.start(1)
        b = cluster.add()
        b.skew_ms = 400_000
        await b.start()
        await trio.sleep(600)
        assert b.node is not None
        (failed,) = b.node.dialler.failures()
        assert failed.attempts > 10

    simulate(body, tmp_path)
    refused = [r for r in caplog.records if r.getMessage().startswith("refused b")]
    assert len(refused) == 1


@simulated
async def test_lost_register_is_found_by_the_heartbeat_and_repaired(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    for number in range(20):
        a.create(b"f%d" % number)
    await cluster.until_equal()
    state = b.namespace.states([key for key, _ in b.namespace.bucket_keys(7)])
    # Make a register of b something a does not have: a merge of its own.
    with b.namespace.transaction() as t:
        t.set_attrs(b.namespace.entry(1, b"f3").ino, mode=0o100600)  # type: ignore[union-attr]
    tx = t.tx
    assert tx is not None and state is not None
    a.namespace.apply_states([], {b.id: tx.seq})
    assert a.namespace.vector() == b.namespace.vector()
    assert a.namespace.digest() != b.namespace.digest()
    await trio.sleep(15)
    assert a.namespace.digest() == b.namespace.digest()
    assert a.node is not None
    assert a.node.replicator.standing.sentence() == "in sync"


@simulated
async def test_status_says_behind_and_in_sync(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    await trio.sleep(5)
    assert b.node is not None
    assert b.node.replicator.standing.sentence() == "in sync"
    await a.stop()
    await trio.sleep(1)
    assert b.node.replicator.standing.sentence() == "alone"


@simulated
async def test_first_sync_is_pulled_from_one_peer_at_a_time(
    cluster: SimCluster,
) -> None:
    a, *_ = await cluster.start(3)
    for number in range(2000):
        a.create(b"file number %d" % number)
    await cluster.until_equal()
    await trio.sleep(3)
    before = cluster.fabric.bytes
    d = cluster.add()
    await d.start()
    await cluster.until_connected()
    await cluster.until_equal()
    sent = cluster.fabric.bytes - before
    size = sum(
        len(s.key) + len(s.state) for part in a.namespace.delta({}) for s in part.states
    )
    assert sent < 1.7 * size
    assert len(d.names()) == 2000


@simulated
async def test_address_of_another_that_leads_to_ourselves_is_a_failure(
    cluster: SimCluster,
) -> None:
    """So that the next one is tried: 172.17.0.1 is on every machine with Docker."""
    a, b = await cluster.start(2)
    assert a.node is not None
    with pytest.raises(BrokenStream, match="another node"):
        await a.node._dial("a:1", b.id)
    await a.node._dial("a:1", None)  # a bare address may be our own


@pytest.mark.parametrize("restarted", [False, True])
def test_one_wrong_clock_leaves_out_nobody_else(
    tmp_path: Path, restarted: bool
) -> None:
    simulate(partial(_one_wrong_clock, restarted), tmp_path)


async def _one_wrong_clock(restarted: bool, cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    b.skew_ms = 700_000
    b.create(b"future", data=b"written later")
    await trio.sleep(1)
    b.skew_ms = 0
    if restarted:
        await b.stop()
        await b.start()
    await trio.sleep(10)
    assert a.names() == c.names() == []
    a.create(b"from a")
    c.create(b"from c")
    for node in (a, c):
        await node.stop()
        await node.start()
    await trio.sleep(20)
    assert a.names() == c.names() == [b"from a", b"from c"]
    assert a.connected() == [c]
    assert b.node is not None
    assert "dfs mount --join" in b.node.refused
    await trio.sleep(420)  # until it is five minutes from now
    await cluster.until_equal()
    assert a.names() == [b"from a", b"from c", b"future"]
    assert b.node.refused == ""


@simulated
async def test_a_heartbeat_acknowledges_nothing_while_something_is_applied(
    cluster: SimCluster,
) -> None:
    """It is in the database, and the kernel was not told of it yet."""
    (a,) = await cluster.start(1)
    assert a.node is not None
    replicator = a.node.replicator
    assert replicator.ping(1).settled
    async with replicator._applying:
        assert not replicator.ping(2).settled
    assert replicator.ping(3).settled


@simulated
async def test_another_address_of_a_running_node_reaches_all(
    cluster: SimCluster,
) -> None:
    a, b, c = await cluster.start(3)
    assert a.node is not None and b.node is not None and c.node is not None
    cluster.fabric.partition({"a", "b"}, {"c"})
    moved = ("elsewhere:1",)
    a.node.settings = a.node.settings._replace(addresses=lambda port: moved)
    await trio.sleep(40)
    cluster.fabric.heal()
    cluster.fabric.partition({"a"}, {"b", "c"})
    await trio.sleep(40)
    for other in (b.node, c.node):  # c has it from b
        member = other.membership.member(a.node.me)
        assert member is not None and member.addresses == moved
    cluster.fabric.heal()
    a.publish(a.namespace.put_member(b.node.me, Member("b", (), b"", True)))
    await trio.sleep(40)
    forgotten = a.node.membership.member(b.node.me)
    assert forgotten is not None and forgotten.forgotten  # it does not come back
