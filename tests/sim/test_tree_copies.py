"""Trees of which more or fewer copies are kept than the cluster's setting says."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from fusefs.model.ids import ROOT_INO, ChunkId, Ino
from fusefs.model.records import REPLICAS, S_REG
from fusefs.store.types import RESPONSIBLE
from netnode.core.placement import ranked
from netnode.rebalancing import Rebalancing
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.running import simulate, simulated


@pytest.fixture(autouse=True)
def quick_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netnode.rebalancing.TURN_S", 3.0)


def say(node: SimNode, directory: Ino, count: bytes) -> None:
    """b"": nothing any more."""
    with node.namespace.transaction() as t:
        if count:
            t.set_xattr(directory, REPLICAS, count)
        else:
            t.remove_xattr(directory, REPLICAS)
    node.publish(t.tx)


def move(node: SimNode, name: bytes, old: Ino, new: Ino) -> None:
    with node.namespace.transaction() as t:
        t.rename(old, name, new, name)
    node.publish(t.tx)


def link(node: SimNode, old: Ino, name: bytes, new: Ino) -> None:
    entry = node.namespace.entry(old, name)
    assert entry is not None
    with node.namespace.transaction() as t:
        t.link(new, b"other " + name, entry.ino, S_REG)
    node.publish(t.tx)


def keepers(cluster: SimCluster, ids: list[ChunkId]) -> set[int]:
    """How many nodes that run never evict these, as far as they differ."""
    return {sum(node.keeps(cid) for node in cluster.running) for cid in ids}


def cut_off(cluster: SimCluster, node: SimNode) -> None:
    others = {other.name for other in cluster.nodes} - {node.name}
    cluster.fabric.partition({node.name}, others)


async def five(cluster: SimCluster) -> SimNode:
    """Nodes of which two keep each chunk."""
    a, *_ = await cluster.start(5)
    a.publish(a.namespace.put_setting(b"replicas", b"\2"))
    await cluster.until_equal()
    return a


async def about_to_move(
    cluster: SimCluster,
) -> tuple[SimNode, SimNode, Ino, list[ChunkId]]:
    """Of five nodes the first one, one that does not keep what is in the file, the
    directory where all do, and the chunks of the file."""
    a = await five(cluster)
    many = a.make_directory(b"many")
    say(a, many, b"5")
    await cluster.until_equal()
    ids = a.write_chunks(b"file", 5, 1)
    await trio.sleep(40)
    other = next(node for node in cluster.nodes if not node.store.has(ids[-1]))
    return a, other, many, ids


@simulated
async def test_what_is_written_has_as_many_copies_as_its_directory_says(
    cluster: SimCluster,
) -> None:
    a = await five(cluster)
    many, few = a.make_directory(b"many"), a.make_directory(b"few")
    deep, usual = a.make_directory(b"deep", many), a.make_directory(b"2", many)
    say(a, many, b"4")
    say(a, few, b"1")
    say(a, usual, b"2")
    files = {
        4: a.write_chunks(b"file", 5, 1, many) + a.write_chunks(b"file", 5, 2, deep),
        2: a.write_chunks(b"file", 5, 3) + a.write_chunks(b"file", 5, 4, usual),
        1: a.write_chunks(b"file", 5, 5, few),
    }
    await trio.sleep(20)
    for count, ids in files.items():
        assert keepers(cluster, ids) == {count}
    assert a.node is not None and a.node.keeper.backlog() == 0


@simulated
async def test_what_a_directory_says_holds_for_what_is_there(
    cluster: SimCluster,
) -> None:
    a = await five(cluster)
    top = a.make_directory(b"top")
    deep = a.make_directory(b"deep", top)
    ids, other = a.write_chunks(b"file", 5, 1, deep), a.write_chunks(b"other", 5, 2)
    await trio.sleep(10)
    for count in (b"5", b"1", b"3", b""):
        say(a, top, count)
        await trio.sleep(40)
        assert keepers(cluster, ids) == {int(count or b"2")}
        assert keepers(cluster, other) == {2}


@simulated
async def test_a_number_nobody_understands_counts_as_none(cluster: SimCluster) -> None:
    a = await five(cluster)
    top = a.make_directory(b"top")
    for count in (b"0", b"-1", b"101", b"many", b"3\n", b"\xff" * 1000):
        say(a, top, count)
    ids = a.write_chunks(b"file", 5, 1, top)
    await trio.sleep(20)
    assert keepers(cluster, ids) == {2}


@simulated
async def test_what_is_moved_to_where_more_are_kept_gets_them(
    cluster: SimCluster,
) -> None:
    a = await five(cluster)
    many, few = a.make_directory(b"many"), a.make_directory(b"few")
    say(a, many, b"4")
    say(a, few, b"1")
    deep = a.make_directory(b"deep", few)
    files = {
        b"file": a.write_chunks(b"file", 5, 1, few),
        b"deep": a.write_chunks(b"file", 5, 2, deep),
    }
    await trio.sleep(20)
    for name, ids in files.items():
        assert keepers(cluster, ids) == {1}
        move(a, name, few, ROOT_INO)
        await trio.sleep(20)
        assert keepers(cluster, ids) == {2}
        move(cluster.nodes[3], name, ROOT_INO, many)
        await trio.sleep(20)
        assert keepers(cluster, ids) == {4}


@simulated
async def test_a_second_name_where_more_are_kept_counts(cluster: SimCluster) -> None:
    a = await five(cluster)
    many, few = a.make_directory(b"many"), a.make_directory(b"few")
    say(a, many, b"4")
    say(a, few, b"1")
    ids = a.write_chunks(b"file", 5, 1, few)
    await trio.sleep(20)
    for directory, count in ((ROOT_INO, 2), (many, 4)):
        link(a, few, b"file", directory)
        await trio.sleep(20)
        assert keepers(cluster, ids) == {count}
        await cluster.add().start()
        await trio.sleep(40)
        assert keepers(cluster, ids) == {count}


@simulated
async def test_what_was_moved_is_fetched_when_somebody_comes_who_has_it(
    cluster: SimCluster,
) -> None:
    a = await five(cluster)
    few = a.make_directory(b"few")
    say(a, few, b"1")
    await cluster.until_equal()
    ids = a.write_chunks(b"file", 5, 1, few)
    await trio.sleep(20)
    await a.stop()
    move(cluster.nodes[1], b"file", few, ROOT_INO)
    await trio.sleep(400)
    await a.start()
    await cluster.until_connected()
    await trio.sleep(100)
    assert keepers(cluster, ids) == {2}


@simulated
async def test_who_was_away_keeps_what_was_moved_meanwhile(cluster: SimCluster) -> None:
    a, away, many, ids = await about_to_move(cluster)
    await away.stop()
    move(a, b"file", ROOT_INO, many)
    await trio.sleep(20)
    assert keepers(cluster, ids) == {4}
    await away.start()
    await cluster.until_connected()
    await trio.sleep(100)
    assert keepers(cluster, ids) == {5}


@simulated
async def test_who_was_killed_keeps_what_was_moved_just_before(
    cluster: SimCluster,
) -> None:
    a, killed, many, ids = await about_to_move(cluster)
    move(a, b"file", ROOT_INO, many)
    await cluster.until_equal()
    assert not killed.store.has(ids[-1])
    await killed.crash()
    await trio.sleep(20)
    await killed.start()
    await cluster.until_connected()
    await trio.sleep(100)
    assert keepers(cluster, ids) == {5}
    for _ in range(2):  # and no more is looked for
        assert {node.store.lost_s() for node in cluster.nodes} == {None}
        await killed.stop()
        await killed.start()
        await trio.sleep(20)


@simulated
async def test_who_was_cut_off_keeps_what_was_moved_meanwhile(
    cluster: SimCluster,
) -> None:
    a, away, many, ids = await about_to_move(cluster)
    cut_off(cluster, away)
    move(a, b"file", ROOT_INO, many)
    await trio.sleep(60)
    assert min(keepers(cluster, ids)) == 4
    cluster.fabric.heal()
    await cluster.until_connected()
    await trio.sleep(100)
    assert keepers(cluster, ids) == {5}


@simulated
async def test_a_copy_where_more_are_kept_counts(cluster: SimCluster) -> None:
    a = await five(cluster)
    many = a.make_directory(b"many")
    say(a, many, b"4")
    ids = a.write_chunks(b"file", 5, 1)
    await trio.sleep(20)
    assert keepers(cluster, ids) == {2}
    with a.namespace.transaction() as t:  # as copy_file_range
        ino = t.new_ino(many, b"copy", S_REG)
        t.create(many, b"copy", ino, 0o100644, 0, 0)
        size, root = 5 << 16, ids[-1]
        t.set_content(ino, size=size, root=root, chunk_log2=16, mtime_ns=t.now_ns)
    a.publish(t.tx)
    await trio.sleep(20)
    assert keepers(cluster, ids) == {4}


@simulated
async def test_a_chunk_of_two_files_is_kept_for_the_one_that_asks_for_more(
    cluster: SimCluster,
) -> None:
    a = await five(cluster)
    many, few = a.make_directory(b"many"), a.make_directory(b"few")
    say(a, many, b"4")
    say(a, few, b"1")
    shared, alone = a.write_chunks(b"file", 5, 1, few), a.write_chunks(b"b", 5, 2, few)
    await trio.sleep(20)
    assert keepers(cluster, shared + alone) == {1}
    assert a.write_chunks(b"same", 5, 1) == shared
    await trio.sleep(20)
    assert keepers(cluster, shared) == {2}
    say(a, few, b"3")
    await trio.sleep(40)
    say(a, few, b"1")
    await trio.sleep(40)
    assert keepers(cluster, shared) == {2}
    assert keepers(cluster, alone) == {1}
    assert a.write_chunks(b"same", 5, 1, many) == shared
    await trio.sleep(20)
    assert keepers(cluster, shared) == {4}


@simulated
async def test_members_that_come_and_go_change_no_number(cluster: SimCluster) -> None:
    a = await five(cluster)
    many, few = a.make_directory(b"many"), a.make_directory(b"few")
    say(a, many, b"4")
    say(a, few, b"1")
    files = {
        4: a.write_chunks(b"file", 20, 1, many),
        2: a.write_chunks(b"file", 20, 2),
        1: a.write_chunks(b"file", 20, 3, few),
    }
    await trio.sleep(20)
    joined = cluster.add()
    await joined.start()
    await trio.sleep(40)
    for count, ids in files.items():
        assert keepers(cluster, ids) == {count}
    assert any(joined.store.has(cid) for ids in files.values() for cid in ids)


@simulated
async def test_what_directories_say_is_known_after_a_start(cluster: SimCluster) -> None:
    a = await five(cluster)
    top, gone = a.make_directory(b"top"), a.make_directory(b"gone")
    say(a, top, b"4")
    say(a, gone, b"5")
    with a.namespace.transaction() as t:
        t.rmdir(ROOT_INO, b"gone")
    a.publish(t.tx)
    await a.stop()
    await a.start()
    await cluster.until_connected()
    ids = a.write_chunks(b"file", 5, 1, top)
    await trio.sleep(20)
    assert keepers(cluster, ids) == {4}


@simulated
async def test_nothing_is_given_up_while_a_manifest_is_nowhere(
    cluster: SimCluster,
) -> None:
    a = await five(cluster)
    many = a.make_directory(b"many")
    say(a, many, b"4")
    *ids, root = a.write_chunks(b"file", 5, 1, many)
    await trio.sleep(20)
    for node in cluster.nodes:
        if node.store.has(root):
            node.store.set_flags([root], clear=RESPONSIBLE)
            node.store.drop([root])
    await cluster.add().start()
    await trio.sleep(100)
    assert min(keepers(cluster, ids)) == 4


@simulated
async def test_what_is_moved_to_where_more_are_kept_is_not_given_up(
    cluster: SimCluster,
) -> None:
    """Others were asked to keep it before, when it had too many copies."""
    a = await five(cluster)
    many = a.make_directory(b"many")
    say(a, many, b"4")
    ids = a.write_chunks(b"file", 5, 1)
    await trio.sleep(40)
    assert a.node is not None
    keeper, here = a.node.keeper, [cid for cid in ids if a.store.has(cid)]
    a.store.set_flags(here, set_=RESPONSIBLE)
    for cid in here:
        keeper._leaving.begin(cid)
    move(a, b"file", ROOT_INO, many)
    await trio.sleep(2)
    keeper._settled += here
    await trio.sleep(2)
    assert all(a.store.flags(cid) & RESPONSIBLE for cid in here)
    await trio.sleep(20)
    assert min(keepers(cluster, ids)) == 4


def first_keeper(cluster: SimCluster, cid: ChunkId) -> SimNode:
    order = ranked(cid, [node.id for node in cluster.nodes])
    return next(node for node in cluster.nodes if node.id == order[0])


@simulated
async def test_who_was_asked_before_a_move_answers_too_late(
    cluster: SimCluster,
) -> None:
    """Whether it keeps the chunk, which all others were about to give up."""
    a = await five(cluster)
    top, many = a.make_directory(b"top"), a.make_directory(b"many")
    say(a, top, b"4")
    say(a, many, b"4")
    await trio.sleep(20)
    ids = a.write_chunks(b"file", 1, 1, top)
    await trio.sleep(30)
    first = first_keeper(cluster, ids[0])
    other = next(node for node in cluster.nodes if node is not first)
    say(other, top, b"1")
    await trio.sleep(5)
    cut_off(cluster, first)
    await trio.sleep(60)
    move(other, b"file", top, many)
    await trio.sleep(60)
    cluster.fabric.heal()
    await cluster.until_connected()
    await trio.sleep(300)
    assert min(keepers(cluster, ids)) >= 4


@simulated
async def test_what_is_written_anew_is_not_given_up_for_an_old_answer(
    cluster: SimCluster,
) -> None:
    a = await five(cluster)
    few, other = a.make_directory(b"few"), a.make_directory(b"other")
    say(a, few, b"1")
    await trio.sleep(20)
    seed, ids = 1, a.write_chunks(b"1", 1, 1, few)
    while first_keeper(cluster, ids[0]) is a:
        seed += 1
        ids = a.write_chunks(b"%d" % seed, 1, seed, few)
    await trio.sleep(30)
    first = first_keeper(cluster, ids[0])
    await first.stop()
    say(a, other, b"3")  # a change: the first keeper would be asked
    await trio.sleep(40)
    assert a.write_chunks(b"same", 1, seed) == ids
    await trio.sleep(30)
    await first.start()
    await cluster.until_connected()
    await trio.sleep(200)
    assert min(keepers(cluster, ids)) >= 2


def test_numbers_that_change_while_trees_are_walked_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exceptions = Rebalancing.exceptions

    async def slow(self: Rebalancing, cids: list[ChunkId]) -> object:
        found = await exceptions(self, cids)
        if self._store is not first:
            await trio.sleep(5)
        return found

    first: object = None

    async def body(cluster: SimCluster) -> None:
        nonlocal first
        a = await five(cluster)
        top = a.make_directory(b"top")
        say(a, top, b"4")
        await trio.sleep(20)
        ids = a.write_chunks(b"file", 1, 1, top)
        await trio.sleep(40)
        first = first_keeper(cluster, ids[0]).store
        monkeypatch.setattr(Rebalancing, "exceptions", slow)
        say(a, top, b"1")
        await trio.sleep(17)
        say(a, top, b"4")
        await trio.sleep(300)
        assert keepers(cluster, ids) == {4}

    simulate(body, tmp_path)


def test_new_files_get_their_copies_while_trees_are_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(self: Rebalancing, cids: list[ChunkId]) -> object:
        await trio.sleep_forever()

    async def body(cluster: SimCluster) -> None:
        a = await five(cluster)
        monkeypatch.setattr(Rebalancing, "exceptions", slow)
        say(a, a.make_directory(b"many"), b"4")
        await trio.sleep(5)
        ids = a.write_chunks(b"file", 5, 1)
        await trio.sleep(20)
        assert keepers(cluster, ids) == {2}

    simulate(body, tmp_path)


@simulated
async def test_what_was_said_where_a_file_was_need_not_be_known(
    cluster: SimCluster,
) -> None:
    """The directory is gone, or the name, when the others hear of the move."""
    a = await five(cluster)
    few = a.make_directory(b"few")
    deep = a.make_directory(b"deep", few)
    say(a, few, b"1")
    await trio.sleep(20)
    ids = a.write_chunks(b"moved", 5, 1, deep) + a.write_chunks(b"linked", 5, 2, few)
    await trio.sleep(20)
    assert keepers(cluster, ids) == {1}
    entry = a.namespace.entry(few, b"linked")
    assert entry is not None and a.node is not None
    txs = []
    for step in (
        lambda t: t.rename(deep, b"moved", ROOT_INO, b"moved"),
        lambda t: t.rmdir(few, b"deep"),
        lambda t: t.link(ROOT_INO, b"linked", entry.ino, S_REG),
        lambda t: t.unlink(few, b"linked"),
    ):
        with a.namespace.transaction() as t:
            step(t)
        txs.append(t.tx)
    a.node.publish([tx for tx in txs if tx is not None])
    await trio.sleep(60)
    assert keepers(cluster, ids) == {2}


@simulated
async def test_moves_that_nobody_told_the_node_of_count(cluster: SimCluster) -> None:
    a = await five(cluster)
    many = a.make_directory(b"many")
    await trio.sleep(20)
    ids = cluster.nodes[1].write_chunks(b"file", 8, 1)
    await trio.sleep(20)
    with a.namespace.transaction() as t:
        t.set_xattr(many, REPLICAS, b"5")
    with a.namespace.transaction() as t:
        t.rename(ROOT_INO, b"file", many, b"file")
    assert a.node is not None
    a.node.behind()
    await trio.sleep(60)
    assert keepers(cluster, ids) == {5}


@simulated
async def test_what_was_moved_while_the_disk_was_full_is_fetched_later(
    cluster: SimCluster,
) -> None:
    a, full, many, ids = await about_to_move(cluster)
    full.store.space.min_free_bytes = 1 << 60
    move(a, b"file", ROOT_INO, many)
    await trio.sleep(60)
    assert min(keepers(cluster, ids)) == 4
    full.store.space.min_free_bytes = 0
    await trio.sleep(20)
    assert keepers(cluster, ids) == {5}


@simulated
async def test_who_starts_fetches_nothing_that_others_keep_for_it(
    cluster: SimCluster,
) -> None:
    a = await five(cluster)
    say(a, a.make_directory(b"top"), b"3")
    ids = [a.write_chunks(b"%d" % n, 1, n)[0] for n in range(30)]
    await trio.sleep(20)
    await cluster.add().start()
    await trio.sleep(60)
    assert keepers(cluster, ids) == {2}
    await a.stop()
    await a.start()
    await cluster.until_connected()
    await trio.sleep(60)
    assert keepers(cluster, ids) == {2}
