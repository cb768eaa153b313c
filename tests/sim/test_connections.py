"""Connections that break, or fall silent, one by one while the nodes live on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import trio

from fusefs.model.ids import ROOT_INO, ChunkId, Ino, chunk_id
from fusefs.nodelink.ranges import WRITE, LockKey, Range
from netnode.core.locks import LEASE_S
from netnode.heartbeat import DEAD_S, HEARTBEAT_S
from netnode.peers import Peer
from netnode.transport import Buffer
from netnode.wire import messages
from netnode.wire.session import Received
from tests.sim.cluster import SimCluster, SimNode, inline
from tests.sim.network import MemoryStream
from tests.sim.running import simulated

T = TypeVar("T")
SIZE = 1_000_000


def stored(node: SimNode) -> ChunkId:
    """A chunk that only it has, and does not push."""
    data = b"y" * SIZE
    node.store.put_verified(chunk_id(data), data, 0)
    return chunk_id(data)


def bulk(node: SimNode, other: SimNode) -> MemoryStream:
    assert node.node is not None
    connection = node.node.chunks.bulk(other.id)
    assert connection is not None
    assert isinstance(connection.stream, MemoryStream)
    return connection.stream


def swallowed(*parts: Buffer) -> None:
    """A router on the way knows nothing of the connection any more."""


async def until_pinged() -> None:
    await trio.sleep(HEARTBEAT_S + 0.1)


@simulated
async def test_fetch_goes_on_when_only_the_bulk_connection_breaks(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    cid = stored(a)
    cluster.fabric.bytes_per_s = SIZE

    async def cut() -> None:
        await trio.sleep(0.3)
        stream = bulk(a, b)
        stream.close()
        stream.other.close()

    cluster.nursery.start_soon(cut)
    assert await b.fetch([cid]) == 0
    assert b.node is not None and a.id in b.node.peers


@simulated
async def test_what_was_written_just_before_the_end_arrives(
    cluster: SimCluster,
) -> None:
    """In one piece with the farewell."""
    a, b = await cluster.start(2)
    await until_pinged()
    seq = b.create(b"last")
    await b.stop()
    await trio.sleep(1)
    assert a.namespace.vector()[b.id] >= seq


@simulated
async def test_bulk_connection_that_was_forgotten_on_the_way_is_made_anew(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    cid = stored(b)
    await until_pinged()
    stream = bulk(a, b)
    stream.send_nowait = stream.other.send_nowait = swallowed  # type: ignore
    assert await a.fetch([cid], DEAD_S + 2 * HEARTBEAT_S) == 0
    assert a.node is not None and b.id in a.node.peers


@simulated
async def test_what_was_asked_on_a_bulk_connection_is_asked_on_the_next(
    cluster: SimCluster,
) -> None:
    """The side that dialled notices first."""
    a, b = await cluster.start(2)
    assert a.node is not None
    peer = a.node.peers.get(b.id)
    assert peer is not None
    dialler, other = (a, b) if peer.dialled else (b, a)
    cid = stored(dialler)
    stream = bulk(dialler, other)
    stream.other.send_nowait = swallowed  # type: ignore[method-assign]

    async def break_one_end() -> None:
        await trio.sleep(0.2)
        stream._closed = True
        stream._arrived.set()

    cluster.nursery.start_soon(break_one_end)
    assert await other.fetch([cid], 2.0) == 0


@simulated
async def test_peer_is_not_silent_while_this_node_works_on_what_it_said(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    assert a.node is not None and b.node is not None
    peer = b.node.peers.get(a.id)
    pauses = [2 * DEAD_S]

    async def slowly(work: Callable[[], T], /) -> T:
        await trio.sleep(pauses.pop() if pauses else 0)
        return await inline(work)

    b.node.environment.offload = slowly
    txs = []
    for number in range(100):  # more than are applied without a thread
        with a.namespace.transaction() as t:
            t.set_xattr(ROOT_INO, b"user.n%d" % number, b"x")
        assert t.tx is not None
        txs.append(t.tx)
    a.node.publish(txs)
    await trio.sleep(3 * DEAD_S)
    assert not pauses
    assert b.node.peers.get(a.id) is peer


@simulated
async def test_what_came_on_a_connection_counts_no_more_than_it(
    cluster: SimCluster,
) -> None:
    """It was read together with a batch that was being applied when another connection
    took its place, which has told what is newer."""
    a, b = await cluster.start(2)
    assert a.node is not None and b.node is not None
    owner, other = a.node, b.node
    key = next(
        key
        for key in (LockKey(Ino(number), False) for number in range(100, 200))
        if owner.locking._owner.is_mine(key)
    )
    peer = owner.peers.get(other.me)
    assert peer is not None
    old = [Received(messages.Live(()), b""), Received(messages.LockAssert(()), b"")]

    async def apply_slowly(peer: Peer, live: Sequence[messages.Live]) -> None:
        cluster.fabric.sever("a", "b")  # the thread goes on
        await cluster.until(lambda: owner.peers.get(other.me) not in (None, peer))
        await trio.sleep(LEASE_S)
        taken = b.ask_lock(key.ino, Range(1, WRITE))
        await trio.sleep(0.1)
        assert taken.error == 0

    live, owner.replicator.live = owner.replicator.live, apply_slowly  # type: ignore
    await owner._serving._handle_many(peer, old)
    owner.replicator.live = live  # type: ignore[method-assign]
    [verdict] = owner.locking._owner._table.test(a.id, 0, key, Range(1, WRITE))
    assert not verdict.granted
