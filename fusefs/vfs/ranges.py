"""fallocate and copy_file_range: changes of data that move few or no bytes."""

from __future__ import annotations

from fusefs.errors import Invalid, NotSupported, TooBig
from fusefs.model.ids import ChunkId
from fusefs.model.manifest import MAX_FILE_SIZE
from fusefs.store.store import Store
from fusefs.vfs.buffers import LARGE, Pool
from fusefs.vfs.content import View
from fusefs.vfs.draft import Draft
from fusefs.vfs.files import File, Files
from fusefs.vfs.killpriv import Privileges
from fusefs.vfs.missing import Fetcher, Missing
from fusefs.vfs.publish import Publisher
from fusefs.vfs.reading import Reader
from fusefs.vfs.shares import Shares
from fusefs.vfs.types import Caller
from fusefs.vfs.writing import Writer

# linux/falloc.h
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16

MAX_BYTES_COPIED = 16 << 20
"""Bytes one request copies when chunks cannot be shared: a caller comes back for
the rest, and can be interrupted in between."""
MAX_SHARED = 1 << 16
"""Chunks that one request shares; the list of those of a hole may be endless."""
MAX_PATCHES = 1 << 16
"""Shared chunks kept unpublished (64 GiB of copies, ~20 MiB of memory)."""


class _Moved(Exception):
    """The target is not any more what was looked at."""


class Ranges:
    """Thread-safe; locks one file at a time."""

    def __init__(
        self,
        files: Files,
        reader: Reader,
        writer: Writer,
        publisher: Publisher,
        privileges: Privileges,
        fetcher: Fetcher,
        store: Store,
        pool: Pool,
    ) -> None:
        self._files = files
        self._reader = reader
        self._writer = writer
        self._publisher = publisher
        self._privileges = privileges
        self._fetcher = fetcher
        self._store = store
        self._pool = pool
        self.shares = Shares()

    # -- fallocate -------------------------------------------------------------

    def fallocate(self, number: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2). Allocating reserves nothing, but fails when the space is not
        there now; collapse, insert and unshare are EOPNOTSUPP."""
        file = self._writer.writable(number).file
        if offset < 0 or length <= 0:
            raise Invalid("fallocate of an empty or negative range")
        end = offset + length
        if end > MAX_FILE_SIZE:
            raise TooBig("files end before 8 EiB")
        if mode in (0, KEEP_SIZE):
            self._allocate(file, end, bool(mode & KEEP_SIZE))
        elif mode == PUNCH_HOLE | KEEP_SIZE:
            self._writer.edit(file, lambda draft: draft.zero(offset, end))
        elif mode in (ZERO_RANGE, ZERO_RANGE | KEEP_SIZE):
            self._zero(file, offset, end, bool(mode & KEEP_SIZE))
        else:
            raise NotSupported(f"fallocate mode {mode:#x}")
        self._privileges.written(file, False)

    def _allocate(self, file: File, end: int, keep_size: bool) -> None:
        size = file.draft.size if file.draft is not None else file.view.size
        self._store.require_space(max(0, end - size))
        to = 0 if keep_size else end  # moves mtime and ctime in any case
        self._writer.edit(file, lambda draft: _grow(draft, to))

    def _zero(self, file: File, offset: int, end: int, keep_size: bool) -> None:
        def change(draft: Draft) -> None:
            draft.zero(offset, end)
            if not keep_size:
                _grow(draft, end)

        self._writer.edit(file, change)

    # -- copy_file_range -------------------------------------------------------

    def copy(
        self,
        number_in: int,
        offset_in: int,
        number_out: int,
        offset_out: int,
        length: int,
        caller: Caller,
    ) -> int:
        """Copy as many bytes as it can at once; 0 at the end of the source. To where
        it is told: what O_APPEND says the kernel has looked at.

        Chunks that lie alike in both files are shared: no byte moves, and those
        that are not on this disk need not come.
        """
        source = self._files.handle(number_in).file
        target = self._writer.writable(number_out).file
        self._publisher.publish(source, caller.cancelled)
        view, size = _readable(source)
        n = min(length, size - offset_in)
        if offset_in < 0 or offset_out < 0 or length < 0:
            raise Invalid("negative offset or length")
        if n <= 0:
            return 0
        if offset_out + n > MAX_FILE_SIZE:
            raise TooBig("files end before 8 EiB")
        if source is target and abs(offset_in - offset_out) < n:
            raise Invalid("the ranges overlap")
        n_bytes = min(n, MAX_BYTES_COPIED)
        if view is None:
            return self._copy(
                number_in, offset_in, number_out, offset_out, n_bytes, caller
            )
        shared = 0
        with self.shares.reading((view.root, view.size, view.log2)):
            if source.view is view:
                shared = self._share(view, offset_in, target, offset_out, n, caller)
        if shared:
            self._privileges.written(target, False)
            return shared
        mask = (1 << view.log2) - 1
        n = n_bytes
        if (offset_in - offset_out) & mask == 0 and offset_in & mask:
            n = min(n, mask + 1 - (offset_in & mask))  # up to where sharing begins
        return self._copy(number_in, offset_in, number_out, offset_out, n, caller)

    def _share(
        self,
        view: View,
        offset_in: int,
        target: File,
        offset_out: int,
        n: int,
        caller: Caller,
    ) -> int:
        """Share the whole chunks at the start of the range; gives their bytes."""
        draft = target.draft
        log2 = draft.base.log2 if draft is not None else target.view.log2
        mask = (1 << log2) - 1
        if view.log2 != log2 or offset_in & mask or offset_out & mask:
            return 0
        size = draft.size if draft is not None else target.view.size
        n = min(n, MAX_SHARED << log2)
        to_end = offset_in + n == view.size and offset_out + n >= size
        count = (n + mask if to_end else n) >> log2
        if not count:
            return 0
        chunks = self._chunks(view, offset_in >> log2, count, caller)
        first, end = offset_out >> log2, offset_out + min(n, count << log2)

        def change(draft: Draft) -> None:
            if draft.base.log2 != log2 or (to_end and draft.size > end):
                raise _Moved  # a peer published meanwhile: copy bytes after all
            with self.shares.noting(chunks):
                draft.share(first, chunks)
            self._publisher.storing.note_unsynced(target, chunks)
            _grow(draft, end)

        try:
            self._writer.edit(target, change, caller)
        except _Moved:
            return 0
        if target.draft is not None and len(target.draft.patches) > MAX_PATCHES:
            self._publisher.publish(target, caller.cancelled)
        return end - offset_out

    def _chunks(
        self, view: View, first: int, count: int, caller: Caller
    ) -> list[ChunkId]:
        fetching = self._fetcher.begin(caller.cancelled)
        while True:
            try:
                return view.chunks(first, first + count)
            except Missing as missing:
                fetching.bring(missing)

    def _copy(
        self,
        number_in: int,
        offset_in: int,
        number_out: int,
        offset_out: int,
        n: int,
        caller: Caller,
    ) -> int:
        buffer = self._pool.take(LARGE)
        done = 0
        try:
            while done < n:
                part = buffer[: min(LARGE, n - done)]
                got = self._reader.read_into(number_in, offset_in + done, part, caller)
                if not got:
                    break
                self._writer.write(
                    number_out, offset_out + done, part[:got], caller, appends=False
                )
                done += got
        finally:
            self._pool.give(buffer)
        return done


def _readable(source: File) -> tuple[View | None, int]:
    """The version a copy reads, and its size; no version where the file has unpublished
    writes all the same, as one without a name has."""
    with source.lock:
        if source.draft is not None:
            return None, source.draft.size
        return source.view, source.view.size


def _grow(draft: Draft, size: int) -> None:
    if size > draft.size:
        draft.truncate(size)
