"""Chunks as patches: what differs, and over what."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.errors import ChunkMissing
from fusefs.model import manifest
from fusefs.model.ids import HOLE, ChunkId, Ino, chunk_id
from fusefs.model.tx import ContentChange
from netnode.core.basis import ANEW, FRESH, KNOWN, STEPS, Bases, Basis
from netnode.core.patch import BLOCK, cut_out, difference, patched
from netnode.wire import validate
from netnode.wire.frames import ProtocolError

INO = Ino(7)


def always(cid: ChunkId) -> bool:
    return True


# -- what differs ------------------------------------------------------------------


@given(
    st.integers(0, 200_000),
    st.integers(0, 200_000),
    st.lists(st.tuples(st.integers(0, 199_999), st.integers(1, 3000)), max_size=8),
    st.integers(0, 1 << 30),
)
def test_a_patch_makes_the_new_bytes_of_the_old(
    old_size: int, size: int, writes: list[tuple[int, int]], seed: int
) -> None:
    rng = random.Random(seed)
    whole = rng.randbytes(200_000)
    old, new = whole[:old_size], bytearray(whole[:size])
    for at, length in writes:
        if at + length <= size:
            new[at : at + length] = rng.randbytes(length)
    ranges = difference(old, bytes(new))
    if ranges is None:
        return
    body = cut_out(bytes(new), ranges)
    validate.check_ranges(ranges, size, len(body))
    assert len(body) * 2 <= max(size, 1)
    assert patched(bytearray(old), size, ranges, body) == new


def test_only_blocks_that_differ_are_sent() -> None:
    old = bytes(1 << 20)
    new = bytearray(old)
    new[5000:5010] = b"0123456789"
    new[70 * BLOCK - 1 : 70 * BLOCK + 1] = b"xy"  # over the edge of a block
    assert difference(old, bytes(new)) == ((4096, 1024), (69 * BLOCK, 2 * BLOCK))


def test_what_differs_by_more_than_half_is_sent_whole() -> None:
    old, new = bytes(10 * BLOCK), b"x" * (6 * BLOCK) + bytes(4 * BLOCK)
    assert difference(old, new) is None
    assert difference(old, new[BLOCK:] + bytes(BLOCK)) is not None
    assert difference(b"", b"x") is None


def test_a_shorter_version_is_a_patch_of_nothing() -> None:
    assert difference(b"x" * 5000, b"x" * 3000) == ()
    assert patched(bytearray(b"x" * 5000), 3000, (), b"") == b"x" * 3000
    assert patched(bytearray(b"x"), 3, (), b"") == b"x\0\0"


@pytest.mark.parametrize(
    "ranges, size, body",
    [
        (((0, 5), (4, 2)), 10, 7),  # overlap
        (((5, 1), (0, 1)), 10, 2),  # order
        (((0, 0),), 10, 0),
        (((8, 3),), 10, 3),  # beyond the end
        (((0, 3),), 10, 2),  # fewer bytes than ranges
        (((0, 3),), 10, 4),
    ],
)
def test_ranges_that_are_none_are_refused(
    ranges: tuple[tuple[int, int], ...], size: int, body: int
) -> None:
    with pytest.raises(ProtocolError):
        validate.check_ranges(ranges, size, body)


# -- over what ---------------------------------------------------------------------


class Files:
    """Versions of a file, with their manifests in a dict."""

    def __init__(self) -> None:
        self.nodes: dict[ChunkId, bytes] = {}
        load, self._save = manifest.collect(self.nodes)
        self.load = load

    def node(self, cid: ChunkId) -> bytes:
        try:
            return self.load(cid)
        except KeyError:
            raise ChunkMissing(cid.hex()) from None

    def root(self, chunks: list[ChunkId]) -> bytes:
        return manifest.build(chunks, self._save)


def ids(*names: object) -> list[ChunkId]:
    return [chunk_id(repr(name).encode()) for name in names]


def change(
    files: Files, old: list[ChunkId], new: list[ChunkId], log2: int = 16
) -> ContentChange:
    sizes = [len(chunks) << log2 for chunks in (old, new)]
    roots = [files.root(chunks) for chunks in (old, new)]
    return ContentChange(INO, sizes[0], roots[0], sizes[1], roots[1], log2)


def test_a_file_of_one_chunk() -> None:
    files = Files()
    bases = Bases(files.node)
    a, b = ids("a", "b")
    bases.replaced(change(files, [a], [b]))
    assert bases.of(b, always) == Basis(a)
    assert bases.of(a, always) is None


def test_a_basis_that_was_not_what_it_should_be_is_not_named_again() -> None:
    files = Files()
    bases = Bases(files.node)
    a, b = ids("a", "b")
    bases.replaced(change(files, [a], [b]))
    bases.useless(b)
    assert bases.of(b, always) is None


@pytest.mark.parametrize("count", [2, 300, 70_000])
def test_chunks_of_a_tree(count: int) -> None:
    files = Files()
    bases = Bases(files.node)
    old = ids(*range(count))
    new = list(old)
    for at in (0, count // 2, count - 1):
        (new[at],) = ids(("new", at))
    bases.replaced(change(files, old, new))
    for at in range(0, count, max(1, count // 100)):
        expected = Basis(old[at]) if new[at] != old[at] else None
        assert bases.of(new[at], always) == expected
    assert bases.of(new[-1], always) == Basis(old[-1])


@pytest.mark.parametrize("before, after", [(200, 600), (600, 200), (1, 300), (300, 1)])
def test_trees_of_another_height(before: int, after: int) -> None:
    files = Files()
    bases = Bases(files.node)
    old, new = ids(*range(before)), ids(*range(after))
    (new[0],) = ids("new")
    bases.replaced(change(files, old, new))
    assert bases.of(new[0], always) == Basis(old[0])
    assert all(bases.of(cid, always) is None for cid in new[1:])


def test_holes_are_nobodys_basis() -> None:
    files = Files()
    bases = Bases(files.node)
    a, b, c = ids("a", "b", "c")
    bases.replaced(change(files, [a, HOLE, b], [HOLE, a, c]))
    assert bases.of(a, always) is None
    assert bases.of(c, always) == Basis(b)


def test_smaller_chunks_of_a_larger_one() -> None:
    files = Files()
    bases = Bases(files.node)
    old, new = ids("a", "b"), ids(*range(32))
    root, roots = files.root(old), files.root(new)
    bases.replaced(
        ContentChange(INO, 2 << 20, root, 2 << 20, roots, 16, True, old_chunk_log2=20)
    )
    assert bases.of(new[0], always) == Basis(old[0], 0)
    assert bases.of(new[17], always) == Basis(old[1], 65536)
    (later,) = ids("later")
    bases.replaced(change(files, new, [*new[:17], later, *new[18:]]))
    assert bases.of(later, lambda cid: cid in old) == Basis(old[1], 65536)
    tiny = ids(*range(100, 612))
    root, roots = files.root(new), files.root(tiny)
    bases.replaced(
        ContentChange(INO, 2 << 20, root, 2 << 20, roots, 12, True, old_chunk_log2=16)
    )
    expected = Basis(old[1], 65536 + 3 * 4096)
    assert bases.of(tiny[17 * 16 + 3], lambda cid: cid in old) == expected


def test_larger_chunks_have_no_basis() -> None:
    files = Files()
    bases = Bases(files.node)
    old, new = ids(*range(32)), ids("a", "b")
    root, roots = files.root(old), files.root(new)
    bases.replaced(
        ContentChange(INO, 2 << 20, root, 2 << 20, roots, 20, True, old_chunk_log2=16)
    )
    assert bases.of(new[0], always) is None


def test_it_goes_on_when_a_node_has_come() -> None:
    files = Files()
    old = ids(*range(600))
    new = ids(*range(1000, 1600))
    moved = change(files, old, new)
    known = {files.root(old)} | {ChunkId(c) for c in _leaves(files, moved.old_root)}
    bases = Bases(lambda cid: files.node(cid) if cid in known else _absent(cid))
    bases.replaced(moved)
    assert bases.of(new[0], always) is None
    known.add(ChunkId(moved.new_root))
    bases.arrived(ChunkId(moved.new_root))
    assert bases.of(new[300], always) is None
    leaf = _leaves(files, moved.new_root)[1]
    known.add(leaf)
    bases.arrived(leaf)
    assert bases.of(new[300], always) == Basis(old[300])
    assert bases.of(new[0], always) is None


def _leaves(files: Files, root: bytes) -> list[ChunkId]:
    data = files.load(ChunkId(root))
    return [ChunkId(data[at : at + 32]) for at in range(0, len(data), 32)]


def _absent(cid: ChunkId) -> bytes:
    raise ChunkMissing(cid.hex())


def test_versions_that_nobody_asked_for_are_stepped_over() -> None:
    files = Files()
    bases = Bases(files.node)
    first, second, third = (ids((n, 0), (n, 1)) for n in range(3))
    bases.replaced(change(files, first, second))
    bases.replaced(change(files, second, third))
    assert bases.of(third[1], lambda cid: cid in first) == Basis(first[1])


def test_the_latest_version_that_is_here() -> None:
    files = Files()
    bases = Bases(files.node)
    chunks = ids(*range(STEPS + 3))
    for old, new in itertools.pairwise(chunks):
        bases.replaced(change(files, [old], [new]))
    here = {chunks[0], chunks[3]}
    assert bases.of(chunks[9], here.__contains__) == Basis(chunks[3])
    assert bases.of(chunks[2], here.__contains__) == Basis(chunks[0])
    assert bases.of(chunks[-1], {chunks[0]}.__contains__) is None  # too many steps


def test_a_version_that_comes_back_does_not_go_round_in_circles() -> None:
    files = Files()
    bases = Bases(files.node)
    a, b = ids("a", "b")
    bases.replaced(change(files, [a], [b]))
    bases.replaced(change(files, [b], [a]))
    assert bases.of(a, lambda cid: False) is None


def test_a_file_written_anew_is_not_compared_to_its_end() -> None:
    files = Files()
    bases = Bases(files.node)
    old, new = ids(*range(10)), ids(*range(10, 20))
    bases.replaced(change(files, old, new))
    for cid in new[:ANEW]:
        assert bases.of(cid, always) is not None
        bases.arrived(cid, patched=False)
    assert bases.of(new[5], always) is None


def test_one_that_is_mostly_patched_goes_on() -> None:
    files = Files()
    bases = Bases(files.node)
    old, new = ids(*range(20)), ids(*range(20, 40))
    bases.replaced(change(files, old, new))
    assert bases.of(new[0], always) is not None
    for at, cid in enumerate(new[:9]):
        bases.arrived(cid, patched=at % 3 != 0)
    assert bases.of(new[10], always) == Basis(old[10])


def test_what_is_remembered_is_bounded() -> None:
    files = Files()
    bases = Bases(files.node)
    for number in range(KNOWN + 10):
        a, b = ids(("a", number), ("b", number))
        bases.replaced(change(files, [a], [b]))
    assert bases.of(ids(("b", 0))[0], always) is None
    assert bases.of(ids(("b", KNOWN))[0], always) is not None
    for number in range(FRESH + 1):
        old, new = ids((number, 1), 2), ids((number, 3), 2)
        one = change(files, old, new)
        bases.replaced(
            ContentChange(
                Ino(number), one.old_size, one.old_root, one.new_size, one.new_root, 16
            )
        )
    assert bases.of(ids((0, 3))[0], always) is None
    assert bases.of(ids((FRESH, 3))[0], always) is not None
