"""What the worker and the node may rely on while both have the store open."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fusefs.errors import ChunkMissing
from fusefs.model.ids import ChunkId, chunk_id
from fusefs.store import PUSHED, Store
from tests.lib.stores import bytes_of, checked_store

SIZES = (10, 5_000, 32 * 1024, 40_000)
OBJECTS = [bytes_of(size, seed) for size in SIZES for seed in range(2)]
OBJECTS.append(bytes_of(1_000) * 50)  # gets smaller when it is compressed
IDS = [chunk_id(data) for data in OBJECTS]


class TwoStores(RuleBasedStateMachine):
    """Two stores on one directory against one dict of id to flags."""

    directory: Path
    compress = False
    number = 0
    who = st.integers(0, 1)
    what = st.integers(0, len(OBJECTS) - 1)

    def __init__(self) -> None:
        super().__init__()
        TwoStores.number += 1
        self.path = self.directory / str(TwoStores.number)
        self.stores = [
            Store.open(self.path, min_free_bytes=0, compress=self.compress)
            for _ in range(2)
        ]
        self.model: dict[ChunkId, int] = {}

    @rule(who=who, what=what, pushed=st.booleans())
    def put(self, who: int, what: int, pushed: bool) -> None:
        self.stores[who].put(OBJECTS[what], pushed=pushed)
        self.model[IDS[what]] = self.model.get(IDS[what], 0) | pushed * PUSHED

    @rule(who=who, which=st.sets(what), pushed=st.booleans())
    def put_many(self, who: int, which: set[int], pushed: bool) -> None:
        items = [(IDS[what], OBJECTS[what]) for what in which]
        self.stores[who].put_many(items, pushed=pushed)
        for cid, _ in items:
            self.model[cid] = self.model.get(cid, 0) | pushed * PUSHED

    @rule(who=who, what=what)
    def delete(self, who: int, what: int) -> None:
        self.stores[who].delete(IDS[what])
        self.model.pop(IDS[what], None)

    @rule(who=who, which=st.sets(what))
    def drop(self, who: int, which: set[int]) -> None:
        self.stores[who].drop(IDS[what] for what in which)
        for what in which:
            if self.model.get(IDS[what]) == 0:
                del self.model[IDS[what]]

    @rule(who=who, what=what)
    def confirm(self, who: int, what: int) -> None:
        self.stores[who].set_flags([IDS[what]], clear=PUSHED)
        if IDS[what] in self.model:
            self.model[IDS[what]] &= ~PUSHED

    @rule(who=who)
    def sync_all(self, who: int) -> None:
        self.stores[who].sync_all()

    @rule(who=who, what=what)
    def read(self, who: int, what: int) -> None:
        """A read gives the bytes or, when the object is gone, mostly says so: a
        descriptor kept from before may still serve the right bytes."""
        store, cid, data = self.stores[who], IDS[what], OBJECTS[what]
        into = memoryview(bytearray(20))
        try:
            assert store.get(cid) == data
            count = store.read_into(cid, len(data) - 5, into)
            assert bytes(into[:count]) == data[-5:]
        except ChunkMissing:
            assert cid not in self.model
            assert not store.has(cid)

    @invariant()
    def agree(self) -> None:
        for store in self.stores:
            assert dict(store.objects()) == {
                cid: len(OBJECTS[IDS.index(cid)]) for cid in self.model
            }
            assert set(store.missing(IDS)) == set(IDS) - set(self.model)
            assert all(store.has(cid) for cid in self.model)
            assert {cid: store.flags(cid) for cid in self.model} == self.model

    def teardown(self) -> None:
        assert list(self.stores[0].check(contents=True)) == []
        for store in self.stores:
            store.close()


@pytest.mark.parametrize("compress", [False, True])
def test_two_stores_agree_with_a_model(tmp_path, compress):
    TwoStores.directory = tmp_path
    kind = {"compress": compress}
    machine = type("Machine", (TwoStores,), kind).TestCase
    machine.settings = settings(max_examples=25, stateful_step_count=25, database=None)
    machine().runTest()


def test_object_of_the_other_process_is_seen_at_once(tmp_path):
    with checked_store(tmp_path) as worker, checked_store(tmp_path) as node:
        for data in OBJECTS:
            cid = chunk_id(data)
            assert not worker.has(cid)
            assert worker.missing([cid]) == [cid]
            node.put_verified(cid, data)
            assert worker.has(cid)
            assert worker.missing([cid]) == []
            assert worker.get(cid) == data


def test_eviction_by_the_other_process_is_met_cleanly(tmp_path):
    """A remembered yes may be wrong once; the fetch that follows finds the truth."""
    with checked_store(tmp_path) as worker, checked_store(tmp_path) as node:
        for data in OBJECTS:
            cid = worker.put(data, pushed=False)
            node.drop([cid])
            assert worker.has(cid)
            try:
                worker.get(cid)
                raise AssertionError("there is nothing to get")
            except ChunkMissing:
                assert not worker.has(cid)
            assert node.missing([cid]) == worker.missing([cid]) == [cid]
            node.put_verified(cid, data)
            assert worker.get(cid) == data


def test_file_deleted_by_the_other_process_is_let_go(tmp_path):
    with checked_store(tmp_path) as worker, checked_store(tmp_path) as node:
        data = bytes_of(40_000)
        cid = worker.put(data)
        assert worker.get(cid) == data
        node.delete(cid)
        assert worker.statistics().open_files == 1
        worker.sync_all()
        assert worker.statistics().open_files == 0


def test_suspicion_ends_for_both_when_one_has_looked(tmp_path):
    Store.open(tmp_path).close()
    with (
        checked_store(tmp_path, power_cut=True) as worker,
        checked_store(tmp_path, power_cut=True) as node,
    ):
        node.check_suspects()
        assert worker.suspects.since_s is not None
        worker.sync_all()
        assert worker.suspects.since_s is None


def test_no_change_passes_a_held_lock(tmp_path):
    changes = [
        lambda store: store.put(b"small"),
        lambda store: store.put(bytes_of(40_000)),
        lambda store: store.put_many([(chunk_id(b"many"), b"many")]),
        lambda store: store.delete(chunk_id(b"small")),
        lambda store: store.drop([chunk_id(b"many")]),
        lambda store: store.touch([chunk_id(b"many")]),
        lambda store: store.set_flags([chunk_id(b"many")], set_=PUSHED),
    ]
    with checked_store(tmp_path) as worker, checked_store(tmp_path) as node:
        for change in changes:
            done = threading.Event()

            def run(change=change, done=done) -> None:
                change(node)
                done.set()

            with worker.lock:
                thread = threading.Thread(target=run)
                thread.start()
                assert not done.wait(0.05)
            assert done.wait(30)
            thread.join()


def hammer(store: Store, seed: int, rounds: int) -> None:
    """Random work on few objects: every answer is the truth or ChunkMissing."""
    rng = random.Random(seed)
    into = memoryview(bytearray(64))
    for _ in range(rounds):
        data = rng.choice(OBJECTS)
        cid = chunk_id(data)
        action = rng.randrange(8)
        try:
            if action <= 1:
                store.put(data, pushed=bool(rng.getrandbits(1)))
            elif action == 2:
                store.put_verified(cid, data)
            elif action == 3:
                assert store.get(cid) == data
            elif action == 4:
                assert store.read_into(cid, 3, into) == len(data[3:67])
                assert bytes(into[: len(data[3:67])]) == data[3:67]
            elif action == 5:
                store.set_flags([cid], clear=PUSHED)
                store.drop([cid])
            elif action == 6:
                store.sync([cid])
            else:
                store.delete(cid)
        except ChunkMissing:
            pass


HAMMER = """
import sys
from pathlib import Path
from fusefs.store import Store
from tests.contract.test_store_shared import hammer
store = Store.open(Path(sys.argv[1]), min_free_bytes=0)
hammer(store, int(sys.argv[2]), 600)
store.close()
"""


def test_two_processes_at_once_never_disagree(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(tmp_path), str(seed)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": "."},
            stderr=subprocess.PIPE,
        )
        for seed in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors.decode()
    with checked_store(tmp_path):
        pass


def test_many_threads_of_one_store_never_disagree(tmp_path):
    errors: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            hammer(store, seed, 200)
        except BaseException as error:
            errors.append(error)

    with checked_store(tmp_path) as store:
        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
