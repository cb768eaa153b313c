"""On a slow line: what a program waits for comes before what nobody waits for yet."""

from __future__ import annotations

import os

import trio

from fusefs.model.ids import ChunkId
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.running import simulated
from tests.sim.test_patches import publish

SIZE = 1 << 20
RATE = 2.5e6
CHUNK_S = SIZE / RATE
"""20 Mbit/s: 0.42 s."""


async def slow_pair(cluster: SimCluster) -> tuple[SimNode, SimNode]:
    a, b = await cluster.start(2)
    await trio.sleep(2)
    cluster.fabric.bytes_per_s = RATE
    return a, b


def stored(node: SimNode, count: int) -> list[ChunkId]:
    return [node.store.put(os.urandom(SIZE)) for _ in range(count)]


async def seconds(node: SimNode, cid: ChunkId) -> float:
    began = trio.current_time()
    assert await node.fetch([cid], 60) == 0
    return trio.current_time() - began


@simulated
async def test_it_overtakes_what_was_asked_ahead(cluster: SimCluster) -> None:
    a, b = await slow_pair(cluster)
    wanted, *ahead = stored(a, 7)
    assert b.node is not None
    b.node.prefetch(ahead, (a.id,))
    await trio.sleep(CHUNK_S / 2)
    assert await seconds(b, wanted) < 3.2 * CHUNK_S  # one goes, one is read
    assert len(b.store.missing(ahead)) >= 4
    await trio.sleep(7 * CHUNK_S)
    assert b.store.missing(ahead) == []


@simulated
async def test_it_overtakes_copies_that_are_brought(cluster: SimCluster) -> None:
    a, b = await slow_pair(cluster)
    copies = publish(a, b"file", [os.urandom(SIZE) for _ in range(20)])
    (wanted,) = stored(a, 1)
    while len(b.store.missing(copies)) > 15:
        await trio.sleep(CHUNK_S / 4)
    assert await seconds(b, wanted) < 3.2 * CHUNK_S
    assert len(b.store.missing(copies)) >= 12
