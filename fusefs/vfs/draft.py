"""Unpublished writes of one file: what was written over which version.

A `Draft` lies over a base version. Per chunk a `Patch` keeps exactly which bytes
were written, so the base is needed only when the chunk is stored, and the draft
can be carried over to another base if a peer published one meanwhile: bytes
written here win, all others are the peer's.

A patch has up to three layers, the upper hides the lower:

    fresh    bytes in a buffer, not stored yet
    source   an object stored earlier for this chunk (`written` says which of its
             bytes are ours; `based` that the rest is the present base's)
    base     the chunk of the base version, up to `cut`

Nothing here locks or waits: the file's lock covers all of it, and for an object that
is not on this disk it raises `Missing`. `share` and `zero` may have begun by then: done
again, once it is here, they end as if they had been done once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fusefs.model.ids import HOLE, ChunkId
from fusefs.model.tx import Body
from fusefs.vfs.buffers import LARGE, Pool
from fusefs.vfs.content import View
from fusefs.vfs.extents import Extents
from fusefs.vfs.objects import ZEROS, Objects
from fusefs.vfs.patch import Patch
from fusefs.vfs.types import UNCHANGED

if TYPE_CHECKING:
    from fusefs.vfs.journal import Log


MOST_RANGES = 64
"""Of one chunk that are told one by one."""


class Assembled(NamedTuple):
    """The bytes of a chunk as they show now."""

    data: memoryview
    scratch: memoryview | None
    """Give it back to the pool when done with `data`."""


class Difference(NamedTuple):
    """Of a chunk from the one it replaces: the parts that were written."""

    basis: ChunkId
    ranges: tuple[tuple[int, int], ...]
    """(start, end)"""

    def body(self, cid: ChunkId, data: bytes | memoryview) -> Body:
        """How the chunk travels."""
        parts = b"".join(data[start:end] for start, end in self.ranges)
        ranges = tuple((start, end - start) for start, end in self.ranges)
        return Body(cid, parts, len(data), self.basis, ranges)


class Draft:
    """Unpublished state of one file. See the module."""

    __slots__ = (
        "_objects",
        "_pool",
        "appends",
        "atime_ns",
        "base",
        "bodies",
        "ctime_ns",
        "cut",
        "idle",
        "inherited",
        "log",
        "lowest",
        "mask",
        "mtime_ns",
        "patches",
        "permissions",
        "since_s",
        "size",
        "streaming",
    )

    def __init__(
        self, base: View, mtime_ns: int, since_s: float, objects: Objects, pool: Pool
    ) -> None:
        self._objects = objects
        self._pool = pool
        self.base = base
        self.size = base.size
        self.cut = base.size
        """Base bytes from here on do not show (the lowest size it was cut to)."""
        self.lowest = 1 << 63
        """The lowest offset written or cut: an append begins at the base's end."""
        self.mask = (1 << base.log2) - 1
        self.patches: dict[int, Patch] = {}
        self.appends = True
        """Everything came through O_APPEND: it belongs at the end, wherever that is."""
        self.mtime_ns = self.ctime_ns = mtime_ns
        self.atime_ns: int | None = None
        """Set explicitly while unpublished."""
        self.permissions = UNCHANGED
        """Changed while unpublished: one transaction with the data, which no peer
        shows without them."""
        self.inherited = False
        """Made anew after a kill, and nobody has asked for the file since."""
        self.idle = False
        """Of a file without a name that nobody had open when it was looked at last."""
        self.since_s = since_s
        self.streaming = False
        """Whole chunks were written: the next ones get large buffers at once."""
        self.bodies: list[Body] = []
        """Small objects stored for it, to travel with its transaction."""
        self.log: Log | None = None
        """Told of every change; of writes by who called `write`, once they are
        stored as far as they will be. None: a kill takes the draft along."""

    @property
    def appended(self) -> bool:
        """Everything was appended: whoever else appends means to keep it. Bytes that
        only happen to begin at the end (those of a new file do) were not."""
        return self.appends and self.lowest >= self.base.size < self.size

    @property
    def changed(self) -> bool:
        """Whether data or size were touched (not only times)."""
        return bool(self.patches) or self.size != self.base.size or self.truncated

    @property
    def touched(self) -> tuple[object, ...]:
        """Another one after each change."""
        return self.mtime_ns, self.ctime_ns, self.atime_ns, self.permissions

    @property
    def truncated(self) -> bool:
        return self.cut < self.base.size

    @property
    def shrinks(self) -> bool:
        """The file will be shorter than it is."""
        return self.size < self.base.size

    def sources(self) -> set[ChunkId]:
        """Objects its chunks are, as far as they are stored."""
        return {p.source for p in list(self.patches.values()) if p.source}

    def objects(self) -> set[ChunkId]:
        """What nothing else may name: its chunks, and what its journal begins with."""
        log = self.log  # no lock is held
        return self.sources() | (log.named if log is not None else set())

    # -- writing ---------------------------------------------------------------

    def write(self, offset: int, data: memoryview) -> list[tuple[int, Patch]]:
        """Take bytes in; gives the chunks that are whole now (store them soon). What
        came in before it raises MemoryError counts."""
        chunk = self.mask + 1
        full: list[tuple[int, Patch]] = []
        at, done, total = offset, 0, len(data)
        if offset < self.lowest:
            self.lowest = offset
        try:
            while done < total:
                index, low = at >> self.base.log2, at & self.mask
                n = min(chunk - low, total - done)
                known = self.patches.get(index)
                patch = Patch() if known is None else known
                part = data if n == total else data[done : done + n]
                patch.put(low, part, self._pool, self.streaming and chunk == LARGE)
                if known is None:
                    self.patches[index] = patch
                if patch.fresh.ranges[0] == (0, chunk):
                    self.streaming = True
                    full.append((index, patch))
                at += n
                done += n
        finally:
            if at > self.size:
                self.size = at
        return full

    def share(self, first: int, cids: Sequence[ChunkId]) -> None:
        """Chunks from `first` on become these objects (or holes), without their
        bytes. Raises Missing for manifest nodes."""
        for index, cid in enumerate(cids, first):
            if cid != HOLE or self.chunk_is_data(index):
                self._share(index, cid, self.mask + 1)
        if self.log is not None:
            self.log.shared(self, first, cids)

    def _share(self, index: int, cid: ChunkId, length: int) -> None:
        """So many bytes of the chunk are those of the object."""
        self.appends = False
        patch = self.patches.get(index)
        if patch is None:
            patch = self.patches[index] = Patch()
        patch.drop_buffer(self._pool)
        patch.source, patch.limit, patch.based = cid, LARGE, True
        patch.written = Extents((0, length))
        patch.version += 1
        self.lowest = min(self.lowest, index << self.base.log2)

    def truncate(self, size: int) -> None:
        """Cut or grow. What is cut reads as zeros if the file grows again."""
        self.appends = False
        self.lowest = min(self.lowest, size) if size < self.size else self.lowest
        if size < self.size:
            self._cut(size)
        self.size = size
        if self.log is not None:
            self.log.truncated(self, size)

    def _cut(self, size: int) -> None:
        last, within = size >> self.base.log2, size & self.mask
        for index in [
            i for i in self.patches if i > last or (i == last and not within)
        ]:
            self.patches.pop(index).drop_buffer(self._pool)
        patch = self.patches.get(last)
        if patch is not None:
            patch.clip(within)
        elif within and size < self.cut:
            self.patches[last] = Patch()  # the base's chunk, stored shorter
        self.cut = min(self.cut, size)

    def zero(self, start: int, end: int) -> None:
        """Bytes [start, end) become zeros, whole chunks holes. The size stays.

        Raises Missing for manifest nodes.
        """
        self.appends = False
        log2 = self.base.log2
        end = min(end, self.size)
        first, last = -(-start >> log2), end >> log2
        if end == self.size:
            last = -(-end >> log2)
        holes = [i for i in self._occupied(first) if i < last] if first < last else []
        self.lowest = min(self.lowest, start)
        for index in holes:  # what others add behind the end is not zeroed
            self._share(index, HOLE, self.length(index))
        edges = (
            [(start, end)]
            if first >= last
            else [(start, first << log2), (last << log2, end)]
        )
        for low, high in edges:
            self._zero_part(low, min(high, end))
        if self.log is not None:
            self.log.zeroed(self, start, end)

    def _zero_part(self, low: int, high: int) -> None:
        while low < high:
            index = low >> self.base.log2
            n = min(high, (index + 1) << self.base.log2) - low
            if index in self.patches or self._base_chunk(index) != HOLE:
                self.write(low, ZEROS[:n])
            low += n

    def _occupied(self, first: int) -> set[int]:
        """Chunks from `first` on that may hold something."""
        end = -(-self.cut >> self.base.log2)
        found = {i for i in self.patches if i >= first}
        for index in self.base.present(first):
            if index >= end:
                break
            found.add(index)
        return found

    # -- reading ---------------------------------------------------------------

    def _base_chunk(self, index: int) -> ChunkId:
        if index << self.base.log2 >= self.cut:
            return HOLE
        return self.base.chunk(index)

    def chunk_is_data(self, index: int) -> bool:
        """Whether the chunk is not a hole. Raises Missing for manifest nodes."""
        patch = self.patches.get(index)
        if patch is None:
            return self._base_chunk(index) != HOLE
        if patch.fresh or (patch.source is not None and patch.source != HOLE):
            return True
        return patch.source is None and self._base_chunk(index) != HOLE

    def next_data(self, index: int) -> int | None:
        """The first chunk from `index` on that is not a hole. Raises Missing."""
        candidates = sorted(i for i in self.patches if i >= index)
        below = next(
            (i for i in self.base.present(index) if i not in self.patches), None
        )
        if below is not None and below << self.base.log2 >= self.cut:
            below = None
        above = next((i for i in candidates if self.chunk_is_data(i)), None)
        found = [i for i in (below, above) if i is not None]
        return min(found, default=None)

    def fills_hole(self, index: int) -> bool:
        """Whether a patch puts data where the base has none. Raises Missing."""
        return self._base_chunk(index) == HOLE and self.chunk_is_data(index)

    def read(self, offset: int, into: memoryview) -> int:
        """What shows at `offset`. Raises Missing."""
        total = min(len(into), self.size - offset)
        done = 0
        while done < total:
            index, low = (offset + done) >> self.base.log2, (offset + done) & self.mask
            n = min(self.mask + 1 - low, total - done)
            self.read_chunk(index, low, into[done : done + n])
            done += n
        return max(total, 0)

    def read_chunk(self, index: int, low: int, into: memoryview) -> int:
        """What shows of one chunk from `low` on, zeros where there is nothing.
        Gives how far its layers reach: the rest is zeros by omission."""
        high = low + len(into)
        patch = self.patches.get(index)
        if patch is None:
            return self._read_base(index, low, into)
        if patch.fresh.covers(low, high):
            patch.copy(low, high, into)
            return high
        reach = self._read_below(index, patch, low, into)
        for a, b in patch.fresh.within(low, high):
            patch.copy(a, b, into[a - low : b - low])
            reach = max(reach, b)
        return reach

    def _read_below(self, index: int, patch: Patch, low: int, into: memoryview) -> int:
        if patch.source is None:
            return self._read_base(index, low, into)
        if patch.based:
            return self._layer(patch.source, patch.limit, low, into)
        reach = self._read_base(index, low, into)
        for a, b in patch.written.within(low, low + len(into)):
            self._layer(patch.source, patch.limit, a, into[a - low : b - low])
            reach = max(reach, b)
        return reach

    def _read_base(self, index: int, low: int, into: memoryview) -> int:
        limit = self.cut - (index << self.base.log2)
        return self._layer(self._base_chunk(index), limit, low, into)

    def _layer(self, cid: ChunkId, limit: int, low: int, into: memoryview) -> int:
        """Bytes of an object up to `limit`, then zeros; gives where it ended."""
        got = 0
        n = min(len(into), limit - low)
        if cid != HOLE and n > 0:
            got = self._objects.read(cid, low, into[:n])
        if got < len(into):
            into[got:] = ZEROS[: len(into) - got]
        return low + got if got else 0

    # -- storing ---------------------------------------------------------------

    def length(self, index: int) -> int:
        """Bytes of the chunk inside the file's size."""
        return min(self.mask + 1, self.size - (index << self.base.log2))

    def assemble(self, index: int, patch: Patch) -> Assembled:
        """The chunk's bytes, trailing zeros by omission left out. Raises Missing."""
        length = self.length(index)
        fresh = patch.fresh
        plain = patch.source is None and self._base_chunk(index) == HOLE
        if patch.buffer is not None and (
            fresh.covers(0, length) or (plain and fresh.ranges == [(0, fresh.end)])
        ):
            end = min(length, fresh.end)
            return Assembled(patch.buffer[:end], None)
        scratch = self._pool.take(length)
        try:
            reach = self.read_chunk(index, 0, scratch[:length])
        except BaseException:
            self._pool.give(scratch)
            raise
        return Assembled(scratch[:reach], scratch)

    def difference(self, index: int, patch: Patch, length: int) -> Difference | None:
        """Of a chunk of this length from the base's; None where it is not much shorter
        to tell. Raises Missing."""
        if patch.source is not None or self.truncated:
            return None
        basis = self._base_chunk(index)
        ranges = tuple(patch.fresh.within(0, length))
        written = sum(end - start for start, end in ranges)
        if basis == HOLE or 2 * written > length or len(ranges) > MOST_RANGES:
            return None
        return Difference(basis, ranges)

    def rebase(self, base: View) -> None:
        """Lie over another version: a peer published one while we were writing."""
        if base.log2 != self.base.log2:
            self._cut_anew(base)
            return
        grown = self.size > self.base.size
        if not self.truncated:
            self.cut = base.size
            least = self.size if grown else self._written_end()
            self.size = max(least, base.size)
        else:
            self.cut = min(self.cut, base.size)
        for patch in self.patches.values():
            if patch.source is not None and not patch.written.covers(0, self.mask + 1):
                patch.based = False
        self.base = base
        self.lowest = min(self.lowest, self.cut) if self.truncated else self.lowest

    def _written_end(self) -> int:
        """Up to where bytes were written; what a shorter version does not cut."""
        ends = [
            (index << self.base.log2) + max(patch.written.end, patch.fresh.end)
            for index, patch in self.patches.items()
        ]
        return min(max(ends, default=0), self.size)

    def _cut_anew(self, base: View) -> None:
        """The other version has chunks of another size. Raises Missing."""
        pieces = self._pieces()
        truncated = self.truncated
        if truncated:
            size, cut = self.size, min(self.cut, base.size)
        else:
            least = self.size if self.size > self.base.size else self._written_end()
            size, cut = max(least, base.size), base.size
        self.start_over(base)
        if truncated:
            self.truncate(cut)
        self.truncate(size)
        for offset, piece in pieces:
            self.write(offset, memoryview(piece))

    def move_to_end(self, base: View, store: Callable[[int, Patch], None]) -> None:
        """Like `rebase`, for appended bytes over a version that a peer appended to:
        they follow the peer's. `store` is given each chunk once it is whole, so that a
        gigabyte needs no more memory than a line. Raises Missing, having done nothing.
        """
        was, size, patches = self.base, self.size, self.patches
        moved = Draft(base, 0, 0, self._objects, self._pool)
        buffer = self._pool.take(LARGE)
        try:
            at, to = was.size, base.size
            while at < size:
                n = min(LARGE, size - at)
                self.read(at, buffer[:n])
                for index, patch in moved.write(to, buffer[:n]):
                    store(index, patch)
                at, to = at + n, to + n
        except BaseException:
            moved.discard()
            raise
        finally:
            self._pool.give(buffer)
        for patch in patches.values():
            patch.drop_buffer(self._pool)
        self.base, self.mask, self.patches = base, moved.mask, moved.patches
        self.size, self.cut, self.lowest = moved.size, moved.cut, moved.lowest

    def _pieces(self) -> list[tuple[int, bytearray]]:
        """What was written: (offset, bytes), in order. Raises Missing."""
        pieces: list[tuple[int, bytearray]] = []
        for index, patch in sorted(self.patches.items()):
            ours = Extents(*patch.written.ranges)
            ours.extend(patch.fresh)
            for a, b in ours.within(0, self.length(index)):
                piece = bytearray(b - a)
                self.read_chunk(index, a, memoryview(piece))
                pieces.append(((index << self.base.log2) + a, piece))
        return pieces

    def start_over(self, base: View) -> None:
        """Nothing is written over this version: what was, is in it or kept aside."""
        self.discard()
        self.base, self.mask, self.size = base, (1 << base.log2) - 1, base.size
        self.cut = base.size
        self.lowest = 1 << 63

    def discard(self) -> None:
        """Throw everything away."""
        for patch in self.patches.values():
            patch.drop_buffer(self._pool)
        self.patches.clear()
