"""Reading: from the store into the caller's buffer, and asking ahead of it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fusefs.errors import Invalid, NoSuchDevice
from fusefs.model.ids import HOLE, ChunkId
from fusefs.store.store import Store
from fusefs.vfs.content import View
from fusefs.vfs.files import File, Files, Handle
from fusefs.vfs.missing import Fetcher, Fetching, Missing
from fusefs.vfs.objects import ZEROS, Objects
from fusefs.vfs.ports import Peers
from fusefs.vfs.siblings import Siblings
from fusefs.vfs.types import Caller

FIRST_WINDOW = 2
"""Chunks asked ahead once reading looks sequential; doubled with each chunk."""
NEAR_BYTES = 1 << 20
"""A read this near to the end of the last is sequential: the kernel's own
read-ahead sends several requests at once, and threads answer them in any order."""


class Reader:
    """Thread-safe. Without unpublished writes a read takes no lock at all."""

    def __init__(
        self,
        files: Files,
        store: Store,
        objects: Objects,
        fetcher: Fetcher,
        peers: Peers,
        siblings: Siblings,
        max_window: int,
    ) -> None:
        self._handles = files.handle
        self._store = store
        self._objects = objects
        self._fetcher = fetcher
        self._peers = peers
        self._siblings = siblings
        self._max_window = max_window

    def read_into(
        self, number: int, offset: int, into: memoryview, caller: Caller
    ) -> int:
        """Fill the buffer from `offset` on; short only at the end of the file.

        Raises: Unreachable, TimedOut, Interrupted; never gives zeros for bytes that
        are not to be had.
        """
        handle = self._handles(number)
        file = handle.file
        fetching: Fetching | None = None
        while True:
            try:
                if file.draft is None:
                    got = self._read(file.view, offset, into)
                else:
                    got = self._read_draft(file, offset, into)
                break
            except Missing as missing:
                fetching = fetching or self._fetcher.begin(caller.cancelled)
                self._wait_for(handle, fetching, missing, offset, len(into))
        if got and -NEAR_BYTES <= offset - handle.next_read <= NEAR_BYTES:
            self._sequential(handle, file.view, offset, got)
        else:
            handle.window = handle.ahead = 0
        handle.next_read = offset + got
        return got

    def _read_draft(self, file: File, offset: int, into: memoryview) -> int:
        with file.lock:
            if file.draft is not None:
                return file.draft.read(offset, into)
        return self._read(file.view, offset, into)

    def _read(self, view: View, offset: int, into: memoryview) -> int:
        total = min(len(into), view.size - offset)
        if total <= 0:
            return 0
        log2 = view.log2
        low = offset & ((1 << log2) - 1)
        if low + total <= 1 << log2:  # within one chunk: nearly always
            part = into if total == len(into) else into[:total]
            self._read_chunk(view.chunk(offset >> log2), low, part)
            return total
        done = 0
        while done < total:
            low = (offset + done) & ((1 << log2) - 1)
            n = min((1 << log2) - low, total - done)
            cid = view.chunk((offset + done) >> log2)
            self._read_chunk(cid, low, into[done : done + n])
            done += n
        return total

    def _read_chunk(self, cid: ChunkId, low: int, part: memoryview) -> None:
        got = self._objects.read(cid, low, part) if cid != HOLE else 0
        if got < len(part):  # a hole, or behind a chunk that the file outgrew
            part[got:] = ZEROS[: len(part) - got]

    # -- the network -----------------------------------------------------------

    def _wait_for(
        self,
        handle: Handle,
        fetching: Fetching,
        missing: Missing,
        offset: int,
        size: int,
    ) -> None:
        """Fetch all that the read needs; who reads a file from its beginning on, or
        those of a directory, asks for what comes next in the same breath, behind it."""
        view = handle.file.view
        index, last = offset >> view.log2, (offset + size - 1) >> view.log2
        ahead: Sequence[ChunkId] = ()
        small = view.count == 1
        if small:
            ahead = self._siblings.ahead(handle.file.ino)
        elif abs(offset - handle.next_read) <= NEAR_BYTES:
            handle.window = max(handle.window, FIRST_WINDOW)
            ahead = self._ahead(handle, view, last)
        if last > index and handle.file.draft is None:
            missing = self._all_missing(view, index, last, missing)
        fetching.bring(missing, ahead, small)

    def _all_missing(
        self, view: View, first: int, last: int, missing: Missing
    ) -> Missing:
        """Of these chunks, when the first of them is not here."""
        try:
            absent = self._store.missing(view.chunks(first, last + 1))
        except Missing as node:
            absent = list(node.cids)
        return Missing(dict.fromkeys((*missing.cids, *absent)))

    def _sequential(self, handle: Handle, view: View, offset: int, got: int) -> None:
        """Grow the window as the reader enters a new chunk."""
        index = (offset + got) >> view.log2
        if index == offset >> view.log2 and handle.window:
            return
        handle.window = min(max(FIRST_WINDOW, handle.window * 2), self._max_window)
        if view.count > 1 and (ahead := self._ahead(handle, view, index)):
            self._peers.prefetch(ahead)

    def _ahead(self, handle: Handle, view: View, index: int) -> Sequence[ChunkId]:
        """Chunks after `index` to prefetch, not asked for yet: many at once, when less
        than half of the window is left."""
        first = max(index + 1, handle.ahead)
        last = min(index + 1 + handle.window, view.count)
        if first >= last or 2 * (first - index - 1) > handle.window:
            return ()
        handle.ahead = last
        try:
            return self._store.missing(view.chunks(first, last))
        except Missing:
            return ()

    # -- holes -----------------------------------------------------------------

    def lseek(self, number: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE by whole chunks. Raises NoSuchDevice (ENXIO)."""
        file = self._handles(number).file
        fetching = self._fetcher.begin()
        while True:
            try:
                with file.lock:
                    return self._seek(file, offset, whence)
            except Missing as missing:
                fetching.bring(missing)

    def _seek(self, file: File, offset: int, whence: int) -> int:
        draft = file.draft
        size = file.view.size if draft is None else draft.size
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise Invalid(f"lseek with whence {whence}")
        if not 0 <= offset < size:
            raise NoSuchDevice("seeking at or past the end")
        log2 = (file.view if draft is None else draft.base).log2
        index = offset >> log2
        found = self._next(file, index, whence == os.SEEK_DATA)
        if found is None or found << log2 >= size:
            if whence == os.SEEK_DATA:
                raise NoSuchDevice("no data from here on")
            return size
        return max(offset, found << log2)

    def _next(self, file: File, index: int, data: bool) -> int | None:
        draft, view = file.draft, file.view
        if draft is None:
            return view.next_data(index) if data else view.next_hole(index)
        if data:
            return draft.next_data(index)
        while draft.chunk_is_data(index):
            index += 1
        return index
