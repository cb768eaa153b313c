"""Storing many chunks of one draft: several at a time, in part, and not at all."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusefs.errors import NoSpace
from fusefs.model.ids import ROOT_INO as ROOT
from fusefs.model.ids import ChunkId
from fusefs.vfs import VfsOptions
from fusefs.vfs.storing import THREADS
from fusefs.vfs.types import SetAttr
from tests.lib.local import USER, Local, local_vfs
from tests.lib.pair import Pair, pair_of, random_bytes

KIB = 1 << 10
CHUNK = 128 * KIB
COUNT = 96
"""More chunks than are handed to the threads together."""


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with local_vfs(tmp_path, VfsOptions(chunk_log2=17)) as made:
        yield made


def scattered(local: Local, path: str, data: bytearray) -> int:
    """A handle that wrote some bytes of each chunk, of even ones more."""
    handle = local.open(path)
    for index in range(len(data) // CHUNK):
        for n in range(1 + 2 * (index % 2 == 0)):
            at = index * CHUNK + n * 40 * KIB + index
            local.vfs.write(handle, at, b"new")
            data[at : at + 3] = b"new"
    return handle


def edited(local: Local) -> tuple[bytearray, int]:
    """A file of which every chunk was written in part: its bytes, and the handle."""
    data = bytearray(random_bytes(COUNT * CHUNK))
    local.put("/f", bytes(data))
    return data, scattered(local, "/f", data)


def test_chunks_of_one_file_are_stored_together(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, handle = edited(local)
    store, two = local.store.put, threading.Barrier(min(2, THREADS))
    together = threading.Event()

    def put(
        data: bytes, cid: ChunkId | None = None, *, removes: bool = False
    ) -> ChunkId:
        if len(data) == CHUNK and not together.is_set():
            two.wait(20)
            together.set()
        return store(data, cid)

    monkeypatch.setattr(local.store, "put", put)
    local.vfs.fsync(handle, False)
    assert together.is_set()
    local.close(handle)
    assert local.cat("/f") == data


def test_a_disk_that_fills_loses_nothing_of_what_was_written(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, handle = edited(local)
    store, left = local.store.put, COUNT // 2

    def put(
        data: bytes, cid: ChunkId | None = None, *, removes: bool = False
    ) -> ChunkId:
        nonlocal left
        left -= 1
        if left < 0:
            raise NoSpace("full")
        return store(data, cid)

    with monkeypatch.context() as full:
        full.setattr(local.store, "put", put)
        with pytest.raises(NoSpace):
            local.vfs.fsync(handle, False)
    assert local.cat("/f") == data
    local.vfs.fsync(handle, False)
    local.close(handle)
    assert local.cat("/f") == data
    assert local.vfs.statistics().buffer_bytes == 0


def test_running_out_of_buffers_stores_no_more_than_it_takes(local: Local) -> None:
    data, handle = edited(local)
    used = local.vfs.statistics().buffer_bytes
    local.vfs._writer._publisher.spill(used // 2)
    draft = local.vfs._files.handle(handle).file.draft
    assert draft is not None
    stored = [i for i, patch in draft.patches.items() if not patch.fresh]
    assert used // 4 < local.vfs.statistics().buffer_bytes <= used // 2
    assert 0 < len(stored) < COUNT // 2
    assert all(i % 2 == 0 for i in stored)  # those that held most
    local.close(handle)
    assert local.cat("/f") == data


def test_all_that_is_elsewhere_is_fetched_at_once(tmp_path: Path) -> None:
    pair: Pair
    with pair_of(tmp_path, VfsOptions(chunk_log2=17)) as pair:
        data = bytearray(random_bytes(COUNT * CHUNK))
        pair.a.put("/f", bytes(data))
        pair.sync()
        handle = scattered(pair.b, "/f", data)
        asked: list[int] = []
        fetch = pair.b.peers.fetch

        def count(cids, **rest):  # type: ignore[no-untyped-def]
            asked.append(len(cids))
            fetch(cids, **rest)

        pair.b.vfs._writer._publisher._fetcher._peers.fetch = count
        pair.b.close(handle)
        assert max(asked) == COUNT
        assert pair.b.cat("/f") == data


def test_what_is_elsewhere_does_not_keep_the_rest_in_memory(tmp_path: Path) -> None:
    """Running out of buffers stores what is here, whatever would give more."""
    pair: Pair
    with pair_of(tmp_path, VfsOptions(chunk_log2=17)) as pair:
        pair.a.put("/f", random_bytes(10 * CHUNK))
        pair.sync()
        handle = pair.b.open("/f")
        for index in range(10):  # over bytes that are not here: they hold most
            pair.b.vfs.write(handle, index * CHUNK + 4096, bytes(4096))
            pair.b.vfs.write(handle, index * CHUNK + 100_000, bytes(4096))
        for index in range(10, 30):  # behind the end: they need nothing
            pair.b.vfs.write(handle, index * CHUNK, bytes(4096))
        wanted = pair.b.vfs.statistics().buffer_bytes - 10 * 16 * KIB
        pair.b.vfs._writer._publisher.spill(wanted)
        assert pair.b.vfs.statistics().buffer_bytes <= wanted
        assert pair.b.peers.fetched == []
        pair.b.close(handle)


def test_no_more_threads_to_be_had(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, handle = edited(local)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limit:
        limit.setattr(threading.Thread, "start", refuse)
        local.vfs.fsync(handle, False)
    assert local.vfs._storing._threads is None
    for index in range(COUNT):
        local.vfs.write(handle, index * CHUNK, b"more")
        data[index * CHUNK : index * CHUNK + 4] = b"more"
    local.close(handle)
    assert local.cat("/f") == data
    assert local.vfs._storing._threads is not None
    local.vfs._storing.close()
    handle = scattered(local, "/f", data)
    local.close(handle)
    assert local.cat("/f") == data


def cut_by_name(local: Local) -> None:
    local.vfs.setattr(local.walk("/file"), SetAttr(size=3), USER)


def cut_by_open(local: Local) -> None:
    local.open("/file", os.O_RDONLY | os.O_TRUNC)


@pytest.mark.parametrize("cut", [cut_by_name, cut_by_open])
def test_a_cut_without_a_descriptor_that_fails_is_not_done_later(
    local: Local, monkeypatch: pytest.MonkeyPatch, cut: Callable[[Local], None]
) -> None:
    local.put("/file", b"sound and whole")
    before = local.stat("/file")
    with monkeypatch.context() as patch:
        patch.setattr(local.namespace, "transaction", full)
        with pytest.raises(NoSpace):
            cut(local)
    assert local.stat("/file") == before
    local.vfs.sync()
    assert local.stat("/file") == before
    assert local.cat("/file") == b"sound and whole"


def test_a_cut_that_fails_takes_no_writes_of_others_with_it(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = local.create("/file", b"written and not closed")
    with monkeypatch.context() as patch:
        patch.setattr(local.namespace, "transaction", full)
        with pytest.raises(NoSpace):
            cut_by_name(local)
    local.close(handle)
    assert local.cat("/file") == b"wri"


def full(*_: object) -> None:
    raise NoSpace("the disk is full")


def test_a_write_that_finds_no_memory_leaves_what_came_before(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing beyond the end, where a file that grows later has zeros."""
    data = random_bytes(3 * CHUNK)
    handle = local.vfs.create(ROOT, b"f", 0o644, os.O_RDWR, local.caller).handle
    pool = local.vfs._writer._pool
    take, taken = pool.take, itertools.count(1)

    def scarce(size: int) -> memoryview:
        if next(taken) == 2:
            raise MemoryError
        return take(size)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "take", scarce)
        with pytest.raises(MemoryError):
            local.vfs.write(handle, 0, data)
    assert local.vfs.read(handle, 0, 3 * CHUNK) == data[:CHUNK]
    local.vfs.setattr(
        local.vfs.lookup(ROOT, b"f").ino, SetAttr(size=2 * CHUNK), local.caller, handle
    )
    assert local.vfs.read(handle, 0, 3 * CHUNK) == data[:CHUNK] + bytes(CHUNK)
    local.vfs.write(handle, CHUNK, data[CHUNK:])
    local.close(handle)
    assert local.cat("/f") == data
    assert local.vfs.statistics().buffer_bytes == 0
