"""Trees that a node keeps whole."""

from __future__ import annotations

import pytest
import trio

from fusefs.model.ids import ROOT_INO, ChunkId
from fusefs.store.types import PINNED
from netnode import pins
from netnode.link import CommandFailed
from netnode.pinning import Found
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.running import simulated

CHUNK = 65536


def kept(node: SimNode, ids: list[ChunkId]) -> bool:
    here = not node.store.missing(ids)
    return here and all(node.store.flags(cid) & PINNED for cid in ids)


async def one_copy(cluster: SimCluster, count: int = 2) -> list[SimNode]:
    """Nodes of which each chunk has one keeper."""
    nodes = await cluster.start(count)
    for node in nodes:
        assert node.node is not None
        node.node.copies.of_cluster = 1
    return nodes


@simulated
async def test_a_pinned_tree_is_brought_and_what_comes_later_too(
    cluster: SimCluster,
) -> None:
    a, b = await one_copy(cluster)
    top = a.make_directory(b"top")
    deep = a.make_directory(b"deep", top)
    ids = a.write_chunks(b"large", 5, parent=deep) + a.write_chunks(b"small", 1, 7, top)
    other = a.write_chunks(b"other", 5, 9)
    await cluster.until_equal()
    await trio.sleep(10)
    assert b.node is not None and b.store.missing(ids)
    (told,) = pins.pin(b.node, "top")
    assert told == {
        "path": "top",
        "looked": False,
        "files": 0,
        "bytes": 0,
        "missing_chunks": 0,
    }
    await trio.sleep(10)
    assert kept(b, ids)
    assert b.store.missing(other), "nobody asked for it"
    assert b.node.pinning.pins() == {top: Found(2, 6 * CHUNK, 0)}
    ids = a.write_chunks(b"large", 5, 3, deep) + a.write_chunks(b"new", 3, 5, deep)
    await trio.sleep(10)
    assert kept(b, ids)
    own = b.write_chunks(b"own", 2, 6, top)
    await trio.sleep(10)
    assert kept(b, own)


@simulated
async def test_what_nobody_has_is_fetched_when_somebody_comes_who_has(
    cluster: SimCluster,
) -> None:
    a, b = await one_copy(cluster)
    await b.stop()
    ids = a.write_chunks(b"file", 3)
    await b.start()
    await cluster.until_equal()
    await a.stop()
    assert b.node is not None
    pins.pin(b.node, "")
    await trio.sleep(100)
    assert not kept(b, ids)
    assert pins.report(b.node)[0]["missing_chunks"]
    await a.start()
    await cluster.until_connected()
    await trio.sleep(30)
    assert kept(b, ids)
    assert pins.report(b.node)[0]["missing_chunks"] == 0


@simulated
async def test_pins_hold_over_a_restart_and_end(cluster: SimCluster) -> None:
    a, b = await one_copy(cluster)
    top = a.make_directory(b"top")
    ids = a.write_chunks(b"file", 3, parent=top)
    await cluster.until_equal()
    assert b.node is not None
    pins.pin(b.node, "top")
    pins.pin(b.node, "top/file")
    await trio.sleep(10)
    await b.stop()
    await b.start()
    assert [line["path"] for line in pins.report(b.node)] == ["top", "top/file"]
    await pins.unpin(b.node, "top")
    assert kept(b, ids), "there is another"
    await pins.unpin(b.node, "/top/file")
    assert not any(b.store.flags(cid) & PINNED for cid in ids)
    with pytest.raises(CommandFailed, match="not pinned"):
        await pins.unpin(b.node, "top")
    with pytest.raises(CommandFailed, match="no 'nowhere'"):
        pins.pin(b.node, "nowhere")


@simulated
async def test_who_ends_a_pin_does_not_wait_for_another_tree(
    cluster: SimCluster,
) -> None:
    a, b = await one_copy(cluster)
    small = a.write_chunks(b"small", 3)
    await cluster.until_equal()
    assert b.node is not None
    pins.pin(b.node, "small")
    await cluster.until(lambda: kept(b, small))
    cluster.fabric.bytes_per_s = 20_000
    large = a.write_chunks(b"large", 40, 1)
    await cluster.until_equal()
    pins.pin(b.node, "large")
    await trio.sleep(20)
    assert b.store.missing(large), "it takes a minute"
    with trio.fail_after(20):  # what is asked for at once comes first
        await pins.unpin(b.node, "small")
    assert not any(b.store.flags(cid) & PINNED for cid in small)
    await cluster.until(lambda: kept(b, large), limit_s=300)


@simulated
async def test_what_left_a_pinned_tree_is_cache_after_a_start(
    cluster: SimCluster,
) -> None:
    a, b = await one_copy(cluster)
    top = a.make_directory(b"top")
    ids = a.write_chunks(b"file", 3, parent=top)
    await cluster.until_equal()
    assert b.node is not None
    pins.pin(b.node, "top")
    await trio.sleep(10)
    with a.namespace.transaction() as t:
        t.rename(top, b"file", ROOT_INO, b"file")
    a.publish(t.tx)
    await trio.sleep(10)
    await b.stop()
    await b.start()
    await trio.sleep(10)
    assert not any(b.store.flags(cid) & PINNED for cid in ids)


@simulated
async def test_pins_of_what_was_removed_are_told_and_end(cluster: SimCluster) -> None:
    a, b = await one_copy(cluster)
    top = a.make_directory(b"top")
    await cluster.until_equal()
    assert b.node is not None
    pins.pin(b.node, "top")
    with a.namespace.transaction() as t:
        t.rmdir(ROOT_INO, b"top")
    a.publish(t.tx)
    await trio.sleep(10)
    assert [line["path"] for line in pins.report(b.node)] == [None]
    assert top in b.node.pinning.pins()
    assert await pins.unpin(b.node, "") == []


@simulated
async def test_pinned_trees_leave_room_on_the_disk(cluster: SimCluster) -> None:
    a, b = await one_copy(cluster)
    ids = a.write_chunks(b"file", 3)
    await cluster.until_equal()
    assert b.node is not None
    b.store.space.min_free_bytes = 1 << 60
    pins.pin(b.node, "")
    await trio.sleep(10)
    assert b.store.missing(ids)
    b.store.space.min_free_bytes = 0
    await trio.sleep(100)
    assert kept(b, ids)


@simulated
async def test_cache_of_a_tree_is_given_up(cluster: SimCluster) -> None:
    a, b = await one_copy(cluster)
    top = a.make_directory(b"top")
    ids = a.write_chunks(b"file", 3, parent=top)
    other = a.write_chunks(b"other", 3, 9)
    await cluster.until_equal()
    assert await b.fetch(ids + other) == 0
    assert b.node is not None
    cached = [cid for cid in ids if not b.store.flags(cid)]
    assert cached
    freed = await pins.evict(b.node, "top")
    assert freed["freed_bytes"]
    assert b.store.missing(ids) == cached
    assert b.store.missing(other) == []
    assert a.store.missing(ids) == [], "who keeps it keeps it"


@simulated
async def test_damaged_list_of_pins_makes_nothing_cache(cluster: SimCluster) -> None:
    a, b = await one_copy(cluster)
    ids = a.write_chunks(b"file", 3)
    await cluster.until_equal()
    assert b.node is not None
    pins.pin(b.node, "")
    await trio.sleep(10)
    await b.stop()
    (b.namespace.path.parent / "pins").write_bytes(b"[1, ")
    await b.start()
    await trio.sleep(10)
    assert b.node.pinning.pins() == {}
    assert kept(b, ids)
