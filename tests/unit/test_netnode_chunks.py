"""What the chunk plane answers to a peer."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import trio

from fusefs.errors import NoSpace
from fusefs.model.ids import ChunkId, NodeId, chunk_id
from fusefs.store.store import Store
from fusefs.store.types import PUSHED, Buffer
from netnode.chunks import ChunkPlane
from netnode.core.fetch import Priority
from netnode.core.membership import Membership
from netnode.environment import Environment
from netnode.source import MAX_TO_SERVE
from netnode.wire.messages import CancelGet, Chunk, Get, Have, NoChunk, Put


@pytest.mark.parametrize("keep", [False, True])
def test_held_after_an_eviction_in_between_is_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    store = Store.open(tmp_path, min_free_bytes=0)
    cids = [store.put(b"%d" % number * 50_000) for number in range(3)]
    store.set_flags(cids, clear=PUSHED)
    set_flags = store.set_flags

    def evicts_first(cids: Iterable[ChunkId], *, set_: int = 0, clear: int = 0) -> None:
        gone, *_ = cids
        store.delete(gone)
        set_flags(cids, set_=set_, clear=clear)

    monkeypatch.setattr(store, "set_flags", evicts_first)
    plane = ChunkPlane(store, Membership(NodeId(1)), Environment(), lambda: 3)
    held = plane._held(Have(1, tuple(cids), keep=keep))
    assert held == tuple(cids[1:] if keep else cids)
    assert store.missing(held) == []
    assert [str(problem) for problem in store.check()] == []
    store.close()


def test_nothing_is_held_for_good_while_no_room_is_left_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the connection on which it was asked stays."""
    store = Store.open(tmp_path, min_free_bytes=0)
    cids = (store.put(b"x" * 50_000),)

    def full(cids: Iterable[ChunkId], *, set_: int = 0, clear: int = 0) -> None:
        raise NoSpace("the store's disk is full (small.db)")

    plane = ChunkPlane(store, Membership(NodeId(1)), Environment(), lambda: 3)
    with monkeypatch.context() as patch:
        patch.setattr(store, "set_flags", full)
        assert plane._held(Have(1, cids, keep=True)) == ()
    assert plane._held(Have(2, cids, keep=True)) == cids
    store.close()


class Reading:
    """A plane with two peers, whose disk has no room for what `refuses`."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        put_verified = store.put_verified
        self.refuses: set[tuple[ChunkId, bool]] = set()
        self.plane = ChunkPlane(store, Membership(NodeId(1)), Environment(), lambda: 3)
        for peer in (2, 3):
            self.plane.peer_joined(NodeId(peer))
        self.ended: list[int] = []

        def put(cid: ChunkId, data: Buffer, flags: int = 0) -> None:
            if (cid, bool(flags)) in self.refuses:
                raise NoSpace("the store's disk is full")
            put_verified(cid, data, flags)

        monkeypatch.setattr(store, "put_verified", put)

    def wants(self, *cids: ChunkId) -> None:
        """A program does."""
        self.plane.fetch(cids, 30, Priority.FOREGROUND, (), self._done)

    def _done(self, number: int, reason: str) -> None:
        self.ended.append(number)

    async def gets(self, peer: int, message: Chunk | Put, body: bytes) -> None:
        source, room = self.plane._sources[NodeId(peer)], trio.Semaphore(1)
        await room.acquire()
        await self.plane._take(source, message, body, room)

    async def hears_of_nothing(self, peer: int, cid: ChunkId) -> None:
        source = self.plane._sources[NodeId(peer)]
        self.plane._handle(source, None, NoChunk((cid,)))  # type: ignore[arg-type]


@pytest.fixture
async def reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Reading]:
    store = Store.open(tmp_path, min_free_bytes=0)
    yield Reading(store, monkeypatch)
    assert [str(problem) for problem in store.check()] == []
    store.close()


async def test_read_that_found_no_room_says_so_though_another_chunk_found_some(
    reading: Reading,
) -> None:
    bodies = [b"%d" % number * 50_000 for number in range(3)]
    large, small, nowhere = (chunk_id(body) for body in bodies)
    reading.refuses = {(large, False)}
    reading.wants(large)
    reading.wants(small)
    await reading.gets(2, Chunk(large), bodies[0])
    await reading.gets(2, Chunk(small), bodies[1])
    await reading.hears_of_nothing(3, large)
    assert reading.ended == [0, errno.ENOSPC]
    await reading.gets(2, Chunk(large), bodies[0])
    reading.wants(nowhere)
    for peer in (2, 3):
        await reading.hears_of_nothing(peer, nowhere)
    assert reading.ended == [0, errno.ENOSPC, errno.EHOSTUNREACH]


async def test_copy_that_finds_no_room_is_read_all_the_same(reading: Reading) -> None:
    """Copies leave more room than what programs read."""
    body = b"x" * 50_000
    cid = chunk_id(body)
    reading.refuses = {(cid, True)}
    reading.wants(cid)
    await reading.gets(2, Put(cid), body)
    await reading.hears_of_nothing(3, cid)
    assert reading.ended == []
    await reading.gets(2, Chunk(cid), body)
    assert reading.ended == [0]


async def test_what_is_cancelled_without_end_is_not_remembered(
    reading: Reading,
) -> None:
    plane = reading.plane
    source = plane._sources[NodeId(2)]

    def hears(message: Get | CancelGet) -> None:
        plane._handle(source, None, message)  # type: ignore[arg-type]

    asked, also = chunk_id(b"asked"), chunk_id(b"also")
    hears(Get((asked, also)))
    hears(CancelGet((asked,)))
    for number in range(2 * MAX_TO_SERVE):
        hears(CancelGet((chunk_id(b"%d" % number),)))
        assert len(source.cancelled) <= MAX_TO_SERVE
    assert asked in source.cancelled and also not in source.cancelled
