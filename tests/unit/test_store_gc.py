"""Mark and sweep: what is reachable stays, what is old and is not goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.model import manifest
from fusefs.model.ids import HOLE, ChunkId, chunk_id
from fusefs.store import RESPONSIBLE, Store
from fusefs.store.bloom import Bloom
from fusefs.store.gc import GRACE_S, collect
from fusefs.store.marks import Root
from tests.lib.stores import Clock, bytes_of, checked_store

LOG2 = 16
CHUNK = 1 << LOG2


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with checked_store(tmp_path, clock=clock) as store:
        yield store


def write(store: Store, clock: Clock, chunks: list[bytes | None]) -> Root:
    """Store a file of these chunks (None is a hole) as its writer would."""
    ids = [HOLE if data is None else put(store, clock, data) for data in chunks]
    root = manifest.build(ids, lambda node, _: put(store, clock, node))
    return root, len(chunks) << LOG2, LOG2


def put(store: Store, clock: Clock, data: bytes) -> ChunkId:
    cid = store.put(data)
    store.files.renew(cid, clock.now_s)  # files get the kernel's time, not the clock's
    return cid


def read(store: Store, root: Root) -> list[bytes | None]:
    count = manifest.chunk_count(root[1], root[2])
    ids = manifest.lookup_range(root[0], count, 0, count, store.get)
    return [None if cid == HOLE else store.get(cid) for cid in ids]


def present(store: Store) -> set[ChunkId]:
    return {cid for cid, _ in store.objects()}


contents = st.lists(
    st.one_of(st.none(), st.integers(0, 5), st.just(6)), min_size=0, max_size=6
)


@settings(max_examples=30)
@given(
    files=st.lists(st.tuples(contents, st.booleans()), max_size=5),
    run=st.integers(0, 5),
)
def test_collect_removes_exactly_the_unreachable(tmp_path_factory, files, run):
    clock = Clock()
    chunks = [bytes_of(40_000 if n == 6 else 50, n) for n in range(7)]
    directory = tmp_path_factory.mktemp("gc")
    with checked_store(directory, clock=clock) as store:
        roots, want, kept = [], [], set()
        for spec, live in files:
            data = [None if n is None else chunks[n] for n in spec]
            root = write(store, clock, data)
            if live:
                roots.append(root)
                want.append(data)
                count = manifest.chunk_count(root[1], root[2])
                kept |= set(manifest.nodes(root[0], count, store.get))
                kept |= {c for _, c in manifest.present(root[0], count, store.get)}
        before = present(store)
        clock.now_s += GRACE_S + 1
        result = collect(store, iter(roots), now_s=clock.now_s, run=run)
        assert present(store) == kept
        assert result.swept == len(before - kept)
        assert [read(store, root) for root in roots] == want


def test_collect_of_a_big_manifest_keeps_every_node_and_chunk(store, clock):
    chunks = [b"%d" % (i % 700) for i in range(1, 600)] + [None] * 70_000 + [b"end"]
    root = write(store, clock, chunks)
    before = present(store)
    clock.now_s += GRACE_S + 1
    assert collect(store, [root], now_s=clock.now_s).swept == 0
    assert present(store) == before
    assert read(store, root)[-1] == b"end"


def test_collect_within_the_grace_time_removes_nothing(store, clock):
    cids = {put(store, clock, b"small"), put(store, clock, bytes_of(40_000))}
    clock.now_s += GRACE_S - 1
    assert collect(store, [], now_s=clock.now_s).swept == 0
    assert present(store) == cids
    clock.now_s += 2
    assert collect(store, [], now_s=clock.now_s).swept == 2
    assert present(store) == set()


@pytest.mark.parametrize("size", [50, 40_000])
@pytest.mark.parametrize("renew", ["put", "touch", "set_flags"])
def test_what_is_renewed_between_mark_and_sweep_stays(store, clock, size, renew):
    data = bytes_of(size)
    cid = put(store, clock, data)
    clock.now_s += GRACE_S + 1

    def roots() -> Iterator[Root]:
        if renew == "put":
            assert store.put(data) == cid
        elif renew == "touch":
            assert store.touch([cid, chunk_id(b"absent")]) == [chunk_id(b"absent")]
        else:
            store.set_flags([cid], set_=RESPONSIBLE)
        yield from ()

    assert collect(store, roots(), now_s=clock.now_s).swept == 0
    assert store.get(cid) == data


def test_touch_is_a_lease_for_one_grace_time(store, clock):
    cid = put(store, clock, bytes_of(40_000))
    for _ in range(3):
        clock.now_s += GRACE_S * 0.9
        store.touch([cid])
        assert collect(store, [], now_s=clock.now_s).swept == 0
    clock.now_s += GRACE_S + 1
    assert collect(store, [], now_s=clock.now_s).swept == 1


def test_collect_without_a_manifest_sweeps_only_cache(store, clock):
    chunk, other = b"of a file whose manifest is elsewhere", b"cache"
    root = write(store, clock, [chunk, b"second"])
    put(store, clock, other)
    store.set_flags([chunk_id(other)], clear=1)
    store.delete(ChunkId(root[0]))
    clock.now_s += GRACE_S + 1
    result = collect(store, [root], now_s=clock.now_s)
    assert result.unreadable == 1
    assert present(store) == {chunk_id(chunk), chunk_id(b"second")}


def test_collect_may_fetch_manifests(store, clock):
    root = write(store, clock, [b"one", b"two"])
    garbage = put(store, clock, b"garbage")
    node = store.get(ChunkId(root[0]))
    store.delete(ChunkId(root[0]))
    clock.now_s += GRACE_S + 1
    result = collect(store, [root], now_s=clock.now_s, load=lambda cid: node)
    assert result.unreadable == 0
    assert not store.has(garbage)
    assert store.has(chunk_id(b"one"))


def test_collect_of_a_root_that_is_no_manifest_sweeps_only_cache(store, clock):
    odd = put(store, clock, b"33 bytes, which is no list of ids")
    kept = put(store, clock, b"pushed garbage, perhaps")
    clock.now_s += GRACE_S + 1
    result = collect(store, [(odd, 5 << LOG2, LOG2)], now_s=clock.now_s)
    assert (result.unreadable, result.swept) == (1, 0)
    assert present(store) == {odd, kept}


def test_collect_pauses_and_stops_where_told(store, clock):
    store.put_many([(chunk_id(b"%d" % i), b"%d" % i) for i in range(1000)])
    clock.now_s += GRACE_S + 1

    class Stop(Exception):
        pass

    def pause() -> None:
        raise Stop

    with pytest.raises(Stop):
        collect(store, [], now_s=clock.now_s, pause=pause)
    assert len(present(store)) == 1000


@given(st.sets(st.binary(min_size=32, max_size=32), max_size=200), st.integers(0, 9))
def test_bloom_has_what_was_added(ids, salt):
    bloom = Bloom(len(ids), salt)
    for cid in ids:
        bloom.add(ChunkId(cid))
    assert all(ChunkId(cid) in bloom for cid in ids)


@pytest.mark.parametrize("salt", [0, 1, 2])
def test_bloom_is_rarely_wrong(salt):
    bloom = Bloom(2000, salt)
    for number in range(2000):
        bloom.add(chunk_id(b"%d" % number))
    wrong = sum(chunk_id(b"not %d" % n) in bloom for n in range(10_000))
    assert wrong < 60  # 17 are expected


def test_bloom_wrong_yes_differs_between_runs():
    others = [chunk_id(b"not %d" % n) for n in range(20_000)]
    wrong = []
    for salt in (0, 1):
        bloom = Bloom(2000, salt)
        for number in range(2000):
            bloom.add(chunk_id(b"%d" % number))
        wrong.append({cid for cid in others if cid in bloom})
    assert wrong[0] and not wrong[0] & wrong[1]


def test_object_whose_file_is_gone_is_no_candidate(store, clock):
    cid = put(store, clock, bytes_of(40_000))
    os.unlink(f"{cid.hex()[:2]}/{cid.hex()}", dir_fd=store.files.fd)
    clock.now_s += GRACE_S + 1
    assert collect(store, [], now_s=clock.now_s).swept == 0
    assert [p.kind for p in store.check(repair=True)] == ["row-without-file"]


def test_what_small_objects_took_goes_back_to_the_disk(store, tmp_path):
    path = tmp_path / "small.db"
    kept = [store.put(bytes_of(20_000, n)) for n in range(1000, 1020)]
    cids = [store.put(bytes_of(20_000, n)) for n in range(400)]
    kept += [store.put(bytes_of(20_000, n)) for n in range(2000, 2020)]
    for cid in cids:
        store.delete(cid)
    store.database.checkpoint(0)
    assert path.stat().st_size > 400 * 20_000
    pauses: list[int] = []
    given = store.shrink(1 << 20, lambda: pauses.append(1))
    assert given > 300 * 20_000
    assert path.stat().st_size < 3 << 20
    assert len(pauses) > 5
    assert store.shrink(1 << 20) == 0
    assert store.missing(kept) == []
