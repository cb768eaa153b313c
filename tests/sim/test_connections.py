"""Connections that break, or fall silent, one by one while the nodes live on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from fusefs.model.ids import ROOT_INO
from netnode.heartbeat import DEAD_S
from tests.sim.cluster import SimCluster, inline
from tests.sim.running import simulated

T = TypeVar("T")


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
