"""Which bytes stood where a chunk stands now: what a patch can be made over.

Fed with the versions of files that replaced one another here. Small files are noted at
once. The manifests of others are compared when a basis is first asked for, as far as
their nodes are here; below a node that is not, it goes on when the node has come.
Everything is bounded, and forgetting costs a whole chunk sent, nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from fusefs.errors import ChunkMissing, Corrupt
from fusefs.model.ids import CHUNK_ID_BYTES, HOLE, ChunkId, Ino
from fusefs.model.manifest import Load, chunk_count, depth, lookup, present
from fusefs.model.tx import ContentChange

KNOWN = 16_384
"""Chunks with a basis that are remembered (some 6 MB)."""
FRESH = 64
"""Files whose manifests are still to be compared."""
STUCK = 1024
"""Manifest nodes that are waited for."""
AT_ONCE = 4096
"""Chunks looked at in one go: of 4 GiB, some milliseconds."""
STEPS = 16
"""Versions one may be behind and still have a basis."""
ANEW = 3
"""Chunks of a change that came whole, before the file counts as written anew."""


class Basis(NamedTuple):
    """This chunk, from `offset` on."""

    cid: ChunkId
    offset: int = 0


class _Version(NamedTuple):
    """Of a file."""

    root: bytes
    chunks: int
    log2: int

    @classmethod
    def of(cls, root: bytes, size: int, log2: int) -> _Version:
        return cls(root, chunk_count(size, log2), log2)

    def load_chunk(self, index: int, load: Load) -> ChunkId:
        return lookup(self.root, self.chunks, index, load)


class _Part(NamedTuple):
    """Of a version: a node, and how far above its chunks that is."""

    root: bytes
    depth: int

    @property
    def is_hole(self) -> bool:
        return not self.root or self.root == HOLE


class _Change:
    """How the chunks of one version that replaced another came."""

    __slots__ = ("patched", "whole")

    def __init__(self) -> None:
        self.patched = self.whole = 0

    @property
    def is_anew(self) -> bool:
        return self.whole >= ANEW and self.whole > self.patched


class _Place(NamedTuple):
    """The same part of two versions. A lower tree is the first part of a higher."""

    old: _Part
    new: _Part
    level: int


class Bases:
    """See the module. `load` gives a manifest node that is here."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._older: OrderedDict[ChunkId, tuple[Basis, _Change]] = OrderedDict()
        self._fresh: OrderedDict[Ino, tuple[_Version, _Version]] = OrderedDict()
        """Not compared yet."""
        self._stuck: dict[ChunkId, Callable[[], None]] = {}
        """What goes on when this node is here."""

    def replaced(self, change: ContentChange) -> None:
        """A version of a file replaced another one here."""
        log2 = change.chunk_log2
        old_log2 = change.old_chunk_log2 if change.recut else log2
        if not change.old_root or not change.new_root or old_log2 < log2:
            return
        old = _Version.of(change.old_root, change.old_size, old_log2)
        new = _Version.of(change.new_root, change.new_size, log2)
        if old_log2 == log2 and max(old.chunks, new.chunks) == 1:
            self._note(ChunkId(new.root), Basis(ChunkId(old.root)), _Change())
            return
        before = self._fresh.pop(change.ino, None)  # one that nobody asked for
        self._fresh[change.ino] = before[0] if before else old, new
        if len(self._fresh) > FRESH:
            self._fresh.popitem(last=False)

    def of(self, cid: ChunkId, here: Callable[[ChunkId], bool]) -> Basis | None:
        """What stood in the place of this chunk: the latest of it that is `here`."""
        while self._fresh:
            _, (old, new) = self._fresh.popitem()
            self._compare(old, new)
        found = self._older.get(cid)
        if found is None or found[1].is_anew:
            return None
        offset = 0
        for _ in range(STEPS):
            offset += found[0].offset
            if here(found[0].cid):
                return Basis(found[0].cid, offset)
            found = self._older.get(found[0].cid)
            if found is None:
                break
        return None

    def arrived(self, cid: ChunkId, patched: bool | None = None) -> None:
        """It is here now, as a patch or whole (None: nobody named a basis)."""
        if patched is not None and (found := self._older.get(cid)):
            if patched:
                found[1].patched += 1
            else:
                found[1].whole += 1
        go_on = self._stuck.pop(cid, None)
        if go_on is not None:
            go_on()

    def useless(self, cid: ChunkId) -> None:
        """What was made over its basis was not the chunk."""
        self._older.pop(cid, None)

    def _note(self, new: ChunkId, old: Basis, change: _Change) -> None:
        if new == old.cid:
            return
        self._older[new] = old, change
        self._older.move_to_end(new)
        if len(self._older) > KNOWN:
            self._older.popitem(last=False)

    def _when_here(self, node: ChunkId, go_on: Callable[[], None]) -> None:
        if len(self._stuck) >= STUCK:
            self._stuck.clear()
        self._stuck[node] = go_on

    # -- comparing ---------------------------------------------------------------------

    def _compare(self, old: _Version, new: _Version) -> None:
        if old.log2 == new.log2:
            a = _Part(old.root, depth(old.chunks))
            b = _Part(new.root, depth(new.chunks))
            self._compare_parts(_Place(a, b, max(a.depth, b.depth)), _Change())
        elif old.log2 > new.log2:
            self._compare_recut(old, new, _Change())

    def _compare_parts(self, place: _Place, change: _Change) -> None:
        """Looks only at nodes that differ."""
        left, todo = AT_ONCE, [place]
        while todo and left:
            old, new, level = place = todo.pop()
            if old.is_hole or new.is_hole or old == new:
                continue
            if level == 0:
                self._note(ChunkId(new.root), Basis(ChunkId(old.root)), change)
                left -= 1
                continue
            try:
                parts = self._parts(new, level)
            except (ChunkMissing, Corrupt):
                go_on = partial(self._compare_parts, place, change)
                self._when_here(ChunkId(new.root), go_on)
                continue
            try:
                pairs = list(zip(self._parts(old, level), parts, strict=False))
            except (ChunkMissing, Corrupt):
                continue  # the older chunks are not here either
            todo.extend(_Place(a, b, level - 1) for a, b in reversed(pairs))

    def _parts(self, part: _Part, level: int) -> list[_Part]:
        """What is below, one level down."""
        if part.depth < level:
            return [part]
        data = self._load(ChunkId(part.root))
        return [_Part(child, part.depth - 1) for child in _children(data)]

    def _compare_recut(self, old: _Version, new: _Version, change: _Change) -> None:
        """Each smaller chunk came in place of a part of a larger one."""
        within = old.log2 - new.log2
        wanted: ChunkId = HOLE

        def load(node: ChunkId) -> bytes:
            nonlocal wanted
            wanted = node
            return self._load(node)

        at, basis = -1, HOLE
        try:
            for index, cid in present(new.root, new.chunks, load):
                if index >= AT_ONCE:
                    return
                if index >> within != at:
                    at = index >> within
                    basis = old.load_chunk(at, self._load)
                if basis != HOLE:
                    offset = (index & ((1 << within) - 1)) << new.log2
                    self._note(cid, Basis(basis, offset), change)
        except (ChunkMissing, Corrupt):
            go_on = partial(self._compare_recut, old, new, change)
            self._when_here(wanted, go_on)


def _children(node: bytes) -> Iterator[bytes]:
    for at in range(0, len(node), CHUNK_ID_BYTES):
        yield node[at : at + CHUNK_ID_BYTES]
