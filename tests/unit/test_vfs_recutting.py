"""Files that are changed in place get smaller chunks; others keep theirs."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from fusefs.model.ids import ChunkId
from fusefs.model.tx import BODIES_BYTES
from fusefs.vfs import recutting
from fusefs.vfs.buffers import Pool
from fusefs.vfs.content import View
from fusefs.vfs.draft import Draft
from fusefs.vfs.recutting import MOST_BYTES
from fusefs.vfs.types import SetAttr
from tests.lib.local import Local, RecordingPeers, local_vfs
from tests.lib.pair import Pair, pair_of, random_bytes

KIB, MIB = 1 << 10, 1 << 20
PUNCH, KEEP_SIZE = 2, 1


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with local_vfs(tmp_path) as made:
        yield made


def log2(local: Local, path: str) -> int:
    row = local.namespace.inode(local.walk(path))
    assert row is not None
    return row.chunk_log2


def edit(local: Local, handle: int, data: bytearray, rng: random.Random) -> None:
    """One commit of a database: a few pages, then fsync."""
    for _ in range(4):
        at, page = rng.randrange(len(data) // 4096) * 4096, rng.randbytes(4096)
        local.vfs.write(handle, at, page)
        data[at : at + 4096] = page
    local.vfs.fsync(handle, False)


def edited(local: Local, path: str, data: bytearray, count: int) -> None:
    handle, rng = local.open(path), random.Random(count)
    for _ in range(count):
        edit(local, handle, data, rng)
    local.close(handle)


def test_a_file_edited_in_place_gets_small_chunks(local: Local) -> None:
    data = bytearray(random_bytes(6 * MIB + 12345))
    local.put("/db", bytes(data))
    assert log2(local, "/db") == 20
    edited(local, "/db", data, 1)
    assert log2(local, "/db") == 20  # once is no habit
    edited(local, "/db", data, 6)
    assert log2(local, "/db") == 16
    assert local.cat("/db") == data
    before = local.store.statistics().bytes
    edited(local, "/db", data, 5)
    stored = local.store.statistics().bytes - before
    assert stored <= 5 * (4 * 64 * KIB + 2 * 8 * KIB)
    assert log2(local, "/db") == 16
    assert local.cat("/db") == data


@pytest.mark.parametrize("collected", [False, True])
def test_parts_that_took_long_to_store_are_renewed(
    local: Local, monkeypatch: pytest.MonkeyPatch, collected: bool
) -> None:
    data = bytearray(random_bytes(2 * MIB))
    local.put("/db", bytes(data))
    monkeypatch.setattr(recutting, "LEASE_S", -1.0)
    touch, renewed = local.store.touch, []

    def touching(cids: Iterable[ChunkId]) -> list[ChunkId]:
        wanted = list(cids)
        if collected:
            local.store.delete(wanted[0])
        renewed.append(len(wanted))
        return touch(wanted)

    monkeypatch.setattr(local.store, "touch", touching)
    edited(local, "/db", data, 3)
    assert renewed[0] == 32
    assert log2(local, "/db") == (20 if collected else 16)
    assert local.cat("/db") == data


def test_many_small_chunks_of_one_commit_leave_room_in_their_message(
    tmp_path: Path,
) -> None:
    """Sixteen of 64 KiB are all that a frame may have."""
    peers = RecordingPeers()
    with local_vfs(tmp_path, peers=peers) as local:
        data = bytearray(random_bytes(8 * MIB))
        local.put("/db", bytes(data))
        edited(local, "/db", data, 10)
        assert log2(local, "/db") == 16
        handle = local.open("/db")
        for at in range(0, len(data), 128 * KIB):
            local.vfs.write(handle, at, b"page" * 10_000)  # more than half of one
        local.vfs.flush(handle)
        _, bodies = peers.published[-1]
        assert 64 * KIB in {len(body.data) for body in bodies}
        assert sum(len(body.data) for body in bodies) <= BODIES_BYTES
        row = local.namespace.inode(local.walk("/db"))
        assert row is not None
        assert row.root in {body.id for body in bodies}  # nodes before chunks
        local.close(handle)


def test_holes_stay_holes(local: Local) -> None:
    data = bytearray(random_bytes(6 * MIB))
    local.put("/db", bytes(data))
    handle = local.open("/db")
    local.vfs.fallocate(handle, PUNCH | KEEP_SIZE, 2 * MIB, 2 * MIB)
    data[2 * MIB : 4 * MIB] = bytes(2 * MIB)
    local.vfs.setattr(local.walk("/db"), SetAttr(size=7 * MIB), local.caller)
    data += bytes(MIB)
    rng = random.Random(0)
    while log2(local, "/db") == 20:
        at = rng.randrange(512) * 4096
        local.vfs.write(handle, at, b"page" * 1024)
        data[at : at + 4096] = b"page" * 1024
        local.vfs.fsync(handle, False)
    assert local.read_all(handle) == data
    assert local.vfs.lseek(handle, 0, os.SEEK_HOLE) == 2 * MIB
    assert local.vfs.lseek(handle, 2 * MIB, os.SEEK_DATA) == 4 * MIB
    assert local.vfs.lseek(handle, 4 * MIB, os.SEEK_HOLE) == 6 * MIB
    local.close(handle)


@pytest.mark.parametrize("size", [200 * KIB, 3 * MIB])
def test_what_is_written_whole_or_is_short_keeps_its_chunks(
    local: Local, size: int
) -> None:
    if size > MIB:
        for number in range(8):
            local.put("/f", random_bytes(size, number))
    else:
        data = bytearray(random_bytes(size))
        local.put("/f", bytes(data))
        edited(local, "/f", data, 8)
    assert log2(local, "/f") == 20


def test_a_file_that_is_too_long_keeps_its_chunks(local: Local) -> None:
    handle = local.create("/f")
    local.vfs.setattr(local.walk("/f"), SetAttr(size=MOST_BYTES + 1), local.caller)
    for number in range(8):
        local.vfs.write(handle, number * MIB, random_bytes(MIB, number))
    local.vfs.fsync(handle, False)
    for number in range(300):
        local.vfs.write(handle, number % 8 * MIB, b"page")
        local.vfs.fsync(handle, False)
    local.close(handle)
    assert log2(local, "/f") == 20


def test_bytes_that_are_elsewhere_are_not_fetched_for_it(tmp_path: Path) -> None:
    pair: Pair
    with pair_of(tmp_path) as pair:
        data = bytearray(random_bytes(4 * MIB))
        pair.a.put("/db", bytes(data))
        pair.sync()
        handle = pair.b.open("/db")
        for number in range(12):
            at = number * 4096
            pair.b.vfs.write(handle, at, b"page" * 1024)
            data[at : at + 4096] = b"page" * 1024
            pair.b.vfs.fsync(handle, False)
        pair.b.close(handle)
        assert log2(pair.b, "/db") == 20
        assert len(pair.b.peers.fetched) <= 2  # the first chunk, and a node
        pair.sync()
        assert pair.a.cat("/db") == data


def test_peers_follow_in_the_middle_of_their_own_edits(tmp_path: Path) -> None:
    pair: Pair
    with pair_of(tmp_path) as pair:
        data = bytearray(random_bytes(4 * MIB))
        pair.a.put("/db", bytes(data))
        pair.sync()
        theirs = pair.b.open("/db")
        pair.b.vfs.write(theirs, 3 * MIB + 5, b"theirs")
        edited(pair.a, "/db", data, 8)
        assert log2(pair.a, "/db") == 16
        pair.sync()
        data[3 * MIB + 5 : 3 * MIB + 11] = b"theirs"
        pair.b.close(theirs)
        pair.sync()
        assert log2(pair.b, "/db") == 16
        assert pair.a.cat("/db") == pair.b.cat("/db") == data


@pytest.mark.parametrize("log2", [16, 20])
def test_a_version_in_other_chunks_keeps_what_was_truncated_here(
    tmp_path: Path, log2: int
) -> None:
    """As one in chunks of the same size does."""

    def base(size: int, log2: int) -> View:
        return View(size, b"", log2, lambda cid: b"")

    def draft(local: Local) -> Draft:
        return Draft(base(1000, 20), 0, 0, local.vfs._files._objects, Pool())

    with local_vfs(tmp_path) as local:
        grown = draft(local)
        grown.truncate(10_000_000)
        grown.rebase(base(2000, log2))
        assert grown.size == 10_000_000
        cut = draft(local)
        cut.truncate(100)
        cut.truncate(500)
        cut.rebase(base(50, log2))
        assert cut.size == 500
        written = draft(local)
        written.write(100, memoryview(b"x"))
        written.rebase(base(50, log2))
        assert written.size == 101
