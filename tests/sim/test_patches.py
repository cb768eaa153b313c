"""Changed chunks between nodes: as patches, and whole where that does not work."""

from __future__ import annotations

import os

import trio

from fusefs.model import manifest
from fusefs.model.ids import ROOT_INO, ChunkId, Ino, chunk_id
from fusefs.model.records import S_REG
from fusefs.model.tx import Body
from netnode.chunks import ChunkPlane
from netnode.core.basis import Basis
from netnode.wire.messages import PATCHES, Chunk, Patch
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.running import simulated

SIZE = 1 << 20


def publish(
    node: SimNode,
    name: bytes,
    chunks: list[bytes],
    log2: int = 20,
    *,
    travels: bool = True,
) -> list[ChunkId]:
    """A version of the file; the nodes above its chunks travel with it. Its chunks."""
    ids = [node.store.put(data) for data in chunks]
    nodes: list[Body] = []

    def save(data: bytes, instead: ChunkId) -> ChunkId:
        cid = node.store.put(data)
        nodes.append(Body(cid, data))
        return cid

    root = manifest.build(ids, save)
    size = sum(len(chunk) for chunk in chunks)
    with node.namespace.transaction() as t:
        entry = t.entry(ROOT_INO, name)
        if entry is None:
            ino = t.new_ino(ROOT_INO, name, S_REG)
            t.create(ROOT_INO, name, ino, 0o100644, 0, 0)
        else:
            ino = Ino(entry.ino)
        t.set_content(ino, size=size, root=root, chunk_log2=log2, mtime_ns=t.now_ns)
    node.publish(t.tx, nodes if travels else ())
    return ids


def plane(node: SimNode) -> ChunkPlane:
    assert node.node is not None
    return node.node.chunks


def changed(chunk: bytes, at: int, data: bytes) -> bytes:
    return chunk[:at] + data + chunk[at + len(data) :]


async def level(cluster: SimCluster, node: SimNode, ids: list[ChunkId]) -> None:
    """The first version is everywhere, and settled."""
    await cluster.until_equal()
    await trio.sleep(5)
    assert node.store.missing(ids) == []


async def pair(cluster: SimCluster) -> tuple[SimNode, SimNode, bytes, ChunkId]:
    """Two nodes that have a file of one chunk: its bytes and its id."""
    a, b = await cluster.start(2)
    old = os.urandom(SIZE)
    (cid,) = publish(a, b"file", [old])
    await level(cluster, b, [cid])
    return a, b, old, cid


async def send_patch(a: SimNode, b: SimNode, new: ChunkId, basis: Basis) -> None:
    """Nobody asked for it."""
    made, body = plane(a).patching.made(Chunk(new), basis)
    assert isinstance(made, Patch)
    connection = plane(a).bulk(b.id)
    assert connection is not None
    connection.send_with_body(made, body)
    await trio.sleep(1)


@simulated
async def test_a_reader_gets_what_differs(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    chunks = [os.urandom(SIZE) for _ in range(4)]
    await level(cluster, b, publish(a, b"file", chunks))
    chunks[2] = changed(chunks[2], 70_000, b"new")
    before = plane(b).received_bytes
    ids = publish(a, b"file", chunks)
    await cluster.until_equal()
    assert await b.fetch(ids) == 0
    assert b.store.get(ids[2]) == chunks[2]
    assert plane(b).received_bytes - before < 3000
    assert plane(b).patching.patched_chunks == 1
    assert plane(b).patching.saved_bytes == SIZE - 1024


@simulated
async def test_a_manifest_that_came_late_is_compared_then(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    chunks = [os.urandom(SIZE) for _ in range(4)]
    await level(cluster, b, publish(a, b"file", chunks))
    chunks[3] = changed(chunks[3], 0, b"new")
    ids = publish(a, b"file", chunks, travels=False)
    await cluster.until_equal()
    assert await b.fetch([chunk_id(b"".join(ids))]) == 0  # as a reader begins
    assert await b.fetch(ids) == 0
    assert plane(b).patching.patched_chunks == 1


@simulated
async def test_a_keeper_is_pushed_what_differs(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    chunks = [os.urandom(SIZE) for _ in range(3)]
    await level(cluster, b, publish(a, b"file", chunks))
    before = plane(b).received_bytes
    chunks[0] = changed(chunks[0], 0, b"new")
    ids = publish(a, b"file", chunks)
    await trio.sleep(5)
    assert b.store.missing(ids) == []
    assert b.store.get(ids[0]) == chunks[0]
    assert plane(b).received_bytes - before < 3000
    assert list(a.store.pushed()) == []


@simulated
async def test_smaller_chunks_are_made_of_the_larger(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    data = os.urandom(3 * SIZE)
    large = [data[at : at + SIZE] for at in range(0, len(data), SIZE)]
    await level(cluster, b, publish(a, b"file", large))
    before = plane(b).received_bytes
    data = changed(data, 2 * SIZE + 100, b"new")
    small = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    ids = publish(a, b"file", small, log2=16)
    await cluster.until_equal()
    assert await b.fetch(ids) == 0
    assert [b.store.get(cid) for cid in ids] == small
    assert plane(b).received_bytes - before < 6000
    assert plane(b).patching.patched_chunks == len(small)


@simulated
async def test_a_damaged_basis_costs_a_whole_chunk_and_nothing_else(
    cluster: SimCluster,
) -> None:
    a, b, old, cid = await pair(cluster)
    b.store.delete(cid)
    b.store.put(bytes(SIZE), cid)  # what its id does not say
    (new,) = publish(a, b"file", [changed(old, 5, b"new")])
    await cluster.until_equal()
    assert await b.fetch([new]) == 0
    assert b.store.get(new) == changed(old, 5, b"new")
    assert plane(b).patching.patched_chunks == 0
    assert plane(b).rejected == 0


@simulated
async def test_a_replica_with_a_damaged_basis_comes_whole(
    cluster: SimCluster,
) -> None:
    a, b, old, cid = await pair(cluster)
    b.store.delete(cid)
    b.store.put(bytes(SIZE), cid)
    (new,) = publish(a, b"file", [changed(old, 5, b"new")])
    await trio.sleep(40)
    assert b.store.get(new) == changed(old, 5, b"new")
    assert list(a.store.pushed()) == []


@simulated
async def test_who_lacks_the_basis_sends_the_whole(cluster: SimCluster) -> None:
    a, b, old, cid = await pair(cluster)
    a.store.delete(cid)
    (new,) = publish(a, b"file", [changed(old, 5, b"new")])
    await cluster.until_equal()
    assert await b.fetch([new]) == 0
    assert b.store.get(new) == changed(old, 5, b"new")
    assert plane(b).patching.patched_chunks == 0


@simulated
async def test_a_file_written_anew_comes_whole(cluster: SimCluster) -> None:
    a, b = await cluster.start(2)
    chunks = [os.urandom(200_000) for _ in range(20)]
    await level(cluster, b, publish(a, b"file", chunks))
    fresh = [os.urandom(200_000) for _ in range(20)]
    ids = publish(a, b"file", fresh)
    await cluster.until_equal()
    assert await b.fetch(ids) == 0
    assert [b.store.get(cid) for cid in ids] == fresh
    assert plane(b).patching.patched_chunks == 0


@simulated
async def test_a_patch_that_nobody_asked_for_is_no_chunk(cluster: SimCluster) -> None:
    a, b, old, cid = await pair(cluster)
    new = a.store.put(changed(old, 5, b"new"))
    await send_patch(a, b, new, Basis(cid))
    assert not b.store.has(new)
    assert plane(b).rejected == 1
    assert await b.fetch([new]) == 0  # the connection is as before
    assert b.store.get(new) == changed(old, 5, b"new")


async def whole(cluster: SimCluster, a: SimNode, b: SimNode, old: bytes) -> None:
    (new,) = publish(a, b"file", [changed(old, 5, b"new")])
    await cluster.until_equal()
    assert await b.fetch([new]) == 0
    assert b.store.get(new) == changed(old, 5, b"new")
    assert plane(b).patching.patched_chunks == 0


@simulated
async def test_an_older_node_asks_without_a_basis(cluster: SimCluster) -> None:
    a, b, old, _ = await pair(cluster)
    plane(b).patching.named = lambda cids: {}  # type: ignore[method-assign]
    await whole(cluster, a, b, old)


@simulated
async def test_an_older_node_does_not_look_at_a_basis(cluster: SimCluster) -> None:
    a, b, old, _ = await pair(cluster)
    patching = plane(a).patching
    made = patching.made
    patching.made = lambda message, basis: made(message, None)  # type: ignore[method-assign]
    await whole(cluster, a, b, old)


@simulated
async def test_small_chunks_travel_as_patches_to_those_who_know_them(
    cluster: SimCluster,
) -> None:
    a, b = await cluster.start(2)
    old = os.urandom(20_000)
    new = changed(old, 100, b"new")
    await level(cluster, b, publish(a, b"file", [old]))
    (peer,) = a.node.peers if a.node else ()
    assert peer.connection.version >= PATCHES
    for known in (True, False):
        if not known:  # it was greeted by an older node
            peer.connection._session.version = PATCHES - 1
            old, new = new, changed(new, 200, b"newer")
        cid = chunk_id(new)
        patch = Body(cid, new[100:210], len(new), chunk_id(old), ((100, 110),))
        a.store.put(new)
        seq = a.create(b"%d" % known)
        with a.namespace.transaction() as t:
            entry = t.entry(ROOT_INO, b"file")
            assert entry is not None
            t.set_content(
                entry.ino, size=len(new), root=cid, chunk_log2=20, mtime_ns=t.now_ns
            )
        seq = a.publish(t.tx, [patch])
        assert await a.barrier(seq)
        assert b.store.has(cid) is known
        assert await b.fetch([cid]) == 0
        assert b.store.get(cid) == new
    assert plane(b).rejected == 0


@simulated
async def test_a_patch_of_what_came_on_another_way_meanwhile_is_fine(
    cluster: SimCluster,
) -> None:
    a, b, old, cid = await pair(cluster)
    new = a.store.put(changed(old, 5, b"new"))
    b.store.put(changed(old, 5, b"new"))
    await send_patch(a, b, new, Basis(cid))
    assert plane(b).rejected == 0


@simulated
async def test_what_is_named_in_vain_is_forgotten(cluster: SimCluster) -> None:
    a, b, old, _ = await pair(cluster)
    (new,) = publish(a, b"file", [changed(old, 5, b"new")])
    await cluster.until_equal()
    a.store.delete(new)
    assert await b.fetch([new]) != 0
    assert not plane(b)._sources[a.id].named
