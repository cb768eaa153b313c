"""Flags, eviction, and the list of what peers have not confirmed yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fusefs.errors import NoSpace
from fusefs.model.ids import ChunkId, chunk_id
from fusefs.store import PINNED, PUSHED, RESPONSIBLE, Store
from tests.lib.stores import Clock, bytes_of, checked_store

LARGE = 40_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with checked_store(tmp_path, clock=clock, cache_bytes=10 * LARGE) as store:
        yield store


def fetched(store: Store, seed: int, size: int = LARGE, flags: int = 0) -> ChunkId:
    data = bytes_of(size, seed)
    store.put_verified(chunk_id(data), data, flags)
    return chunk_id(data)


def present(store: Store) -> set[ChunkId]:
    return {cid for cid, _ in store.objects()}


def test_evict_within_quota_removes_nothing(store):
    kept = {fetched(store, i) for i in range(10)}
    assert store.evict() == 0
    assert present(store) == kept


def test_evict_over_quota_removes_what_was_used_longest_ago(store, clock):
    cids = []
    for i in range(12):
        clock.now_s += 1
        cids.append(fetched(store, i))
    clock.now_s += 1
    store.get(cids[0])  # read since
    store.sync_all()  # settles the times of use
    assert store.evict() == 3 * LARGE
    assert present(store) == set(cids) - set(cids[1:4])
    assert store.statistics().cache_bytes == 9 * LARGE


def test_evict_removes_small_objects_when_no_large_one_is_left(store):
    small = [fetched(store, i, 20_000) for i in range(30)]
    large = fetched(store, 99)
    store.evict()
    assert present(store) == set(small[11:])
    assert not store.has(large)


@pytest.mark.parametrize("flag", [PUSHED, RESPONSIBLE, PINNED])
@pytest.mark.parametrize("size", [20_000, LARGE])
def test_evict_never_removes_flagged_objects(store, flag, size):
    kept = {fetched(store, i, size, flag) for i in range(25)}
    store.space.min_free_bytes = 1 << 62
    assert store.evict() == 0
    assert present(store) == kept


def test_evict_makes_free_space_up_to_the_floor(store, monkeypatch):
    for i in range(8):
        fetched(store, i)
    taken = store.index.large_totals()[1]
    monkeypatch.setattr(
        type(store.space),
        "free_bytes",
        lambda self: 1_000_000 + taken - store.index.large_totals()[1],
    )
    store.space.min_free_bytes = 1_050_000
    assert store.evict() == 3 * LARGE
    assert store.space.free_bytes() >= 1_050_000


def test_fetching_on_a_full_disk_evicts_first(store, monkeypatch):
    old = fetched(store, 1)
    monkeypatch.setattr(
        type(store.space),
        "free_bytes",
        lambda self: 2_000_000 - store.index.large_totals()[1],
    )
    store.space.min_free_bytes = 1_950_000
    monkeypatch.setattr("fusefs.store.space.SPARED_CACHE_BYTES", 0)
    new = fetched(store, 2)
    assert present(store) == {new}
    assert not store.has(old)
    store.space.min_free_bytes = 10_000_000
    with pytest.raises(NoSpace):
        fetched(store, 3)


def test_fetching_on_a_full_disk_leaves_what_came_before_it(store, clock, monkeypatch):
    monkeypatch.setattr(
        type(store.space),
        "free_bytes",
        lambda self: 100 * LARGE - store.index.large_totals()[1],
    )
    store.space.min_free_bytes = 101 * LARGE
    monkeypatch.setattr("fusefs.store.space.SPARED_CACHE_BYTES", 5 * LARGE)
    cids = []
    for i in range(9):
        clock.now_s += 1
        cids.append(fetched(store, i))
    assert present(store) == set(cids[-6:])
    store.evict()
    assert not present(store)


def test_fetching_on_a_full_disk_gives_up_all_cache_for_half_the_floor(
    store, monkeypatch
):
    kept = [fetched(store, i) for i in range(4)]
    monkeypatch.setattr(
        type(store.space),
        "free_bytes",
        lambda self: 10 * LARGE - store.index.large_totals()[1],
    )
    store.space.min_free_bytes = 16 * LARGE
    new = fetched(store, 9)
    assert store.has(new) and not any(map(store.has, kept))


def test_copies_for_others_leave_room_to_programs_here(store, monkeypatch):
    cached = fetched(store, 1)
    monkeypatch.setattr(
        type(store.space),
        "free_bytes",
        lambda self: 4 * LARGE - store.index.large_totals()[1],
    )
    store.space.min_free_bytes = LARGE
    copies = [fetched(store, n, flags=RESPONSIBLE) for n in (2, 3)]
    assert present(store) == set(copies)
    assert not store.has(cached)
    with pytest.raises(NoSpace):
        fetched(store, 4, flags=RESPONSIBLE)
    own = store.put(bytes(LARGE))
    assert present(store) == {*copies, own}


def test_fetching_evicts_for_what_comes_in(store, monkeypatch):
    monkeypatch.setattr("fusefs.store.store.EVICT_EVERY_BYTES", 1)
    for i in range(11):
        fetched(store, i)
        assert store.statistics().cache_bytes <= 10 * LARGE


def test_fetching_a_lot_keeps_near_the_quota(store, monkeypatch):
    monkeypatch.setattr("fusefs.store.store.EVICT_EVERY_BYTES", 2 * LARGE)
    for i in range(40):
        fetched(store, i)
    assert store.statistics().cache_bytes <= 12 * LARGE


def test_drop_removes_only_what_nobody_needs(store):
    cids = [fetched(store, i, 100 + i * LARGE, i & 1) for i in range(4)]
    absent = chunk_id(b"absent")
    assert store.drop([*cids, absent]) == 100 + 100 + 2 * LARGE
    assert present(store) == {cids[1], cids[3]}


def test_time_of_use_never_goes_back(store, clock, tmp_path):
    cid = fetched(store, 0)
    with checked_store(tmp_path, clock=Clock(clock.now_s - 100)) as behind:
        behind.get(cid)
        behind.sync_all()
    assert [row.stored_s for row in store.index.larges()] == [clock.now_s]


@pytest.mark.parametrize("size", [100, LARGE])
def test_delete_older_looks_at_the_time_and_the_flags(store, clock, size):
    cid = store.put(bytes_of(size))
    store.files.renew(cid, 0)  # files get the kernel's time, not the clock's
    clock.now_s += 100
    now_s = int(clock.now_s)
    assert store.touch([cid, chunk_id(b"absent")]) == [chunk_id(b"absent")]
    assert not store.delete_older(cid, now_s)
    assert not store.delete_older(cid, now_s + 1, only_cache=True)
    assert store.has(cid)
    assert store.delete_older(cid, now_s + 1)
    assert not store.delete_older(cid, now_s + 1)


@pytest.mark.parametrize("size", [100, LARGE])
def test_set_flags_sets_and_clears(store, size):
    cid = store.put(bytes_of(size))
    store.set_flags([cid], set_=PINNED, clear=PUSHED)
    assert store.flags(cid) == PINNED
    store.set_flags([cid, chunk_id(b"absent")], clear=PINNED)
    assert store.flags(cid) == 0


def test_put_of_what_was_evicted_by_another_process_stores_it_again(store, tmp_path):
    data = bytes_of(LARGE)
    cid = fetched(store, 0)
    assert store.get(cid) == data
    with checked_store(tmp_path) as other:
        other.drop([cid])
    assert store.put(data) == cid
    assert store.get(cid) == data


class PushedMachine(RuleBasedStateMachine):
    """`pushed` against a dict, through stores that are opened again."""

    directory: Path

    def __init__(self) -> None:
        super().__init__()
        PushedMachine.number += 1
        self.path = self.directory / str(PushedMachine.number)
        self.clock = Clock()
        self.flags: dict[ChunkId, int] = {}
        self.store = Store.open(self.path, min_free_bytes=0, clock=self.clock)

    number = 0
    what = st.integers(0, 7)

    def data(self, which: int) -> bytes:
        return bytes_of(LARGE if which == 7 else 10, which)

    @rule(which=what, pushed=st.booleans(), later_s=st.sampled_from([0, 30, 100]))
    def put(self, which: int, pushed: bool, later_s: int) -> None:
        self.clock.now_s += later_s
        cid = self.store.put(self.data(which), pushed=pushed)
        self.flags[cid] = self.flags.get(cid, 0) | (PUSHED if pushed else 0)

    @rule(which=what, flag=st.sampled_from([PUSHED, PINNED]), on=st.booleans())
    def mark(self, which: int, flag: int, on: bool) -> None:
        cid = chunk_id(self.data(which))
        self.store.set_flags([cid], set_=flag * on, clear=flag * (not on))
        if cid in self.flags:
            self.flags[cid] = self.flags[cid] | flag if on else self.flags[cid] & ~flag

    @rule(which=what)
    def delete(self, which: int) -> None:
        cid = chunk_id(self.data(which))
        self.store.delete(cid)
        self.flags.pop(cid, None)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.path, min_free_bytes=0, clock=self.clock)

    @invariant()
    def lists_the_pushed(self) -> None:
        want = {cid for cid, flags in self.flags.items() if flags & PUSHED}
        assert {cid for cid, _ in self.store.pushed()} == want

    @invariant()
    def knows_the_flags(self) -> None:
        assert {cid: self.store.flags(cid) for cid in self.flags} == self.flags

    def teardown(self) -> None:
        assert list(self.store.check(contents=True)) == []
        self.store.close()


def test_pushed_agrees_with_a_model(tmp_path):
    PushedMachine.directory = tmp_path
    machine = type("Machine", (PushedMachine,), {}).TestCase
    machine.settings = settings(max_examples=25, stateful_step_count=30, database=None)
    machine().runTest()
