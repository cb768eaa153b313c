"""Manifests against a plain list: any sequence of changes gives the same chunks and
the same root as building the list anew (equal content has one manifest only)."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.model import manifest
from fusefs.model.ids import HOLE, ChunkId, chunk_id

CHUNKS = [HOLE, *(chunk_id(bytes((i,))) for i in range(4))]
STEPS = st.lists(
    st.tuples(
        st.integers(0, 90),
        st.dictionaries(st.integers(0, 90), st.sampled_from(CHUNKS), max_size=5),
    ),
    min_size=1,
    max_size=6,
)


@given(STEPS, st.integers(0, 90), st.integers(0, 90))
@settings(max_examples=300)
def test_updates_equal_building_anew(steps: list, a: int, b: int) -> None:
    store: dict = {}
    load, save = manifest.collect(store)
    with patch.object(manifest, "FANOUT", 4):  # deep trees from short lists
        root, count, model = b"", 0, []
        for size, changes in steps:
            model = (model + [HOLE] * size)[:size]
            for index, chunk in changes.items():
                if index < size:
                    model[index] = chunk
            root = manifest.update(root, count, size, changes, load, save)
            count = size
            assert root == manifest.build(model, save)
        first, last = sorted((a, b))
        padded = model + [HOLE] * 100
        assert (
            manifest.lookup_range(root, count, first, last, load)
            == (padded[first:last])
        )
        assert dict(manifest.present(root, count, load)) == {
            i: c for i, c in enumerate(model) if c != HOLE
        }
        for index in range(min(count, 6)):
            assert manifest.lookup(root, count, index, load) == model[index]


NODES = st.lists(st.sampled_from(CHUNKS), min_size=1, max_size=40).map(b"".join)


@given(NODES, NODES)
def test_what_differs_makes_one_node_of_the_other(old: bytes, new: bytes) -> None:
    made = bytearray(old[: len(new)].ljust(len(new), b"\0"))
    last = -1
    for start, end in manifest.differing(old, new):
        assert last < start < end <= len(new)
        assert all(
            old[at : at + 32] != new[at : at + 32] for at in range(start, end, 32)
        )
        made[start:end] = new[start:end]
        last = end
    assert made == new


def test_a_node_is_saved_with_the_one_whose_place_it_takes() -> None:
    store: dict = {}
    load, save = manifest.collect(store)
    saved: list = []

    def noted(node: bytes, instead: ChunkId) -> ChunkId:
        saved.append((len(node), instead))
        return save(node)

    root = manifest.update(b"", 0, 300, {0: CHUNKS[1], 299: CHUNKS[2]}, load, noted)
    assert saved == [(32, HOLE), (44 * 32, HOLE), (64, HOLE)]
    first = manifest._child(load(root), 0)
    saved.clear()
    manifest.update(root, 300, 300, {1: CHUNKS[3]}, load, noted)
    assert saved == [(64, first), (64, root)]


def test_huge_file_has_small_records() -> None:
    """100 GiB of equal chunks: no node above 8 KiB, the root is 32 bytes."""
    store: dict = {}
    _, save = manifest.collect(store)
    root = manifest.build([CHUNKS[1]] * (100 * 1024), save)
    assert len(root) == 32
    assert max(len(node) for node in store.values()) == 256 * 32


def test_hole_of_a_terabyte_stores_nothing() -> None:
    store: dict = {}
    load, save = manifest.collect(store)
    root = manifest.update(b"", 0, 1 << 20, {}, load, save)
    assert root == HOLE
    assert store == {}
