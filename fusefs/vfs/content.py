"""One immutable version of a file's data: which chunk is where.

Everything here is answered from local manifest nodes; `Missing` says which one has
to be fetched first. A `View` may be used by many threads at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fusefs.model import manifest
from fusefs.model.ids import CHUNK_ID_BYTES, HOLE, ChunkId, split_ids
from fusefs.model.manifest import FANOUT, chunk_count, depth
from fusefs.namespace.types import Inode

_FAN_LOG2 = 8
assert FANOUT == 1 << _FAN_LOG2
_CACHED_LEAVES = 64
"""Leaf nodes one open file keeps at hand (8 KiB, 256 chunks each)."""

Load = Callable[[ChunkId], bytes]


class View:
    """Size, root and chunk size, with the manifest nodes seen so far."""

    __slots__ = ("_leaves", "_load", "count", "depth", "log2", "root", "size")

    def __init__(self, size: int, root: bytes, log2: int, load: Load) -> None:
        self.size = size
        self.root = root
        self.log2 = log2
        self.count = chunk_count(size, log2)
        self.depth = depth(self.count)
        self._load = load
        self._leaves: dict[int, bytes] = {}

    @classmethod
    def of(cls, row: Inode, load: Load) -> View:
        return cls(row.size, row.root, row.chunk_log2, load)

    def shows(self, row: Inode) -> bool:
        """Whether this is the version the row names."""
        return self.root == row.root and self.size == row.size

    def chunk(self, index: int) -> ChunkId:
        """The id of chunk `index`, HOLE where there is none."""
        if index >= self.count or not self.root:
            return HOLE
        if self.depth == 0:
            return ChunkId(self.root)
        leaf = self._leaves.get(index >> _FAN_LOG2)
        if leaf is None:
            leaf = self._leaf(index >> _FAN_LOG2)
        at = (index & (FANOUT - 1)) * CHUNK_ID_BYTES
        return ChunkId(leaf[at : at + CHUNK_ID_BYTES]) or HOLE

    def _leaf(self, number: int) -> bytes:
        node = ChunkId(self.root)
        for level in range(self.depth - 1, 0, -1):
            if node == HOLE:
                break
            slot = number >> (_FAN_LOG2 * (level - 1)) & (FANOUT - 1)
            node = _slot(self._load(node), slot)
        leaf = b"" if node == HOLE else self._load(node)
        if len(self._leaves) >= _CACHED_LEAVES:
            self._leaves.clear()
        self._leaves[number] = leaf
        return leaf

    def chunks(self, first: int, last: int) -> list[ChunkId]:
        """Ids of chunks first..last-1."""
        return [self.chunk(i) for i in range(first, last)]

    # -- holes -----------------------------------------------------------------

    def next_data(self, index: int) -> int | None:
        """The first chunk at or after `index` that is not a hole."""
        return next(self.present(index), None)

    def present(self, start: int = 0) -> Iterator[int]:
        """Numbers of the chunks from `start` on that are not holes, in order."""
        if self.root:
            yield from self._present(ChunkId(self.root), self.depth, 0, start)

    def _present(
        self, node: ChunkId, level: int, base: int, start: int
    ) -> Iterator[int]:
        if node == HOLE or base >= self.count:
            return
        if level == 0:
            if base >= start:
                yield base
            return
        data = self._load(node)
        shift = _FAN_LOG2 * (level - 1)
        first = max(0, (start - base) >> shift)
        for slot in range(first, len(data) // CHUNK_ID_BYTES):
            yield from self._present(
                _slot(data, slot), level - 1, base + (slot << shift), start
            )

    def objects(self) -> Iterator[ChunkId]:
        """Every object the version consists of: manifest nodes, then chunks."""
        if self.root:
            yield from manifest.nodes(self.root, self.count, self._load)
            for index in self.present():
                yield self.chunk(index)

    def next_hole(self, index: int) -> int:
        """The first hole at or after `index`; the chunk count when there is none."""
        while index < self.count and self.chunk(index) != HOLE:
            index += 1
        return min(index, self.count)

    def present_bytes(self) -> int:
        """Bytes not in holes, by whole chunks."""
        if not self.root or self.root == HOLE:
            return 0
        total = _count(ChunkId(self.root), self.depth, self._load) << self.log2
        if self.chunk(self.count - 1) != HOLE:
            total -= (self.count << self.log2) - self.size
        return total


def _slot(data: bytes, slot: int) -> ChunkId:
    at = slot * CHUNK_ID_BYTES
    return ChunkId(data[at : at + CHUNK_ID_BYTES]) or HOLE


def _count(node: ChunkId, level: int, load: Load) -> int:
    """How many chunks below the node are not holes."""
    if node == HOLE:
        return 0
    if level == 0:
        return 1
    data = load(node)
    if level == 1 and bytes(HOLE) not in data:  # one search in C instead of 256 slices
        return len(data) // CHUNK_ID_BYTES
    return sum(_count(child, level - 1, load) for child in split_ids(data))


# -- what two versions do not share ---------------------------------------------


def differing(old: View, new: View) -> list[tuple[int, int]]:
    """Byte ranges (offset, length) in which the two may differ, in order.

    Looks only at nodes that differ. Raises Missing when one is not local.
    """
    if old.log2 != new.log2:
        return [(0, max(old.size, new.size))]
    ranges: list[tuple[int, int]] = []
    for start, end in _unequal(old, new):
        low, high = start << new.log2, end << new.log2
        if ranges and ranges[-1][0] + ranges[-1][1] == low:
            ranges[-1] = (ranges[-1][0], high - ranges[-1][0])
        else:
            ranges.append((low, high - low))
    longest = max(old.size, new.size)
    ranges = [(at, min(n, longest - at)) for at, n in ranges if at < longest]
    if old.size != new.size:
        _cover(ranges, min(old.size, new.size), longest)
    return ranges


def _cover(ranges: list[tuple[int, int]], start: int, end: int) -> None:
    """Add [start, end): pages behind the shorter end change with the size."""
    while ranges and ranges[-1][0] >= start:
        ranges.pop()
    if ranges and ranges[-1][0] + ranges[-1][1] >= start:
        start = ranges.pop()[0]
    ranges.append((start, end - start))


def _unequal(old: View, new: View) -> Iterator[tuple[int, int]]:
    """Ranges of chunk numbers under nodes that differ."""
    top = max(old.depth, new.depth)

    def children(node: ChunkId, level: int, view: View) -> list[ChunkId]:
        if node == HOLE:
            return []
        if level > view.depth:  # a lower tree is the first child of a higher one
            return [node]
        return split_ids(view._load(node))

    def walk(
        a: ChunkId, b: ChunkId, level: int, base: int
    ) -> Iterator[tuple[int, int]]:
        if a == b and (level <= min(old.depth, new.depth) or a == HOLE):
            return
        if level == 0 or a == HOLE or b == HOLE:
            yield base, base + (1 << _FAN_LOG2 * level)
            return
        left, right = children(a, level, old), children(b, level, new)
        for slot in range(max(len(left), len(right))):
            yield from walk(
                left[slot] if slot < len(left) else HOLE,
                right[slot] if slot < len(right) else HOLE,
                level - 1,
                base + (slot << _FAN_LOG2 * (level - 1)),
            )

    return walk(ChunkId(old.root) or HOLE, ChunkId(new.root) or HOLE, top, 0)
