"""Manifests: the chunks of one version of a file, as a tree with fixed fan-out.

A file of at most one chunk has that chunk's id as its root. Longer lists are cut
into nodes of up to FANOUT ids (32 bytes each, concatenated), each stored as an
object of its own, and the ids of the nodes form the next level, until one is
left: the root. Trailing holes of a node are cut off, and a node of holes only is
itself HOLE: holes cost nothing however large, growing a file by a hole changes no
node, and equal content has one manifest only (for one size and chunk size).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from fusefs.model.ids import CHUNK_ID_BYTES, HOLE, ChunkId, chunk_id

FANOUT = 256
"""Ids per node: 8 KiB, small enough to live in the small-object table."""
DEFAULT_CHUNK_LOG2 = 20
MIN_CHUNK_LOG2, MAX_CHUNK_LOG2 = 12, 20
MAX_FILE_SIZE = (1 << 63) - 1

Load = Callable[[ChunkId], bytes]
"""Gives the bytes of a manifest node; raises ChunkMissing."""
Save = Callable[[bytes, ChunkId], ChunkId]
"""Stores a manifest node and gives its id. With the id of the node in whose place it
is, HOLE where there was none."""


def chunk_count(size: int, chunk_log2: int) -> int:
    """How many chunks a file of `size` bytes has."""
    return (size + (1 << chunk_log2) - 1) >> chunk_log2


def depth(count: int) -> int:
    """Levels of nodes above the chunks: 0 for at most one chunk."""
    levels = 0
    span = 1
    while span < count:
        span *= FANOUT
        levels += 1
    return levels


def _child(node: bytes, index: int) -> ChunkId:
    at = index * CHUNK_ID_BYTES
    return ChunkId(node[at : at + CHUNK_ID_BYTES])


def lookup(root: bytes, count: int, index: int, load: Load) -> ChunkId:
    """The id of chunk `index`; HOLE beyond what the tree holds."""
    if not root or index >= count:
        return HOLE
    node = ChunkId(root)
    for level in range(depth(count) - 1, -1, -1):
        if node == HOLE:
            return HOLE
        span: int = FANOUT**level
        node = _child(load(node), index // span % FANOUT) or HOLE
    return node


def lookup_range(
    root: bytes, count: int, first: int, last: int, load: Load
) -> list[ChunkId]:
    """The ids of chunks first..last-1, loading each node once."""
    return [c for _, c in _walk(root, count, first, min(last, count), load)] + [
        HOLE
    ] * max(0, last - max(first, min(last, count)))


def _walk(
    root: bytes, count: int, first: int, last: int, load: Load
) -> Iterator[tuple[int, ChunkId]]:
    def descend(node: bytes, level: int, base: int) -> Iterator[tuple[int, ChunkId]]:
        if level == 0:
            if first <= base < last:
                yield base, ChunkId(node or HOLE)
            return
        span = FANOUT ** (level - 1)
        lo, hi = max(first, base), min(last, base + span * FANOUT)
        if lo >= hi:
            return
        if not node or node == HOLE:
            for i in range(lo, hi):
                yield i, HOLE
            return
        data = load(ChunkId(node))
        for slot in range((lo - base) // span, (hi - 1 - base) // span + 1):
            yield from descend(_child(data, slot), level - 1, base + slot * span)

    if first < last:
        yield from descend(root, depth(count), 0)


def present(root: bytes, count: int, load: Load) -> Iterator[tuple[int, ChunkId]]:
    """(index, id) of every chunk that is not a hole, skipping whole empty nodes."""
    return _present(root, depth(count), 0, count, load)


def _present(
    node: bytes, level: int, base: int, count: int, load: Load
) -> Iterator[tuple[int, ChunkId]]:
    if not node or node == HOLE or base >= count:
        return
    if level == 0:
        yield base, ChunkId(node)
        return
    data = load(ChunkId(node))
    span = FANOUT ** (level - 1)
    for slot in range(len(data) // CHUNK_ID_BYTES):
        yield from _present(
            _child(data, slot), level - 1, base + slot * span, count, load
        )


def nodes(root: bytes, count: int, load: Load) -> Iterator[ChunkId]:
    """The ids of the manifest's own nodes (not of chunks), for GC and fetch."""

    def descend(node: bytes, level: int) -> Iterator[ChunkId]:
        if level == 0 or not node or node == HOLE:
            return
        yield ChunkId(node)
        if level > 1:
            data = load(ChunkId(node))
            for slot in range(len(data) // CHUNK_ID_BYTES):
                yield from descend(_child(data, slot), level - 1)

    return descend(root, depth(count))


def update(
    root: bytes,
    old_count: int,
    new_count: int,
    changes: Mapping[int, ChunkId],
    load: Load,
    save: Save,
) -> bytes:
    """The root after replacing chunks and growing or cutting to `new_count`.

    Only nodes on the path of a change, or at the cut, are loaded and stored.
    Returns b"" for a file without chunks.
    """
    if new_count == 0:
        return b""
    old_depth, new_depth = depth(old_count), depth(new_count)
    node = _fit(root, old_depth, new_depth, load, save)
    grouped = sorted((i, c) for i, c in changes.items() if i < new_count)
    return _update(node, new_depth, 0, old_count, new_count, grouped, load, save)


def _fit(root: bytes, old: int, new: int, load: Load, save: Save) -> bytes:
    """Raise or lower the tree so that it has the new depth, keeping the left part."""
    node: bytes = root or HOLE
    for _ in range(old, new):
        if node != HOLE:
            node = save(node, HOLE)
    for _ in range(new, old):
        if node != HOLE:
            node = _child(load(ChunkId(node)), 0)
    return node


def _update(
    node: bytes,
    level: int,
    base: int,
    old_count: int,
    new_count: int,
    changes: list[tuple[int, ChunkId]],
    load: Load,
    save: Save,
) -> bytes:
    if level == 0:
        return changes[-1][1] if changes else node
    span = FANOUT ** (level - 1)
    want = min(FANOUT, -(-(new_count - base) // span))
    cut = new_count < min(old_count, base + span * FANOUT)
    if not changes and (not cut or node == HOLE):
        return node
    data = b"" if node == HOLE else load(ChunkId(node))
    slots = [_child(data, i) for i in range(min(want, len(data) // CHUNK_ID_BYTES))]
    slots += [HOLE] * (want - len(slots))
    by_slot: dict[int, list[tuple[int, ChunkId]]] = {}
    for change in changes:
        by_slot.setdefault((change[0] - base) // span, []).append(change)
    touched = set(by_slot)
    if cut and level > 1:
        touched.add(want - 1)
    for slot in touched:
        slots[slot] = ChunkId(
            _update(
                slots[slot],
                level - 1,
                base + slot * span,
                old_count,
                new_count,
                by_slot.get(slot, []),
                load,
                save,
            )
        )
    while slots and slots[-1] == HOLE:
        slots.pop()
    if not slots:
        return HOLE
    packed = b"".join(slots)
    return node if packed == data else save(packed, ChunkId(node))


def differing(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    """Where the new node has other ids than the old one: (start, end) in bytes, in
    order."""
    start = end = -1
    for at in _differing(old, new, 0, len(new)):
        if at != end:
            if end > start:
                yield start, end
            start = at
        end = at + CHUNK_ID_BYTES
    if end > start:
        yield start, end


def _differing(old: bytes, new: bytes, start: int, end: int) -> Iterator[int]:
    """Halves are compared, not ids: few of 256 differ."""
    if old[start:end] == new[start:end]:
        return
    if end - start <= CHUNK_ID_BYTES:
        yield start
        return
    ids = (end - start) // CHUNK_ID_BYTES
    middle = start + ids // 2 * CHUNK_ID_BYTES
    yield from _differing(old, new, start, middle)
    yield from _differing(old, new, middle, end)


def build(chunks: Iterable[ChunkId], save: Save) -> bytes:
    """The root of a whole list of chunk ids."""
    level = list(chunks)
    return update(b"", 0, len(level), dict(enumerate(level)), _no_load, save)


def _no_load(node: ChunkId) -> bytes:
    raise KeyError(node)


def collect(store: dict[ChunkId, bytes]) -> tuple[Load, Save]:
    """Load and save over a dict, for tests and for building before storing."""

    def save(data: bytes, instead: ChunkId = HOLE) -> ChunkId:
        cid = chunk_id(data)
        store[cid] = data
        return cid

    return store.__getitem__, save
