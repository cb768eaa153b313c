"""Random work on every node while links break, sides part and processes die."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from fusefs.errors import FsError
from fusefs.model.ids import ROOT_INO
from netnode.core import horizon
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.running import simulate

NODES = 4
STEPS = 120


def work(node: SimNode, rng: random.Random) -> None:
    """One operation of a program, as far as it is possible there now."""
    name = b"n%d" % rng.randrange(30)
    entry = node.namespace.entry(ROOT_INO, name)
    if entry is None:
        node.create(name, data=rng.randbytes(rng.randrange(1, 300)))
        return
    choice = rng.randrange(4)
    with node.namespace.transaction() as t:
        if choice == 0:
            t.unlink(ROOT_INO, name)
        elif choice == 1:
            new = b"n%d" % rng.randrange(30)
            if new != name:
                t.rename(ROOT_INO, name, ROOT_INO, new)
        elif choice == 2:
            t.set_attrs(entry.ino, mode=rng.choice((0o100600, 0o100644, 0o100755)))
        else:
            data = rng.randbytes(100)
            cid = node.store.put(data)
            t.set_content(
                entry.ino, size=100, root=cid, chunk_log2=20, mtime_ns=t.now_ns
            )
    if t.tx is not None:
        node.publish(t.tx)


async def disturb(cluster: SimCluster, rng: random.Random) -> None:
    a, b = rng.sample(cluster.nodes, 2)
    match rng.randrange(6):
        case 0:
            cluster.fabric.sever(a.name, b.name)
        case 1:
            names = [n.name for n in cluster.nodes]
            rng.shuffle(names)
            cut = rng.randrange(1, len(names))
            cluster.fabric.partition(set(names[:cut]), set(names[cut:]))
        case 2:
            cluster.fabric.block(a.name, b.name)
        case 3:
            cluster.fabric.heal()
        case 4:
            if a.node is not None:
                await a.crash()
        case 5:
            if a.node is None:
                await a.start()


@pytest.mark.parametrize("seed", range(12))
def test_everybody_ends_up_with_the_same(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "EVERY_S", 3.0)
    monkeypatch.setattr(horizon, "WORTH", 10)

    async def body(cluster: SimCluster) -> None:
        rng = random.Random(seed)
        await cluster.start(NODES)
        for _ in range(STEPS):
            running = cluster.running
            if running:
                work(rng.choice(running), rng)
            if rng.random() < 0.15:
                await disturb(cluster, rng)
            await trio.sleep(rng.expovariate(5))
        cluster.fabric.heal()
        for node in cluster.nodes:
            if node.node is None:
                await node.start()
        await cluster.until_connected(120)
        await cluster.until_equal(60)
        trees = {str(n.namespace.snapshot()) for n in cluster.nodes}
        assert len(trees) == 1

    try:
        simulate(body, tmp_path, seed)
    except* FsError:
        print(f"seed {seed}")
        raise
