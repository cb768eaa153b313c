"""Locks and exclusive creation between nodes."""

from __future__ import annotations

import errno
import random

import pytest
import trio
from trio.testing import MockClock

from fusefs.model.ids import ROOT_INO, Ino, NodeId
from fusefs.model.records import S_DIR, dirent_key
from fusefs.nodelink.ranges import READ, UNLOCK, WRITE, LockKey, Range
from netnode.core import locks
from netnode.core.locks import LEASE_S, LockTable
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.running import simulate, simulated

ALL = Range(1, WRITE)
DROP = Range(1, UNLOCK)


async def all_locked(node: SimNode, count: int) -> list[Ino]:
    """So many inodes, of several owners, locked by the node."""
    inos = [Ino(n) for n in range(100, 100 + count)]
    for ino in inos:
        node.ask_lock(ino, ALL)
    await trio.sleep(0.1)
    return inos


@simulated
async def test_second_node_gets_the_lock_when_the_first_drops_it(
    cluster: SimCluster,
) -> None:
    a, b, c = await cluster.start(3)
    for number in range(30, 40):
        ino = Ino(number)
        first = a.ask_lock(ino, ALL)
        await trio.sleep(0.1)
        assert first.error == 0
        refused = b.ask_lock(ino, ALL, wait=False)
        second = b.ask_lock(ino, ALL)
        await trio.sleep(0.1)
        third = c.ask_lock(ino, Range(9, READ))
        await trio.sleep(0.1)
        assert refused.error == errno.EAGAIN
        assert second.error is None and third.error is None
        a.ask_lock(ino, DROP)
        await trio.sleep(0.1)
        assert second.error == 0
        assert third.error is None
        b.ask_lock(ino, DROP)
        await trio.sleep(0.1)
        assert third.error == 0


@simulated
async def test_ranges_that_do_not_overlap_and_readers_share(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    results = [
        a.ask_lock(Ino(50), Range(1, WRITE, 0, 9)),
        b.ask_lock(Ino(50), Range(1, WRITE, 10, 19)),
        a.ask_lock(Ino(50), Range(1, READ, 20, 29)),
        b.ask_lock(Ino(50), Range(1, READ, 20, 29)),
    ]
    await trio.sleep(0.1)
    assert [r.error for r in results] == [0] * 4


@simulated
async def test_who_holds_it_to_write_goes_on_to_read_and_lets_readers_in(
    cluster: SimCluster,
) -> None:
    """At once, whoever decides: also where that node is away, or does not grant yet."""
    a, b = await cluster.start(2)
    inos = await all_locked(a, 20)
    waits = [b.ask_lock(ino, Range(1, READ)) for ino in inos[:10]]
    await trio.sleep(0.1)
    assert {w.error for w in waits} == {None}
    shared = [a.ask_lock(ino, Range(1, READ)) for ino in inos[:10]]
    await trio.sleep(0.1)
    assert {r.error for r in shared} == {0}
    assert {w.error for w in waits} == {0}
    refused = [a.ask_lock(ino, ALL, wait=False) for ino in inos[:10]]
    await trio.sleep(0.1)
    assert {r.error for r in refused} == {errno.EAGAIN}
    await b.crash()
    await trio.sleep(0.1)
    shared = [a.ask_lock(ino, Range(1, READ)) for ino in inos[10:]]
    await trio.sleep(0)
    assert {r.error for r in shared} == {0}
    await b.start()
    await cluster.until_connected()
    await trio.sleep(LEASE_S)
    joined = [b.ask_lock(ino, Range(1, READ), wait=False) for ino in inos]
    await trio.sleep(0.1)
    assert {r.error for r in joined} == {0}


@simulated
async def test_lock_of_a_dead_node_is_free_after_its_lease(cluster: SimCluster) -> None:
    a, b, c = await cluster.start(3)
    inos = await all_locked(a, 30)
    waiting = [b.ask_lock(ino, ALL) for ino in inos]
    await a.crash()
    await trio.sleep(LEASE_S - 6)
    assert all(w.error in (None, errno.ENOLCK) for w in waiting)
    await trio.sleep(10)
    granted = [w for w in waiting if w.error == 0]
    lost = [w for w in waiting if w.error == errno.ENOLCK]
    # Those that the dead node itself decided about cannot be had.
    assert len(granted) + len(lost) == 30
    assert len(granted) > 10
    assert c.node is not None


@simulated
async def test_owner_that_stood_still_takes_no_lock_from_others(
    cluster: SimCluster,
) -> None:
    """Its process was stopped, or its machine was: nobody could renew a lease, and
    who waits on the owner itself has not left."""
    a, b = await cluster.start(2)
    inos = await all_locked(a, 30)
    waiting = [b.ask_lock(ino, ALL) for ino in inos]
    await trio.sleep(0.1)
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    clock.jump(2 * LEASE_S)
    await trio.sleep(LEASE_S)
    assert {w.error for w in waiting} == {None, errno.ENOLCK}
    still = [w for w in waiting if w.error is None]
    for ino in inos:
        a.ask_lock(ino, DROP)
    await trio.sleep(0.1)
    assert {w.error for w in still} == {0}


@simulated
async def test_new_owner_that_stood_still_waits_no_less_for_the_others(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    inos = await all_locked(b, 30)
    await a.crash()
    cluster.fabric.partition({"a"}, {"b"})
    await a.start()
    await trio.sleep(1)
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    clock.jump(LEASE_S)
    waiting = [a.ask_lock(ino, ALL) for ino in inos]
    cluster.fabric.heal()
    await trio.sleep(LEASE_S - 3)
    assert {w.error for w in waiting} <= {None, errno.ENOLCK}


@simulated
async def test_restarted_node_gets_its_locks_back(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    inos = await all_locked(a, 20)
    assert a.node is not None
    assert a.node.locking._mine
    held = list(a.node.locking._held_of(a.id)) + list(a.node.locking._held_of(b.id))
    await a.crash()
    await a.start()
    assert a.node is not None
    a.node.locking.worker_holds(held)  # the worker lived on and attaches again
    await cluster.until_connected()
    await trio.sleep(20)
    refused = [b.ask_lock(ino, ALL, wait=False) for ino in inos]
    await trio.sleep(0.1)
    assert {r.error for r in refused} == {errno.EAGAIN}


@simulated
async def test_who_waits_for_a_lock_does_not_get_it_when_a_member_joins(
    cluster: SimCluster,
) -> None:
    """Some of them have another owner then; the one before knows less and less."""
    a, b = await cluster.start(2)
    inos = await all_locked(a, 30)
    waiting = [b.ask_lock(ino, ALL) for ino in inos]
    await cluster.add().start()
    await cluster.until_connected()
    await trio.sleep(20)
    assert {w.error for w in waiting} == {None, errno.ENOLCK}  # the worker asks again
    again = {ino: b.ask_lock(ino, ALL) for ino, w in zip(inos, waiting) if w.error}
    await trio.sleep(0.1)
    assert {w.error for w in again.values()} == {None}
    for ino in inos:
        a.ask_lock(ino, DROP)
    await trio.sleep(0.1)
    assert {w.error for w in again.values()} == {0}


@simulated
async def test_new_owner_grants_nothing_before_everybody_knows_it(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    inos = await all_locked(a, 30)
    assert a.node is not None
    late = a.node.locking.members_changed
    a.node.locking.members_changed = lambda: None  # type: ignore[method-assign]
    c = await cluster.add().start()
    await cluster.until_connected()
    await cluster.until(lambda: len(c.membership.members()) == 3)
    asked = [b.ask_lock(ino, ALL) for ino in inos]
    await trio.sleep(LEASE_S - 3)
    assert {r.error for r in asked} <= {None, errno.ENOLCK}
    late()
    await trio.sleep(LEASE_S)
    assert {r.error for r in asked} <= {None, errno.ENOLCK}
    asked = [b.ask_lock(ino, ALL, wait=False) for ino in inos]
    await trio.sleep(0.1)
    assert {r.error for r in asked} == {errno.EAGAIN}


@simulated
async def test_cancelled_wait_leaves_nothing_held(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    inos = await all_locked(a, 10)
    waits = [b.ask_lock(ino, ALL) for ino in inos]
    await trio.sleep(0.1)
    assert b.node is not None
    for ino, wait in zip(inos, waits):
        a.ask_lock(ino, DROP)  # crosses the cancellation on its way
        b.node.locking.cancel(wait.number)
    await trio.sleep(0.1)
    again = [a.ask_lock(ino, ALL) for ino in inos]
    await trio.sleep(0.1)
    assert [r.error for r in again] == [0] * 10


@pytest.mark.parametrize("seed", range(3))
def test_never_two_holders_under_contention(tmp_path, seed: int) -> None:  # type: ignore[no-untyped-def]
    async def body(cluster: SimCluster) -> None:
        rng = random.Random(seed)
        nodes = await cluster.start(3)
        holders: set[str] = set()
        rounds = 0

        async def contend(node: SimNode) -> None:
            nonlocal rounds
            for _ in range(30):
                result = node.ask_lock(Ino(77), ALL)
                while result.error is None:
                    await trio.sleep(0.001)
                if result.error:
                    await trio.sleep(0.5)
                    continue
                assert not holders
                holders.add(node.name)
                rounds += 1
                await trio.sleep(rng.random() * 0.01)
                holders.remove(node.name)
                node.ask_lock(Ino(77), DROP)

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(contend, node)
            for _ in range(5):
                await trio.sleep(0.1)
                cluster.fabric.sever(*rng.sample("abc", 2))
        assert rounds > 60

    simulate(body, tmp_path, seed)


@simulated
async def test_one_of_several_creates_a_name(cluster: SimCluster) -> None:
    nodes = await cluster.start(3)
    await trio.sleep(3)
    for number in range(30):
        name = b"exclusive %d" % number
        won: list[SimNode] = []

        async def create(node: SimNode, name: bytes, won: list[SimNode]) -> None:
            if node.namespace.entry(Ino(1), name) is None and await node.reserve(name):
                node.create(name)
                won.append(node)

        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(create, node, name, won)
        assert len(won) == 1
        await cluster.until_equal()
        # A lock file: gone again, and the next one may have it at once.
        won[0].unlink(name)
        await cluster.until_equal()
        other = next(n for n in nodes if n is not won[0])
        assert await other.reserve(name)
        other.create(name)


@simulated
async def test_without_near_peers_a_name_is_free(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    await b.stop()
    await trio.sleep(10)
    for number in range(20):
        assert await a.reserve(b"%d" % number)


def reserver(node: SimNode, key: bytes) -> NodeId:
    assert node.node is not None
    return node.node.locking._reserving._reserver(key)


@simulated
async def test_whoever_made_a_directory_decides_about_its_names(
    cluster: SimCluster,
) -> None:
    a, b, c = await cluster.start(3)
    await trio.sleep(3)
    for maker in (a, b, c):
        name = maker.name.encode()
        with maker.namespace.transaction() as t:
            ino = t.new_ino(ROOT_INO, name, S_DIR)
            t.create(ROOT_INO, name, ino, 0o40755, 0, 0)
        maker.publish(t.tx)
        await cluster.until_equal()
        for node in (a, b, c):
            for number in range(5):
                key = dirent_key(ino, b"%d" % number)
                assert reserver(node, key) == maker.id
    await a.stop()
    await trio.sleep(10)
    entry = b.namespace.entry(ROOT_INO, b"a")
    assert entry is not None
    key = dirent_key(entry.ino, b"name")
    assert reserver(b, key) == reserver(c, key) != a.id


@simulated
async def test_where_too_many_wait_there_are_no_locks(cluster: SimCluster) -> None:
    """Neither is one free, nor is it another one's that would not wait."""
    a, b, c = await cluster.start(3)
    ino, told = Ino(30), []
    assert a.ask_lock(ino, ALL).error in (None, 0)
    await trio.sleep(0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "MAX_WAITING", 1)
        waits = b.ask_lock(ino, ALL)
        await trio.sleep(0.1)
        refused = c.ask_lock(ino, ALL)
        patch.setattr(LockTable, "_verdict", lambda *_: None)  # as of one that is lent
        assert c.node is not None
        key = LockKey(ino, False)
        c.node.locking.test(key, ALL, lambda error, _: told.append(error))
        await trio.sleep(0.1)
        assert (waits.error, refused.error) == (None, errno.ENOLCK)
        assert told == [errno.ENOLCK]
    a.ask_lock(ino, DROP)
    await trio.sleep(0.1)
    assert waits.error == 0


async def two_that_go_on_alone(cluster: SimCluster) -> list[SimNode]:
    for _ in range(2):
        cluster.add().locks_alone = True
    nodes = list(cluster.nodes)
    for node in nodes:
        await node.start()
    await cluster.until_connected()
    return nodes


@simulated
async def test_locks_of_a_member_that_is_away_exclude_programs_here_if_wanted(
    cluster: SimCluster,
) -> None:
    a, b = await two_that_go_on_alone(cluster)
    inos = [Ino(n) for n in range(100, 120)]
    cluster.fabric.partition({"a"}, {"b"})
    await trio.sleep(LEASE_S)  # it is missed after six seconds
    for node in (a, b):
        asked = [node.ask_lock(ino, ALL, wait=False) for ino in inos]
        await trio.sleep(0.1)
        assert {r.error for r in asked} == {0, errno.ENOLCK}, "it may be restarting"
        for ino, request in zip(inos, asked):
            if request.error == 0:
                node.ask_lock(ino, DROP)
    await trio.sleep(8)
    both, alone, dropped = inos[:5], inos[5:15], inos[15:]
    asked = [a.ask_lock(ino, ALL, wait=False) for ino in inos]
    asked += [b.ask_lock(ino, ALL, wait=False) for ino in both]
    await trio.sleep(0.1)
    assert {r.error for r in asked} == {0}
    for ino in dropped:
        a.ask_lock(ino, DROP)
    cluster.fabric.heal()
    await cluster.until_connected()
    await trio.sleep(LEASE_S)
    asked = [b.ask_lock(ino, ALL, wait=False) for ino in alone]
    await trio.sleep(0.1)
    assert {r.error for r in asked} == {errno.EAGAIN}
    asked = [b.ask_lock(ino, ALL, wait=False) for ino in dropped]
    await trio.sleep(0.1)
    assert {r.error for r in asked} == {0}


@simulated
async def test_a_member_that_has_just_come_is_not_away(cluster: SimCluster) -> None:
    """Here it is heard of through another one."""
    a, _ = await two_that_go_on_alone(cluster)
    await trio.sleep(100)
    cluster.nodes.reverse()  # its seed is the first one
    c = cluster.add()
    cluster.fabric.partition({"a"}, {"c"})
    await c.start()
    assert a.node is not None
    membership = a.node.membership
    await cluster.until(lambda: c.id in membership.members())
    asked = [a.ask_lock(Ino(n), ALL, wait=False) for n in range(100, 160)]
    await trio.sleep(0.1)
    assert errno.ENOLCK in {r.error for r in asked}
