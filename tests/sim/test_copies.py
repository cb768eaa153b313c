"""Chunks between nodes: fetched, pushed to their keepers, given up, found damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import trio

from fusefs.errors import ChunkMissing, DiskFailed, NoSpace
from fusefs.model.ids import ROOT_INO, ChunkId, chunk_id
from fusefs.model.records import S_REG, Member
from fusefs.store.files import path_of
from fusefs.store.store import Store
from fusefs.store.types import PUSHED, RESPONSIBLE
from netnode.core import pushes
from netnode.wire.messages import Have
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.running import simulate, simulated


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
async def test_a_disk_that_fails_here_is_no_fault_of_who_has_the_bytes(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    cid = a.store.put(b"z" * 100_000)

    def fails(*_: object) -> None:
        raise DiskFailed("writing an object failed: Input/output error")

    assert b.node is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(b.store, "put_verified", fails)
        assert await b.fetch([cid]) == errno.EIO
    assert b.node.chunks.rejected == 0
    assert await b.fetch([cid]) == 0


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


async def replaced(node: SimNode) -> list[list[ChunkId]]:
    """The chunks of each of four versions of a file."""
    versions = []
    for seed in range(4):
        versions.append(node.write_chunks(b"file", 3, seed))
        await trio.sleep(10)
    return versions


def missing(node: SimNode, versions: list[list[ChunkId]]) -> list[int]:
    return [len(node.store.missing(ids)) for ids in versions]


@simulated
async def test_file_that_is_written_again_and_again_is_pushed_once_a_second(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    versions = []
    for seed in range(32):
        versions.append(a.write_chunks(b"file", 3, seed))
        await trio.sleep(0.1)
    await trio.sleep(5)
    there = [ids for ids in versions if b.store.missing(ids) == []]
    assert 3 <= len(there) <= 5
    assert versions[-1] in there


@simulated
async def test_what_was_replaced_does_not_fill_a_disk_that_was_full(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    b.store.space.min_free_bytes = 1 << 60
    versions = await replaced(a)
    kept = a.write_chunks(b"other", 3, 9)
    await trio.sleep(100)
    b.store.space.min_free_bytes = 0
    await trio.sleep(200)
    assert missing(b, versions) == [4, 4, 4, 0]
    assert b.store.missing(kept) == []
    assert a.node is not None and a.node.keeper.backlog() == 0


@simulated
async def test_a_member_that_has_room_again_gets_its_copies_at_once(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    b.store.space.min_free_bytes = 1 << 60
    ids = a.write_chunks(b"file", 40)
    await trio.sleep(2000)  # by now a asks every ten minutes
    assert b.store.missing(ids)
    for _ in range(3):
        b.store.space.min_free_bytes = 0
        await trio.sleep(10)
        assert b.store.missing(ids) == []
        b.store.space.min_free_bytes = 1 << 60
        ids = a.write_chunks(b"file", 40, ids[0][0])
        await trio.sleep(100)
        assert b.store.missing(ids)


def test_what_was_replaced_while_a_member_was_away_is_not_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netnode.replicas.WORTH_A_LOOK", 4)

    async def body(cluster: SimCluster) -> None:
        a, b = await cluster.start(2)
        await b.stop()
        versions = await replaced(a)
        await b.start()
        await cluster.until_connected()
        await trio.sleep(30)
        assert missing(b, versions) == [4, 4, 4, 0]
        assert a.node is not None and a.node.keeper.backlog() == 0

    simulate(body, tmp_path)


@simulated
async def test_what_was_replaced_and_a_peer_names_again_gets_its_copies(
    cluster: SimCluster,
) -> None:
    """Appends are merged, removed files come back, and a copy shares the bytes: who
    writes that version need not have them."""
    a, b, c = await cluster.start(3)
    await trio.sleep(200)  # copies are not looked at because a member came
    for seed, is_replaced_before in ((7, True), (8, False)):
        name = b"%d" % seed
        [cid] = a.write_chunks(name, 1, seed)
        await trio.sleep(0.2)
        if is_replaced_before:
            a.write_chunks(name, 1)
        with b.namespace.transaction() as t:
            ino = t.new_ino(ROOT_INO, b"copy of " + name, S_REG)
            t.create(ROOT_INO, b"copy of " + name, ino, 0o100644, 0, 0)
            t.set_content(ino, size=1 << 16, root=cid, chunk_log2=16, mtime_ns=t.now_ns)
        b.publish(t.tx)
        await trio.sleep(0.2)
        if not is_replaced_before:
            a.write_chunks(name, 1)
        await trio.sleep(30)
        assert not b.store.missing([cid]) and not c.store.missing([cid])
        assert a.node is not None and a.node.keeper.backlog() == 0


def test_copy_that_a_power_cut_took_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was confirmed, and the register that names it was on the disk already."""
    monkeypatch.setattr("netnode.rebalancing.TURN_S", 1.0)

    async def body(cluster: SimCluster) -> None:
        a, b = await cluster.start(2)
        await trio.sleep(20)  # copies are not looked at because a member came
        data = b"k" * 20_000
        cid = a.store.put(data)
        with a.namespace.transaction() as t:
            ino = t.new_ino(ROOT_INO, b"f", S_REG)
            t.create(ROOT_INO, b"f", ino, 0o100644, 0, 0)
            t.set_content(
                ino, size=len(data), root=cid, chunk_log2=20, mtime_ns=t.now_ns
            )
        a.publish(t.tx)
        await cluster.until_equal()
        assert b.store.missing([cid]) == [cid]
        b.checkpoint()
        monkeypatch.setattr(b, "checkpoint", lambda: None)
        await cluster.until(lambda: not a.store.flags(cid) & PUSHED)
        assert b.store.missing([cid]) == []
        await b.power_cut()
        await b.start()
        assert b.store.missing([cid]) == [cid]
        await cluster.until(lambda: not b.store.missing([cid]))
        assert b.store.flags(cid) & RESPONSIBLE
        await cluster.until(lambda: b.store.lost_s() is None)

    simulate(body, tmp_path)


@simulated
async def test_what_was_replaced_is_not_found_by_a_scan(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    await b.stop()
    versions = await replaced(a)
    await a.stop()
    await a.start()
    await b.start()
    await cluster.until_connected()
    await trio.sleep(30)
    assert missing(b, versions) == [4, 4, 4, 0]


@simulated
async def test_what_was_collected_and_is_written_again_is_pushed_again(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    ids = a.write_chunks(b"file", 3)
    await trio.sleep(5)
    assert b.store.missing(ids) == []
    for node in (a, b):
        for cid in ids:
            assert node.store.delete_older(cid, float("inf"))
    assert a.write_chunks(b"again", 3) == ids
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
    ids = a.write_chunks(b"file", 3)
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
    ids = a.write_chunks(b"file", 3)
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
async def test_what_was_missed_is_kept_with_its_manifest(cluster: SimCluster) -> None:
    """From another node than the writer, which is gone."""
    a, _, c = await cluster.start(3)
    await c.stop()
    ids = a.write_chunks(b"file", 3)
    await trio.sleep(5)
    await a.stop()
    await c.start()
    await cluster.until_connected()
    await trio.sleep(10)
    assert all(c.store.flags(cid) & RESPONSIBLE for cid in ids)


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
    ids = a.write_chunks(b"file", 3)
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
    mine = a.write_chunks(b"file", 3)
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


def keepers(cluster: SimCluster, cid: ChunkId) -> int:
    """How many nodes that run never evict it."""
    return sum(node.keeps(cid) for node in cluster.running)


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
    assert all(node.node.keeper.rebalances for node in cluster.running if node.node)
    await trio.sleep(200)
    assert not any(node.node.keeper.rebalances for node in cluster.running if node.node)
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


@simulated
async def test_copies_are_spread_anew_although_all_nodes_start_again_meanwhile(
    cluster: SimCluster,
) -> None:
    ids = await with_two_copies(cluster)
    a = cluster.nodes[0]
    a.publish(a.namespace.put_setting(b"replicas", b"\x03"))
    await cluster.until_equal()
    for node in cluster.nodes:
        await node.crash()
    for node in cluster.nodes:
        await node.start()
    await cluster.until_connected()
    await trio.sleep(200)
    assert [keepers(cluster, cid) for cid in ids] == [3] * len(ids)


@simulated
async def test_who_starts_asks_nobody_for_what_is_where_it_should_be(
    cluster: SimCluster,
) -> None:
    await with_two_copies(cluster)
    await trio.sleep(200)
    for node in cluster.nodes:
        await node.crash()
        await node.start()
        assert node.node is not None
        node.node.behind()  # as when a worker attaches
    await cluster.until_connected()
    asked = 0
    for _ in range(300):
        await trio.sleep(0.5)
        asked += sum(n.node.keeper.backlog() for n in cluster.running if n.node)
    assert asked == 0
