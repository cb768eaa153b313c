"""What of a file travels to another node: with its transaction, and when it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.errors import Unreachable
from fusefs.model.ids import ChunkId, chunk_id
from fusefs.model.tx import Body
from fusefs.vfs import VfsOptions
from fusefs.vfs.ports import Alone
from fusefs.vfs.types import SetAttr
from netnode.bodies import keep_bodies
from tests.lib.local import Local, RecordingPeers
from tests.lib.pair import Pair, pair_of, random_bytes

MIB = 1 << 20


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with pair_of(tmp_path) as made:
        yield made


# -- with its transaction -------------------------------------------------------------


def test_small_file_travels_with_its_transaction(pair: Pair) -> None:
    pair.a.put("/f", b"small")
    create, publish = pair.a_peers.published[-2:]
    assert create[1] == ()
    assert [body.data for body in publish[1]] == [b"small"]
    assert publish[0].seq == create[0].seq + 1


def test_nodes_of_a_manifest_travel_and_large_chunks_do_not(pair: Pair) -> None:
    pair.a.put("/f", random_bytes(2 * MIB + 5))
    _, bodies = pair.a_peers.published[-1]
    assert sorted(len(body.data) for body in bodies) == [5, 96]


def test_of_a_small_chunk_what_was_written_travels(pair: Pair) -> None:
    data = bytearray(random_bytes(20_000))
    pair.a.put("/f", bytes(data))
    pair.sync()
    handle = pair.a.open("/f")
    pair.a.vfs.write(handle, 5000, b"new")
    pair.a.vfs.write(handle, 20_010, b"end")
    pair.a.vfs.flush(handle)
    data[5000:5003] = b"new"
    data += bytes(10) + b"end"
    (body,) = pair.a_peers.published[-1][1]
    assert (body.data, body.ranges) == (b"newend", ((5000, 3), (20_010, 3)))
    pair.sync()
    assert pair.b.store.get(body.id) == data
    assert pair.b.cat("/f") == data
    pair.a.vfs.write(handle, 0, bytes(15_000))  # nearly all of it
    pair.a.vfs.flush(handle)
    (body,) = pair.a_peers.published[-1][1]
    assert not body.is_patch


def test_what_was_cut_off_is_not_told_as_what_was_written(pair: Pair) -> None:
    pair.a.put("/f", random_bytes(20_000))
    pair.sync()
    handle = pair.a.open("/f")
    pair.a.vfs.setattr(pair.a.walk("/f"), SetAttr(size=10_000), pair.a.caller, handle)
    pair.a.vfs.write(handle, 19_999, b"!")
    pair.a.vfs.flush(handle)
    (body,) = pair.a_peers.published[-1][1]
    assert not body.is_patch
    pair.sync()
    assert pair.b.cat("/f") == random_bytes(20_000)[:10_000] + bytes(9999) + b"!"


def test_a_patch_over_what_is_not_there_is_left_out(pair: Pair) -> None:
    pair.a.put("/f", random_bytes(20_000))
    pair.sync()
    (whole,) = pair.a_peers.published[-1][1]
    pair.b.store.delete(whole.id)
    handle = pair.a.open("/f")
    pair.a.vfs.write(handle, 0, b"new")
    pair.a.vfs.flush(handle)
    pair.sync()
    (body,) = pair.a_peers.published[-1][1]
    assert not pair.b.store.has(body.id)
    assert pair.b.cat("/f") == b"new" + random_bytes(20_000)[3:]  # fetched


def test_patches_over_one_another_that_come_together(pair: Pair) -> None:
    data = bytearray(random_bytes(20_000))
    pair.a.put("/f", bytes(data))
    handle = pair.a.open("/f")
    for number in range(3):
        pair.a.vfs.write(handle, number * 10, b"new")
        pair.a.vfs.flush(handle)
        data[number * 10 : number * 10 + 3] = b"new"
    bodies = [body for _, some in pair.a_peers.published for body in some]
    assert [body.is_patch for body in bodies] == [False, True, True, True]
    keep_bodies(pair.b.store, bodies)
    assert pair.b.store.get(bodies[-1].id) == data


def root_of(local: Local, path: str) -> ChunkId:
    row = local.namespace.inode(local.walk(path))
    assert row is not None
    return ChunkId(row.root)


def test_a_node_of_the_manifest_travels_as_the_ids_that_differ(tmp_path: Path) -> None:
    with pair_of(tmp_path, VfsOptions(chunk_log2=12)) as pair:
        data = bytearray(random_bytes(40 * 4096))
        pair.a.put("/f", bytes(data))
        pair.sync()
        handle = pair.a.open("/f")
        for at in (8192, 12_288, 40 * 4096):  # two beside one another, and a new one
            pair.a.vfs.write(handle, at, b"new")
            data[at : at + 3] = b"new"
        pair.a.vfs.flush(handle)
        root = root_of(pair.a, "/f")
        (node,) = [b for b in pair.a_peers.published[-1][1] if b.id == root]
        assert (node.size, node.ranges) == (41 * 32, ((64, 64), (40 * 32, 32)))
        pair.sync()
        assert pair.b.store.get(root) == pair.a.store.get(root)
        assert pair.b.cat("/f") == data


def test_a_node_that_is_cut_and_changed_at_once_arrives(tmp_path: Path) -> None:
    with pair_of(tmp_path, VfsOptions(chunk_log2=12)) as pair:
        pair.a.put("/f", random_bytes(40 * 4096))
        pair.sync()
        handle = pair.a.open("/f")
        pair.a.vfs.setattr(
            pair.a.walk("/f"), SetAttr(size=38 * 4096), pair.a.caller, handle
        )
        pair.a.vfs.write(handle, 0, b"new")
        pair.a.vfs.flush(handle)
        pair.tell(pair.a, pair.b)
        root = root_of(pair.a, "/f")
        assert pair.b.store.get(root) == pair.a.store.get(root)


def test_a_patch_that_makes_another_chunk_is_left_out(pair: Pair) -> None:
    old = pair.b.store.put(b"x" * 5000)
    new = chunk_id(b"y" * 5000)
    keep_bodies(pair.b.store, [Body(new, b"z", 5000, old, ((0, 1),))])
    assert not pair.b.store.has(new)


# -- when it is read -----------------------------------------------------------------


def test_bytes_come_when_they_are_read(pair: Pair) -> None:
    data = random_bytes(10 * MIB + 3)
    pair.a.put("/f", data)
    pair.sync()
    assert pair.b.stat("/f").size == len(data)
    assert pair.b.cat("/f") == data
    assert pair.b_peers.prefetched
    assert pair.b.stat("/f").blocks == -(-len(data) // 512)


def test_what_comes_next_is_asked_for_behind_what_is_read(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.a.put("/f", random_bytes(4 * MIB))
    pair.sync()
    monkeypatch.delattr(RecordingPeers, "prefetch")
    monkeypatch.setattr(Alone, "prefetch", lambda *_: pytest.fail("asked before"))
    pair.b.vfs.read(pair.b.open("/f"), 0, 10)
    chunks = [chunk_id(random_bytes(4 * MIB)[n * MIB :][:MIB]) for n in range(4)]
    assert pair.b_peers.prefetched == chunks[1:3]
    assert pair.b_peers.fetched[-1:] == chunks[:1]


def test_what_nobody_has_is_an_error_and_never_zeros(pair: Pair) -> None:
    pair.a.put("/f", random_bytes(100_000))
    pair.sync()
    pair.b_peers.remote = None
    handle = pair.b.open("/f")
    with pytest.raises(Unreachable):
        pair.b.vfs.read(handle, 0, 10)
    pair.b.vfs.write(handle, 5, b"mine")
    assert pair.b.vfs.read(handle, 5, 4) == b"mine"
    with pytest.raises(Unreachable):
        pair.b.vfs.flush(handle)
    assert pair.b.vfs.statistics().dirty_files == 1
    pair.b_peers.remote = pair.a.store
    pair.b.close(handle)
    expected = bytearray(random_bytes(100_000))
    expected[5:9] = b"mine"
    assert pair.b.cat("/f") == expected


def test_overwriting_whole_chunks_fetches_nothing(pair: Pair) -> None:
    pair.a.put("/f", random_bytes(2 * MIB))
    pair.sync()
    handle = pair.b.open("/f")
    pair.b.vfs.write(handle, 0, random_bytes(MIB, 2))
    pair.b.vfs.flush(handle)
    chunk = pair.b_peers.fetched
    pair.b.vfs.setattr(pair.b.walk("/f"), SetAttr(size=0), pair.b.caller)
    assert len(chunk) <= 1  # the manifest's node
    pair.b.close(handle)


def test_copying_needs_no_bytes(pair: Pair) -> None:
    data = random_bytes(4 * MIB)
    pair.a.put("/f", data)
    pair.sync()
    source, target = pair.b.open("/f", os.O_RDONLY), pair.b.create("/g")
    assert pair.b.vfs.copy_file_range(source, 0, target, 0, 1 << 30) == len(data)
    pair.b.close(target)
    pair.b.close(source)
    assert len(pair.b_peers.fetched) <= 1
    pair.sync()
    assert pair.a.cat("/g") == data
