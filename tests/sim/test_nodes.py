"""Whole nodes over the network in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from fusefs.errors import ChunkMissing, NoSpace
from fusefs.model.ids import ROOT_INO, ChunkId, chunk_id
from fusefs.model.records import S_REG, Member
from fusefs.namespace import replicate, tombstones, writing
from fusefs.store.files import path_of
from fusefs.store.store import Store
from fusefs.store.types import PUSHED, RESPONSIBLE
from netnode.core import horizon, pushes
from netnode.transport import BrokenStream
from netnode.wire.messages import Have
from tests.sim.cluster import SimCluster, SimNode, SimWorker
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
async def test_fetch_from_several_and_unreachable_at_once(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    chunks = [bytes((n,)) * 100_000 for n in range(30)]
    ids = [a.store.put(data) for data in chunks]
    for data in chunks:
        b.store.put(data)
    assert await c.fetch(ids) == 0
    assert c.store.missing(ids) == []
    assert a.node is not None and b.node is not None
    assert a.node.chunks.served_chunks > 3
    assert b.node.chunks.served_chunks > 3
    began = trio.current_time()
    assert await c.fetch([chunk_id(b"nowhere")]) == errno.EHOSTUNREACH
    assert trio.current_time() - began < 0.1


@simulated
async def test_fetch_goes_on_when_a_source_dies(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    cluster.fabric.bytes_per_s = 5e6
    chunks = [bytes((n,)) * 500_000 for n in range(20)]
    ids = [a.store.put(data) for data in chunks]
    for data in chunks:
        b.store.put(data)
    result: list[int] = []

    async def fetch() -> None:
        result.append(await c.fetch(ids, 60))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        await trio.sleep(0.4)
        await a.crash()
    assert result == [0]
    assert c.store.missing(ids) == []


@simulated
async def test_fetch_from_a_silent_peer_ends_at_its_deadline(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    cid = a.store.put(b"z" * 1000)
    cluster.fabric.block("a", "b")
    began = trio.current_time()
    assert await b.fetch([cid], 2.0) == errno.ETIMEDOUT
    assert trio.current_time() - began < 2.1


@simulated
async def test_bad_bytes_are_refused_and_fetched_elsewhere(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    data = b"good" * 20_000
    cid = chunk_id(data)
    a.store.put(b"evil" * 20_000, cid)
    b.store.put(data)
    assert await c.fetch([cid]) == 0
    assert c.store.get(cid) == data


@simulated
async def test_replicas_are_pushed_and_confirmed(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    data = b"r" * 200_000
    a.create(b"file", data=None)
    cid = a.store.put(data)
    with a.namespace.transaction() as t:
        entry = t.entry(1, b"file")
        assert entry is not None
        t.set_content(
            entry.ino, size=len(data), root=cid, chunk_log2=20, mtime_ns=t.now_ns
        )
    a.publish(t.tx)
    assert a.store.flags(cid) & PUSHED
    await trio.sleep(5)
    assert b.store.get(cid) == c.store.get(cid) == data
    assert not a.store.flags(cid) & PUSHED


def write_large(node: SimNode, name: bytes) -> list[ChunkId]:
    """A file of three chunks; they and its manifest."""
    chunks = [bytes((n,)) * 65536 for n in range(3)]
    ids = [node.store.put(data) for data in chunks]
    ids.append(node.store.put(b"".join(ids)))
    with node.namespace.transaction() as t:
        ino = t.new_ino(ROOT_INO, name, S_REG)
        t.create(ROOT_INO, name, ino, 0o100644, 0, 0)
        t.set_content(
            ino, size=3 * 65536, root=ids[-1], chunk_log2=16, mtime_ns=t.now_ns
        )
    node.publish(t.tx)
    return ids


@simulated
async def test_what_was_collected_and_is_written_again_is_pushed_again(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    ids = write_large(a, b"file")
    await trio.sleep(5)
    assert b.store.missing(ids) == []
    for node in (a, b):
        for cid in ids:
            assert node.store.delete_older(cid, float("inf"))
    assert write_large(a, b"again") == ids
    await trio.sleep(5)
    assert b.store.missing(ids) == []
    assert list(a.store.pushed()) == []


@simulated
async def test_copies_that_are_confirmed_while_the_disk_is_full_count_later(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    set_flags, refusals = a.store.set_flags, iter(range(3))

    def full(cids: Iterable[ChunkId], **flags: int) -> None:
        if next(refusals, None) is not None:
            raise NoSpace("the store's disk is full (small.db)")
        set_flags(cids, **flags)

    a.store.set_flags = full  # type: ignore[method-assign, assignment]
    ids = write_large(a, b"file")
    await trio.sleep(40)
    assert next(refusals, None) is None
    assert b.store.missing(ids) == []
    assert list(a.store.pushed()) == []


@simulated
async def test_what_a_keeper_fetched_and_did_not_keep_is_pushed(
    cluster: SimCluster,
) -> None:
    """A reader there had it, and it was evicted, or found no room."""
    a, b = await cluster.start(2)
    ids = write_large(a, b"file")
    assert await b.fetch(ids) == 0
    for cid in ids:
        b.store.delete(cid)
    await trio.sleep(10)
    assert a.node is not None and a.node.keeper.backlog() == 0
    assert b.store.missing(ids) == []
    assert list(a.store.pushed()) == []


@simulated
async def test_what_was_missed_is_fetched_by_its_keepers(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    await b.stop()
    a.create(b"file", data=b"missed" * 100)
    await b.start()
    await cluster.until_connected()
    await trio.sleep(5)
    assert b.store.has(chunk_id(b"missed" * 100))


@simulated
async def test_single_replica_stays_with_the_writer(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    a.publish(a.namespace.put_setting(b"replicas", b"\x01"))
    await cluster.until_equal()
    data = b"q" * 200_000
    cid = a.store.put(data)
    a.create(b"file")
    with a.namespace.transaction() as t:
        entry = t.entry(1, b"file")
        assert entry is not None
        t.set_content(
            entry.ino, size=len(data), root=cid, chunk_log2=20, mtime_ns=t.now_ns
        )
    a.publish(t.tx)
    await trio.sleep(10)
    assert not b.store.has(cid)
    assert await b.fetch([cid]) == 0


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
    assert a.node.replicator.sync_state() == "in sync"


@simulated
async def test_status_says_behind_and_in_sync(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    await trio.sleep(5)
    assert b.node is not None
    assert b.node.replicator.sync_state() == "in sync"
    await a.stop()
    await trio.sleep(1)
    assert b.node.replicator.sync_state() == "alone"


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
                cluster.fabric.block(one, other)
                cluster.fabric.block(other, one)
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
async def test_copies_are_made_again_when_a_member_is_forgotten(
    cluster: SimCluster,
) -> None:
    nodes = await cluster.start(5)
    a = nodes[0]
    chunks = [bytes((n,)) * 40_000 for n in range(12)]
    for number, data in enumerate(chunks):
        cid = a.store.put(data)
        with a.namespace.transaction() as t:
            ino = t.new_ino(1, b"f%d" % number, 8)
            t.create(1, b"f%d" % number, ino, 0o100644, 0, 0)
            t.set_content(
                ino, size=len(data), root=cid, chunk_log2=20, mtime_ns=t.now_ns
            )
        a.publish(t.tx)
    ids = [chunk_id(data) for data in chunks]

    def copies() -> list[int]:
        return [sum(n.store.has(cid) for n in cluster.running) for cid in ids]

    await trio.sleep(20)
    assert min(copies()) >= 3
    gone = max(nodes[1:], key=lambda n: sum(n.store.has(cid) for cid in ids))
    await gone.stop()
    assert min(copies()) < 3
    a.publish(a.namespace.put_member(gone.id, Member(gone.name, (), b"", True)))
    await trio.sleep(150)
    assert min(copies()) >= 3


def write_small(node: SimNode, count: int, first: int = 0) -> list[ChunkId]:
    """Files of one chunk each, which does not travel with its transaction."""
    ids = []
    for number in range(first, first + count):
        ids.append(node.store.put(b"%d" % number * 100))
        with node.namespace.transaction() as t:
            ino = t.new_ino(ROOT_INO, b"s%d" % number, S_REG)
            t.create(ROOT_INO, b"s%d" % number, ino, 0o100644, 0, 0)
            t.set_content(ino, size=9, root=ids[-1], chunk_log2=20, mtime_ns=t.now_ns)
        node.publish(t.tx)
    return ids


def test_who_is_away_for_long_keeps_no_copies_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it lacks is more than is remembered."""
    monkeypatch.setattr(pushes, "MAX_OWED", 8)

    async def body(cluster: SimCluster) -> None:
        a, b, c = await cluster.start(3)
        await c.stop()
        scans, ids = [0], []
        pushed = a.store.pushed

        def counted() -> Iterator[tuple[ChunkId, int]]:
            scans[0] += 1
            return pushed()

        monkeypatch.setattr(a.store, "pushed", counted)
        for number in range(10):
            ids += write_small(a, 4, 4 * number)
            await trio.sleep(3)
        assert b.store.missing(ids) == []
        assert a.node is not None and a.node.keeper.backlog() == 40
        before = scans[0]
        await trio.sleep(60)
        assert scans[0] == before, "nothing new can be found"
        await c.start()
        await cluster.until_equal()
        await trio.sleep(30)
        assert c.store.missing(ids) == []
        assert a.node.keeper.backlog() == 0
        assert list(pushed()) == []

    simulate(body, tmp_path)


@simulated
async def test_nothing_waits_for_a_member_that_was_forgotten(
    cluster: SimCluster,
) -> None:
    a, b, c = await cluster.start(3)
    await c.stop()
    ids = write_small(a, 5)
    await trio.sleep(10)
    assert a.node is not None and a.node.keeper.backlog() == 5
    a.publish(a.namespace.put_member(c.id, Member(c.name, (), b"", True)))
    await trio.sleep(10)
    assert a.node.keeper.backlog() == 0
    assert list(a.store.pushed()) == []
    assert b.store.missing(ids) == []


@simulated
async def test_what_was_removed_lacks_no_copies(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    await b.stop()
    ids = write_small(a, 5)
    await trio.sleep(10)
    for cid in ids[:4]:
        a.store.delete(cid)
    await trio.sleep(700)
    assert a.node is not None and a.node.keeper.backlog() == 1


@simulated
async def test_a_node_that_only_serves_keeps_nothing_that_was_removed(
    cluster: SimCluster,
) -> None:
    """The worker collects garbage; what the node had open takes room until it lets
    go."""
    (a,) = await cluster.start(1)
    cid = a.store.put(b"served" * 10_000)
    await trio.sleep(30)
    a.store.get(cid)
    worker = Store.open(a.directory, min_free_bytes=0)
    worker.delete(cid)
    worker.close()
    assert a.store.statistics().open_files == 1
    await trio.sleep(10)
    assert a.store.statistics().open_files == 0


@simulated
async def test_damaged_chunk_is_found_and_fetched_again(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    data = b"precious" * 8000
    a.store.put(b"worthless" * 7000, chunk_id(data))
    b.store.put(data)
    await trio.sleep(60)
    assert a.store.get(chunk_id(data)) == data
    assert a.node is not None and a.node.upkeep.damaged == 1


@simulated
async def test_a_copy_that_a_reader_found_damaged_is_a_copy_again(
    cluster: SimCluster,
) -> None:
    """The writer counts on it; as cache it would be evicted one day."""
    a, b = await cluster.start(2)
    ids = write_large(a, b"file")
    small = chunk_id(b"small")
    a.create(b"other", data=b"small")
    await trio.sleep(5)
    assert list(a.store.pushed()) == []
    await b.stop()
    await b.start()  # what was there before is hashed before it is used
    for cid in ids[:2]:
        path = b.directory / "objects" / path_of(cid)
        path.chmod(0o600)
        path.write_bytes(b"?" * 65536)
        os.utime(path, (0, 0))
    with b.store.lock:
        b.store.database.run("UPDATE small SET data = x'00' WHERE id = ?", (small,))
    for cid in (*ids[:2], small):
        with pytest.raises(ChunkMissing):
            b.store.get(cid)
    await cluster.until_connected()
    assert await b.fetch([*ids[:2], small]) == 0
    assert not b.store.flags(ids[0]) & RESPONSIBLE
    await trio.sleep(30)
    assert all(b.store.flags(cid) & RESPONSIBLE for cid in (*ids[:2], small))
    assert b.store.lost_s() is None


@simulated
async def test_what_was_lost_with_the_index_of_objects_is_fetched_from_all_who_come(
    cluster: SimCluster,
) -> None:
    a, b, c = await cluster.start(3)
    await b.stop()
    mine = write_large(a, b"file")
    theirs = chunk_id(b"of c")
    c.create(b"other", data=b"of c")
    await a.stop()
    await b.start()
    await cluster.until_connected()
    await cluster.until_equal()
    await trio.sleep(5)
    for cid in (*mine, theirs):
        for node in (b, c):
            node.store.delete(cid)  # all of c's copies but those of the writers
    c.store.put(b"of c")
    b.store.note_lost()
    await trio.sleep(60)
    assert b.store.missing([*mine, theirs]) == mine
    assert b.store.lost_s() is not None  # a was not asked
    await a.start()
    await cluster.until_connected()
    await trio.sleep(60)
    assert b.store.missing(mine) == []
    assert b.store.lost_s() is None


@simulated
async def test_chunk_found_damaged_while_alone_is_fetched_when_a_peer_comes(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    data = b"precious" * 8000
    cid = chunk_id(data)
    b.store.put(data)
    b.store.set_flags([cid], set_=RESPONSIBLE, clear=PUSHED)
    await b.stop()
    a.store.put(b"worthless" * 7000, cid)
    await trio.sleep(60)
    assert a.node is not None and a.node.upkeep.damaged == 1
    assert not a.store.has(cid)
    await b.start()
    await cluster.until_connected()
    await trio.sleep(5)
    assert a.store.get(cid) == data
    assert a.store.flags(cid) & RESPONSIBLE


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


@simulated
async def test_one_wrong_clock_leaves_out_nobody_else(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    b.skew_ms = 700_000
    b.create(b"future", data=b"written later")
    await trio.sleep(1)
    b.skew_ms = 0
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


def keepers(cluster: SimCluster, cid: ChunkId) -> int:
    """How many nodes that run never evict it."""
    stores = [node.store for node in cluster.running]
    flags = [store.flags(cid) for store in stores if store.has(cid)]
    return sum(bool(found & (PUSHED | RESPONSIBLE)) for found in flags)


def write_many(node: SimNode) -> list[ChunkId]:
    """Files of one chunk each."""
    contents = [b"%04d" % n * 20_000 for n in range(40)]
    for number, data in enumerate(contents):
        node.create(b"%d" % number, data=data)
    return [chunk_id(data) for data in contents]


async def with_two_copies(cluster: SimCluster) -> list[ChunkId]:
    """Of each chunk, on some of four nodes."""
    a, *_ = await cluster.start(4)
    a.publish(a.namespace.put_setting(b"replicas", b"\x02"))
    await cluster.until_equal()
    ids = write_many(a)
    await trio.sleep(10)
    assert [keepers(cluster, cid) for cid in ids] == [2] * len(ids)
    return ids


@simulated
async def test_who_keeps_a_chunk_no_more_gives_it_up_once_others_do(
    cluster: SimCluster,
) -> None:
    ids = await with_two_copies(cluster)
    joined = cluster.add()
    await joined.start()
    await cluster.until_connected()
    await cluster.until_equal()
    await trio.sleep(200)
    assert [keepers(cluster, cid) for cid in ids] == [2] * len(ids)
    assert any(joined.store.has(cid) for cid in ids)
    assert cluster.nodes[0].store.missing(ids) == [], "cache, while there is room"


@simulated
async def test_fewer_replicas_are_kept_once_the_setting_says_so(
    cluster: SimCluster,
) -> None:
    ids = await with_two_copies(cluster)
    a = cluster.nodes[0]
    a.publish(a.namespace.put_setting(b"replicas", b"\x01"))
    await cluster.until_equal()
    await trio.sleep(200)
    assert [keepers(cluster, cid) for cid in ids] == [1] * len(ids)


@simulated
async def test_nothing_is_given_up_while_who_should_keep_it_is_away(
    cluster: SimCluster,
) -> None:
    ids = await with_two_copies(cluster)
    joined = cluster.add()
    await joined.start()
    await cluster.until_connected()
    await cluster.until_equal()
    await joined.stop()
    await trio.sleep(400)
    assert min(keepers(cluster, cid) for cid in ids) == 2
    await joined.start()
    await cluster.until_connected()
    await trio.sleep(60)
    assert min(keepers(cluster, cid) for cid in ids) == 2


@simulated
async def test_what_was_promised_meanwhile_is_not_given_up(cluster: SimCluster) -> None:
    """A peer with another view of the members counts on it by then."""
    ids = await with_two_copies(cluster)
    a, b = cluster.nodes[:2]
    assert a.node is not None and b.node is not None
    a.node.keeper._leaving.begin(ids[0])
    number = b.node.chunks.next_number()
    connection = b.node.chunks.bulk(a.node.me)
    assert connection is not None
    connection.send(Have(number, (ids[0],), keep=True))
    await trio.sleep(1)
    a.node.keeper._settled.append(ids[0])
    await trio.sleep(1)
    assert a.store.flags(ids[0]) & RESPONSIBLE
