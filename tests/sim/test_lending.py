"""Locks of far nodes while everything happens to them: never two holders, and when it
is quiet again whoever asks is granted.

The programs of a mount outlive its node process: what they hold is told the next one.
"""

from __future__ import annotations

import errno
import random

import pytest
import trio

from fusefs.model.ids import Ino
from fusefs.nodelink.ranges import (
    READ,
    UNLOCK,
    WRITE,
    HeldLock,
    Holding,
    LockKey,
    Range,
    changed,
    conflict,
)
from netnode.core.locks import LEASE_S
from netnode.service import Node
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.running import simulate

BUSY_S = 25.0
RANGES = ((0, 9), (5, 14), (0, (1 << 63) - 1))


class Mount:
    """What a worker says to its node about the locks of its programs."""

    def __init__(self, sim: SimNode, rng: random.Random) -> None:
        self.sim = sim
        self.rng = rng
        self.held: dict[LockKey, list[Range]] = {}
        self.knows: Node | None = None
        """The node that was told what is held."""
        self.lists = 0

    async def attach_for_ever(self) -> None:
        while True:
            await trio.sleep(0.01)
            node = self.sim.node
            if node is None or node is self.knows:
                continue
            await trio.sleep(self.rng.random())
            if self.sim.node is not node:
                continue
            node.locking.list_due()
            node.settling.left()
            self.lists += 1
            held = [HeldLock(key, r) for key, rs in self.held.items() for r in rs]
            await trio.sleep(self.rng.choice((0, 0.01)))
            if self.sim.node is node:
                node.locking.worker_holds(held)
                self.knows = node

    async def lock(self, key: LockKey, want: Range, *, wait: bool) -> int:
        """0 when it is ours, an errno, or -1: given up, or answered when a list without
        it was on its way."""
        node = self.knows
        if node is None or self.sim.node is not node:
            return -1
        answers: list[int] = []
        lists = self.lists
        number = node.locking.lock(key, want, wait, lambda e, _: answers.append(e))
        until = trio.current_time() + (self.rng.choice((0.2, 60)) if wait else 60)
        while not answers and self.sim.node is node and trio.current_time() < until:
            await trio.sleep(0.002)
        if answers and (answers[0] or lists == self.lists):
            if not answers[0]:
                self._note(key, want)
            return answers[0]
        if self.sim.node is node:
            node.locking.cancel(number)
            self.drop(key, want)
        return -1

    def drop(self, key: LockKey, want: Range) -> None:
        unlock = Range(want.owner, UNLOCK, want.start, want.end)
        self._note(key, unlock)
        if self.sim.node is not None:
            self.sim.node.locking.lock(key, unlock, False, lambda e, _: None)

    def _note(self, key: LockKey, want: Range) -> None:
        self.held[key] = changed(self.held.get(key, ()), want)


async def happen(cluster: SimCluster, rng: random.Random) -> None:
    what = rng.choice(("sever", "sever", "crash", "stop", "block", "suspend"))
    sim = rng.choice(cluster.nodes)
    if what == "sever":
        cluster.fabric.sever(*rng.sample("abc", 2))
    elif what == "block":
        cluster.fabric.block(*rng.sample("abc", 2))
        await trio.sleep(rng.choice((0.3, 3)))
        cluster.fabric.heal()
    elif what == "suspend":
        sim.slept_s += LEASE_S
    else:
        await (sim.crash() if what == "crash" else sim.stop())
        await trio.sleep(rng.random())
        await sim.start()


@pytest.mark.parametrize("seed", range(3))
def test_never_two_holders_and_in_the_end_everybody_is_granted(
    tmp_path,  # type: ignore[no-untyped-def]
    seed: int,
) -> None:
    async def body(cluster: SimCluster) -> None:
        rng = random.Random(seed)
        key = LockKey(Ino(rng.randrange(100, 300)), False)
        for pair in ("ab", "ac", "bc"):
            cluster.fabric.far(*pair, rng.choice((0.02, 0.05, 0.2)))
        for _ in range(3):
            cluster.add().mounted = True
        mounts = [Mount(sim, rng) for sim in cluster.nodes]
        for mount in mounts:
            await mount.sim.start()
            cluster.nursery.start_soon(mount.attach_for_ever)
        await cluster.until_connected()
        await trio.sleep(LEASE_S)
        inside: list[Holding] = []
        grants = 0

        async def use(mount: Mount, owner: int) -> None:
            nonlocal grants
            while trio.current_time() < end:
                await trio.sleep(rng.random() * rng.choice((0.01, 3)))
                want = Range(owner, rng.choice((READ, WRITE)), *rng.choice(RANGES))
                if await mount.lock(key, want, wait=rng.random() < 0.6):
                    continue
                found = conflict(inside, mount.sim.id, want)
                assert found is None, (mount.sim.name, want, found)
                grants += 1
                inside.append(Holding(mount.sim.id, want))
                await trio.sleep(rng.choice((0, 0.01, 0.3, 2)) * rng.random())
                inside.remove(Holding(mount.sim.id, want))
                mount.drop(key, want)

        end = trio.current_time() + BUSY_S
        async with trio.open_nursery() as nursery:
            for mount in mounts:  # one program each: no others of its node to mind
                nursery.start_soon(use, mount, 1)
            while trio.current_time() < end - 5:
                await trio.sleep(rng.random() * 4)
                await happen(cluster, rng)
        assert grants > 20
        await trio.sleep(LEASE_S)
        for mount in mounts:
            want = Range(2, WRITE)
            error = errno.ENOLCK
            with trio.fail_after(LEASE_S):
                while error:
                    error = await mount.lock(key, want, wait=True)
            mount.drop(key, want)
        await trio.sleep(1)
        for sim in cluster.nodes:
            assert sim.node is not None
            assert not len(sim.node.locking)
            assert not len(sim.node.locking._owner._table)

    simulate(body, tmp_path, seed)
