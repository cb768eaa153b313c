"""Locks that stay with the node that uses them, where their owner is far."""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from fusefs.model.ids import Ino, NodeId
from fusefs.nodelink.ranges import READ, UNLOCK, WRITE, HeldLock, LockKey, Range
from netnode.core.delegations import IDLE_S
from netnode.core.locks import DELEGATE_AFTER, LEASE_S, RENEW_S, LockTable
from netnode.core.placement import ranked
from netnode.lockowner import lock_place
from tests.sim.cluster import LockResult, SimCluster, SimNode
from tests.sim.running import simulate, simulated

ONE_WAY_S = 0.04
INOS = [Ino(n) for n in range(100, 500)]
ALL, SHARED, DROP = Range(1, WRITE), Range(1, READ), Range(1, UNLOCK)


async def apart(cluster: SimCluster, count: int) -> list[SimNode]:
    """So many nodes, all far from one another, and known to be."""
    for one in "abc"[:count]:
        for other in "abc"[:count]:
            cluster.fabric.far(one, other, ONE_WAY_S)
    nodes = await cluster.start(count)
    await trio.sleep(10)
    return nodes


def owned_by(owner: SimNode) -> Ino:
    assert owner.node is not None
    locking = owner.node.locking
    return next(ino for ino in INOS if locking._owner.is_mine(LockKey(ino, False)))


async def locked(node: SimNode, ino: Ino, want: Range = ALL) -> LockResult:
    """Answered, whatever it is."""
    result = node.ask_lock(ino, want, wait=False)
    with trio.fail_after(LEASE_S / 3):
        while result.error is None:
            await trio.sleep(0.005)
    return result


async def use(node: SimNode, ino: Ino, times: int = DELEGATE_AFTER) -> None:
    for _ in range(times):
        assert (await locked(node, ino)).error == 0
        node.ask_lock(ino, DROP)
    await trio.sleep(6 * ONE_WAY_S)


def decides(node: SimNode, ino: Ino) -> bool:
    """Whether it takes a free lock without asking, and is answered at once."""
    result = node.ask_lock(ino, Range(2, WRITE), wait=False)
    node.ask_lock(ino, Range(2, UNLOCK))
    return result.error == 0


async def lent(cluster: SimCluster) -> tuple[SimNode, SimNode, Ino]:
    """The owner of an inode's locks, and the node that decides about them for it."""
    a, b = await apart(cluster, 2)
    ino = owned_by(a)
    await use(b, ino)
    assert decides(b, ino)
    return a, b, ino


@simulated
async def test_who_alone_uses_a_lock_takes_it_without_a_round_trip(
    cluster: SimCluster,
) -> None:
    a, b = await apart(cluster, 2)
    ino = owned_by(a)
    assert not decides(b, ino)
    await use(b, ino)
    assert decides(b, ino) and b.node is not None and b.node.locking.delegated == 1
    for _ in range(10):  # its lease is renewed
        await trio.sleep(LEASE_S / 4)
        assert decides(b, ino)
    await trio.sleep(IDLE_S + 5)
    assert not decides(b, ino)


@simulated
async def test_locks_that_are_held_are_not_sent_anew_with_each_one_that_is_lent(
    cluster: SimCluster,
) -> None:
    a, b = await apart(cluster, 2)
    mine = [ino for ino in map(Ino, range(100, 4000)) if decider(ino, a, b) == a.id]
    for ino in mine[:1000]:
        b.ask_lock(ino, ALL)
    await use(b, mine[1000])
    before = cluster.fabric.bytes
    async with trio.open_nursery() as nursery:
        for ino in mine[1001:1061]:
            nursery.start_soon(use, b, ino)
    assert all(decides(b, ino) for ino in mine[1001:1061])
    assert cluster.fabric.bytes - before < 200_000


@simulated
async def test_the_owner_and_others_get_it_when_they_ask(cluster: SimCluster) -> None:
    a, b, c = await apart(cluster, 3)
    for other in (a, c):
        ino = owned_by(a)
        await use(b, ino)
        assert (await locked(b, ino, SHARED)).error == 0
        assert (await locked(other, ino)).error == errno.EAGAIN
        assert (await locked(other, ino, SHARED)).error == 0
        other.ask_lock(ino, DROP)
        waiting = other.ask_lock(ino, ALL)
        await trio.sleep(1)
        assert waiting.error is None
        b.ask_lock(ino, DROP)
        await trio.sleep(1)
        assert waiting.error == 0
        assert (await locked(b, ino, SHARED)).error == errno.EAGAIN
        other.ask_lock(ino, DROP)


@simulated
async def test_near_nodes_ask(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    await trio.sleep(10)
    ino = owned_by(a)
    await use(b, ino, 3 * DELEGATE_AFTER)
    assert not decides(b, ino)
    assert a.node is not None
    peer = a.node.peers.get(b.id)
    assert peer is not None
    peer.nearness.owes(trio.current_time() - 10)  # it is busy, but still near
    await use(b, ino, 3 * DELEGATE_AFTER)
    assert not decides(b, ino)


@simulated
async def test_lock_of_a_holder_that_vanished_is_free_after_its_lease(
    cluster: SimCluster,
) -> None:
    a, b, _ = await apart(cluster, 3)
    ino = owned_by(a)
    await use(b, ino)
    assert decides(b, ino)
    await b.crash()
    waiting = a.ask_lock(ino, ALL)
    await trio.sleep(LEASE_S - 6)
    assert waiting.error is None
    await trio.sleep(7)
    assert waiting.error == 0


@simulated
async def test_holder_that_stops_leaves_nothing_to_wait_for_but_what_is_held(
    cluster: SimCluster,
) -> None:
    a, b, c = await apart(cluster, 3)
    inos = [ino for ino in INOS if decider(ino, a, b, c) == a.id]
    for ino in inos[:2]:
        await use(b, ino)
    assert (await locked(b, inos[1])).error == 0
    await b.stop()
    for other in (c, a):
        assert (await locked(other, inos[0])).error == 0
        other.ask_lock(inos[0], DROP)
        assert (await locked(other, inos[1])).error == errno.EAGAIN


@simulated
async def test_holder_without_its_owner_decides_nothing(cluster: SimCluster) -> None:
    """It could, for a while; but the next owner may be near already."""
    a, b, c = await apart(cluster, 3)
    ino = owned_by(a)
    await use(b, ino)
    assert (await locked(b, ino)).error == 0
    await a.crash()
    await trio.sleep(10)
    assert not decides(b, ino)
    await a.start()
    await cluster.until_connected()
    await trio.sleep(LEASE_S)
    for other in (a, c):
        assert (await locked(other, ino)).error == errno.EAGAIN
    b.ask_lock(ino, DROP)
    await trio.sleep(1)
    assert (await locked(c, ino)).error == 0


@simulated
async def test_recall_that_a_restarted_holder_gets_before_its_worker_told_takes_nothing(
    cluster: SimCluster,
) -> None:
    a, b, c = await apart(cluster, 3)
    ino = owned_by(a)
    await use(b, ino)
    assert (await locked(b, ino)).error == 0
    await b.crash()
    b.mounted = True  # the worker lived on
    await b.start()
    await cluster.until_connected()
    waiting = c.ask_lock(ino, ALL, wait=False)
    await trio.sleep(1)
    assert waiting.error is None
    assert b.node is not None
    b.node.locking.worker_holds([HeldLock(LockKey(ino, False), ALL)])
    await trio.sleep(1)
    assert waiting.error == errno.EAGAIN


@simulated
async def test_answer_to_a_recall_of_before_does_not_end_the_next_delegation(
    cluster: SimCluster,
) -> None:
    """It was returned unasked while the recall was on its way, which is answered, too;
    by then several programs there had asked at once, and it was lent again."""
    a, b = await apart(cluster, 2)
    assert a.node is not None and b.node is not None
    ino = owned_by(a)
    mine = a.node.locking._owner.is_mine
    other = next(i for i in INOS if i != ino and mine(LockKey(i, False)))
    for each in (ino, other):
        await use(b, each)
    first = a.ask_lock(ino, ALL)
    await trio.sleep(ONE_WAY_S / 4)
    b.node.locking._return(a.id, LockKey(ino, False))
    shared = [b.ask_lock(ino, Range(n, READ)) for n in range(3, 3 + DELEGATE_AFTER)]
    while first.error is None:
        await trio.sleep(0.001)
    a.ask_lock(ino, DROP)
    await trio.sleep(1.5 * ONE_WAY_S)
    reader = a.ask_lock(ino, SHARED)
    await trio.sleep(ONE_WAY_S)
    assert [result.error for result in shared] == [0] * DELEGATE_AFTER
    assert not (decides(b, ino) and reader.error == 0)
    assert (await locked(a, ino, SHARED)).error == 0
    await trio.sleep(1)
    assert reader.error == 0


async def reconnect(cluster: SimCluster, b: SimNode) -> None:
    cluster.fabric.sever("a", "b")


async def restart(cluster: SimCluster, b: SimNode) -> None:
    await b.crash()
    await b.start()


async def meet(cluster: SimCluster, b: SimNode) -> None:
    """A member joins, who owns other locks."""
    await cluster.nodes[-1].start()


async def restart_owner(cluster: SimCluster, b: SimNode) -> None:
    await restart(cluster, cluster.nodes[0])


@pytest.mark.parametrize(
    "event, owner",
    [(reconnect, "a"), (restart, "a"), (meet, "a"), (meet, "d"), (restart_owner, "a")],
)
def test_next_holder_sees_what_was_written_also_when_nobody_returned_it(
    tmp_path,  # type: ignore[no-untyped-def]
    event: Callable[[SimCluster, SimNode], Awaitable[None]],
    owner: str,
) -> None:
    """`owner`: who it is after the event."""

    async def body(cluster: SimCluster) -> None:
        a, b, c = await apart(cluster, 3)
        cluster.fabric.far("b", "c", 1.0)
        d = cluster.add()
        after = {"a": a, "d": d}[owner].id
        ino = next(
            i
            for i in INOS
            if decider(i, a, b, c) == a.id and decider(i, a, b, c, d) == after
        )
        await use(b, ino)
        assert (await locked(b, ino)).error == 0
        seq = b.create(b"under the lock")
        b.ask_lock(ino, DROP)
        await event(cluster, b)
        await trio.sleep(10 * ONE_WAY_S)
        result = c.ask_lock(ino, ALL)
        while result.error != 0:
            if result.error is not None:  # the worker asks again
                result = c.ask_lock(ino, ALL)
            await trio.sleep(0.01)
        assert c.namespace.vector()[b.id] >= seq

    simulate(body, tmp_path)


@simulated
async def test_holder_that_hears_nothing_stops_before_its_lease_ends(
    cluster: SimCluster,
) -> None:
    a, b, ino = await lent(cluster)
    table = a.node.locking._owner._table if a.node is not None else None
    assert isinstance(table, LockTable)
    cluster.fabric.block("b", "a")
    waiting = a.ask_lock(ino, ALL)
    while waiting.error is None:
        decided = decides(b, ino)
        await trio.sleep(0.1)
    assert not decided


@simulated
async def test_holder_whose_machine_was_suspended_asks_first(
    cluster: SimCluster,
) -> None:
    """When it wakes, its connection looks as it did."""
    _, b, ino = await lent(cluster)
    b.slept_s = LEASE_S
    assert not decides(b, ino)
    await trio.sleep(RENEW_S + 1)
    assert decides(b, ino)


@pytest.mark.parametrize("told", [True, False])
def test_new_member_that_owns_the_lock_decides_about_it(tmp_path, told) -> None:  # type: ignore[no-untyped-def]
    """Also where the holder does not hear of the member."""

    async def body(cluster: SimCluster) -> None:
        a, b, c = await apart(cluster, 3)
        d = cluster.add()
        ino = next(
            ino
            for ino in INOS
            if decider(ino, a, b, c) == a.id and decider(ino, a, b, c, d) == d.id
        )
        await use(b, ino)
        assert decides(b, ino)
        if not told:
            assert b.node is not None
            b.node.locking.members_changed = lambda: None  # type: ignore[method-assign]
        await d.start()
        await cluster.until_connected()
        granted = c.ask_lock(ino, ALL)
        while granted.error != 0:
            if granted.error is not None:  # the worker asks again
                granted = c.ask_lock(ino, ALL)
            decided = decides(b, ino)
            await trio.sleep(0.01)
        assert not decided and not decides(b, ino)

    simulate(body, tmp_path)


def decider(ino: Ino, *nodes: SimNode) -> NodeId:
    return ranked(lock_place(ino), tuple(node.id for node in nodes))[0]


@pytest.mark.parametrize("seed", range(8))
def test_never_two_holders(tmp_path, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Nodes that use one lock for a while, alone and together, while connections break,
    members join, and a node is killed and comes back."""

    async def body(cluster: SimCluster) -> None:
        rng = random.Random(seed)
        nodes = await apart(cluster, 3)
        ino = owned_by(rng.choice(nodes))
        holders: dict[str, int] = {}
        at_once, rounds = 0, 0

        async def contend(node: SimNode) -> None:
            nonlocal rounds, at_once
            for _ in range(12):
                await trio.sleep(rng.random() * 3)
                want = rng.choice((ALL, ALL, SHARED))
                for _ in range(rng.randrange(1, 12)):
                    result = node.ask_lock(ino, want, wait=rng.random() < 0.7)
                    given_up = trio.current_time() + rng.choice((0.1, 60))
                    while result.error is None:
                        await trio.sleep(0.001)
                        if result.error is None and trio.current_time() > given_up:
                            assert node.node is not None
                            node.node.locking.cancel(result.number)
                            break
                    if result.error != 0:
                        await trio.sleep(rng.random())
                        continue
                    others = [k for n, k in holders.items() if n != node.name]
                    assert not others or WRITE not in (want.kind, *others)
                    holders[node.name] = want.kind
                    rounds += 1
                    at_once += node.node is not None and bool(
                        len(node.node.locking._delegations)
                    )
                    await trio.sleep(rng.random() * 0.02)
                    del holders[node.name]
                    node.ask_lock(ino, DROP)

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(contend, node)
            for _ in range(6):
                await trio.sleep(rng.random() * 4)
                cluster.fabric.sever(*rng.sample("abc", 2))
            await cluster.add().start()
        assert rounds > 60 and at_once > 10

    simulate(body, tmp_path, seed)
