"""Unpublished writes to one chunk.

Bytes are kept in one buffer when they lie together, and by pages when they are
scattered: a database that writes a page here and there must not cost a buffer (and,
when buffers run out, a rewrite) of 1 MiB for each.
"""

from __future__ import annotations

from collections.abc import Iterator

from fusefs.model.ids import ChunkId
from fusefs.vfs.buffers import LARGE, MEDIUM, PAGE, Pool
from fusefs.vfs.extents import Extents

PAGES_AT_MOST = 64
"""Scattered pages of one chunk (256 KiB); beyond it one buffer of 1 MiB is cheaper."""


class Patch:
    """What was written to one chunk. `version` moves with every change."""

    __slots__ = (
        "based",
        "buffer",
        "busy",
        "fresh",
        "limit",
        "origin",
        "pages",
        "source",
        "version",
        "written",
    )

    def __init__(self) -> None:
        self.buffer: memoryview | None = None
        self.origin = 0
        """Where in the chunk the buffer begins."""
        self.pages: dict[int, bytearray] | None = None
        """Instead of the buffer, while writes are scattered: page number to bytes."""
        self.fresh = Extents()
        self.source: ChunkId | None = None
        self.limit = LARGE
        """Bytes of `source` that still show."""
        self.based = True
        self.written = Extents()
        self.busy = False
        """A thread without the lock reads the buffer: it must not change."""
        self.version = 0

    def put(self, at: int, data: memoryview, pool: Pool, whole: bool) -> None:
        """Write bytes at an offset of the chunk. `whole`: a big buffer at once."""
        end = at + len(data)
        if self.pages is not None or self._scattered(at, end, whole):
            self._put_pages(at, data, pool)
            return
        buffer = self.buffer
        low = at - self.origin
        if buffer is None or self.busy or low < 0 or end - self.origin > len(buffer):
            buffer = self._room(at, end, pool, whole)
            low = at - self.origin
        buffer[low : low + len(data)] = data
        self.fresh.add(at, end)
        self.version += 1

    def _scattered(self, at: int, end: int, whole: bool) -> bool:
        """Whether a buffer for all that is fresh would be large and mostly empty."""
        ranges = self.fresh.ranges
        if whole or not ranges or at == ranges[-1][1] or end - at > MEDIUM:
            return False
        span = max(end, ranges[-1][1]) - min(at, ranges[0][0])
        return span > MEDIUM and (self.buffer is None or len(self.buffer) < LARGE)

    def _put_pages(self, at: int, data: memoryview, pool: Pool) -> None:
        if self.pages is None:
            self._to_pages(pool)
        self._write_pages(at, data, pool)
        self.fresh.add(at, at + len(data))
        self.version += 1
        assert self.pages is not None
        if len(self.pages) > PAGES_AT_MOST:
            self._to_buffer(pool)

    def _write_pages(self, at: int, data: memoryview, pool: Pool) -> None:
        pages = self.pages
        assert pages is not None
        done, total = 0, len(data)
        while done < total:
            number, low = divmod(at + done, PAGE)
            n = min(PAGE - low, total - done)
            page = pages.get(number)
            if page is None:
                page = pages[number] = pool.page()
            page[low : low + n] = data[done : done + n]
            done += n

    def _to_pages(self, pool: Pool) -> None:
        """Take what is fresh out of the buffer."""
        old, origin, busy = self.buffer, self.origin, self.busy
        self.buffer, self.busy, self.pages = None, False, {}
        if old is not None:
            for a, b in self.fresh.ranges:
                self._write_pages(a, old[a - origin : b - origin], pool)
            if not busy:
                pool.give(old)

    def _to_buffer(self, pool: Pool) -> None:
        """So many pages are as large as a buffer."""
        buffer = pool.take(LARGE)
        for a, b in self.fresh.ranges:
            self.copy(a, b, buffer[a:b])
        self._drop_pages(pool)
        self.buffer, self.origin = buffer, 0

    def _drop_pages(self, pool: Pool) -> None:
        if self.pages is not None:
            pool.drop_pages(len(self.pages))
            self.pages = None

    def copy(self, start: int, end: int, into: memoryview) -> None:
        """Bytes [start, end) of the chunk, all of them fresh."""
        if start >= end:
            return
        if self.buffer is not None:
            into[:] = self.buffer[start - self.origin : end - self.origin]
            return
        pages = self.pages
        assert pages is not None
        at = start
        while at < end:
            number, low = divmod(at, PAGE)
            n = min(PAGE - low, end - at)
            into[at - start : at - start + n] = pages[number][low : low + n]
            at += n

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """The bytes that are fresh: (offset in the chunk, bytes), in order."""
        for start, end in self.fresh.ranges:
            if self.buffer is not None:
                yield start, self.buffer[start - self.origin : end - self.origin]
            else:
                data = memoryview(bytearray(end - start))
                self.copy(start, end, data)
                yield start, data

    def _room(self, at: int, end: int, pool: Pool, whole: bool) -> memoryview:
        """A buffer with room for [at, end) and all that is fresh."""
        old, old_origin = self.buffer, self.origin
        ranges = self.fresh.ranges
        low = min(at, ranges[0][0]) & ~4095 if ranges else at & ~4095
        high = max(end, self.fresh.end)
        room = LARGE if whole or high - low > MEDIUM else high - low
        if room == LARGE:
            low = 0
        buffer = pool.take(room)
        if old is not None:
            for a, b in ranges:
                buffer[a - low : b - low] = old[a - old_origin : b - old_origin]
            if not self.busy:
                pool.give(old)
        self.buffer, self.origin, self.busy = buffer, low, False
        return buffer

    def drop_buffer(self, pool: Pool) -> None:
        """What is fresh is stored or void. A busy buffer is its reader's to return."""
        if self.buffer is not None and not self.busy:
            pool.give(self.buffer)
        self.buffer, self.busy = None, False
        self._drop_pages(pool)
        self.fresh = Extents()

    def stored(self, cid: ChunkId, pool: Pool) -> None:
        """The chunk as it shows now is the object `cid`."""
        self.written.extend(self.fresh)
        self.source, self.limit, self.based = cid, LARGE, True
        self.drop_buffer(pool)

    def clip(self, at: int) -> None:
        """Bytes from `at` on are cut off the file."""
        self.fresh.cut(at)
        self.written.cut(at)
        self.limit = min(self.limit, at)
        self.version += 1

    @property
    def ours_bytes(self) -> int:
        """How many bytes of the chunk were written, or shared."""
        ours = self.fresh
        if self.written:
            ours = Extents(*self.written.ranges)
            ours.extend(self.fresh)
        return sum(end - start for start, end in ours.ranges)

    @property
    def held_bytes(self) -> int:
        """Of the pool, for what is fresh."""
        if self.pages is not None:
            return PAGE * len(self.pages)
        return len(self.buffer) if self.buffer is not None else 0

    @property
    def spillable(self) -> bool:
        """Whether storing it gives back what it holds."""
        return bool(self.fresh) and not self.busy

    @property
    def unsettled(self) -> bool:
        """Whether the chunk has to be stored before its id is known."""
        return (
            bool(self.fresh)
            or self.source is None
            or not self.based
            or self.limit < LARGE
        )
