"""Writing: into the draft of the file, with the limits POSIX wants checked first."""

from __future__ import annotations

import logging
import stat
import time
from collections.abc import Callable

from fusefs.errors import (
    BadHandle,
    FsError,
    Invalid,
    IsADirectory,
    NoSpace,
    TimedOut,
    TooBig,
    Unreachable,
    WritesLost,
)
from fusefs.model.ids import Ino
from fusefs.model.manifest import MAX_FILE_SIZE
from fusefs.namespace.types import Inode
from fusefs.store.store import Store
from fusefs.vfs.buffers import PAGE, Pool
from fusefs.vfs.draft import Draft
from fusefs.vfs.files import File, Files, Handle
from fusefs.vfs.killpriv import Privileges
from fusefs.vfs.missing import Cancelled, Fetcher, Missing
from fusefs.vfs.options import VfsOptions
from fusefs.vfs.publish import Publisher
from fusefs.vfs.types import Buffer, Caller

log = logging.getLogger(__name__)

Clock = Callable[[], int]
WHOLE_BYTES = 128 << 10
"""The least that any kernel sends at once of a longer write(2)."""
SPILL_TO = 0.75
"""Share of the budget that is left in use after running out of buffers."""


class Writer:
    """Thread-safe. A write takes the file's lock once, and stores whole chunks
    after letting go of it."""

    def __init__(
        self,
        files: Files,
        publisher: Publisher,
        privileges: Privileges,
        fetcher: Fetcher,
        store: Store,
        pool: Pool,
        options: VfsOptions,
        clock: Clock,
    ) -> None:
        self._files = files
        self._publisher = publisher
        self._privileges = privileges
        self._fetcher = fetcher
        self._store = store
        self._pool = pool
        self._options = options
        self._clock = clock

    def writable(self, number: int) -> Handle:
        handle = self._files.handle(number)
        if not handle.writable:
            raise BadHandle("the file is not open for writing")
        return handle

    def write(
        self,
        number: int,
        offset: int,
        data: Buffer,
        caller: Caller,
        kill_suid: bool = False,
        appends: bool | None = None,
        request: int = 0,
    ) -> int:
        """Take the bytes in; all readers on this node see them when it returns.

        `appends`: they belong at the end. O_APPEND may have been set or cleared since
        the open, and dirty pages of a mapping stay where they are whatever handle they
        come through; None: the binding cannot tell. `request`: what the next worker
        will be asked for if this one is killed before it answers; 0: nothing.

        Raises: NoSpace, of what belongs at the end before a byte is accepted; TooBig
        (EFBIG) past 8 EiB.
        """
        handle = self.writable(number)
        part = data if isinstance(data, memoryview) else memoryview(data)
        n = len(part)
        self._check_range(offset, n)
        self._store.require_space(n + self._pool.used_bytes)
        if self._pool.used_bytes >= self._options.dirty_bytes:
            budget = int(self._options.dirty_bytes * SPILL_TO)
            self._publisher.spill(budget, caller.cancelled)
        file = handle.file
        to_end = handle.appends if appends is None else appends
        now = self._clock()
        with file.lock:
            draft = file.draft or self._publisher.drafts.begin(
                file, now, appends=to_end
            )
            if to_end:
                cut = _may_be_cut(offset, n)
                by = writer_of(handle, caller)
                file.half_written = (by, time.monotonic()) if cut else None
            if not to_end:
                draft.appends = False
            elif offset != draft.size and (
                appends or offset > draft.size or offset == file.grown_from
            ):  # a peer's append moved the end, and the kernel did not know yet
                file.grown_from, file.behind = offset + n, True
                offset = draft.size
            draft.mtime_ns = draft.ctime_ns = now
            full = draft.write(offset, part)
            kept = draft.log
            if kept is not None and appends and request:
                kept.appended(draft, part, request)
            elif kept is not None:
                kept.wrote(draft, offset, part, () if to_end else full)
        self._privileges.written(file, kill_suid)
        for index, patch in full:
            try:
                self._publisher.storing.seal(file, draft, index, patch)
            except NoSpace:
                if not to_end:  # again, it would come to the same place
                    raise
        return n

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0:
            raise Invalid("negative offset or length")
        if offset + length > MAX_FILE_SIZE:
            raise TooBig("files end before 8 EiB")

    def edit(
        self,
        file: File,
        change: Callable[[Draft], None],
        caller: Caller | None = None,
    ) -> Draft | None:
        """Apply a change to the file's draft, fetching what it needs to know. Gives the
        draft if there was none before."""
        fetching = self._fetcher.begin(caller.cancelled if caller else None)
        began: Draft | None = None
        while True:
            now = self._clock()
            try:
                with file.lock:
                    draft = file.draft
                    if draft is None:
                        draft = began = self._publisher.drafts.begin(file, now)
                    draft.mtime_ns = draft.ctime_ns = now
                    change(draft)
                    return began
            except Missing as missing:
                fetching.bring(missing)

    def kill_suid(self, file: File) -> None:
        """The file was emptied by somebody without CAP_FSETID."""
        self._privileges.written(file, True)

    # -- truncate --------------------------------------------------------------

    def truncate(
        self, ino: Ino, size: int, number: int | None, caller: Caller, kill_suid: bool
    ) -> None:
        """truncate(2) or, with a handle, ftruncate(2). Without a handle the change
        is published at once, and peers are waited for: no flush will follow."""
        if size < 0:
            raise Invalid("negative size")
        if size > MAX_FILE_SIZE:
            raise TooBig("files end before 8 EiB")
        check_regular(self._files.need_row(ino))
        handle = self._files.handle_or_none(number) if number is not None else None
        file = handle.file if handle is not None else self._files.acquire(ino)
        try:
            if handle is None and size:
                self._publish_before(file, caller.cancelled)
            began = self.edit(file, lambda draft: draft.truncate(size), caller)
            self._privileges.written(file, kill_suid)
            if handle is None:
                self._publisher.publish_or_undo(file, began, caller.cancelled)
                self._publisher.barrier(file)
        finally:
            if handle is None and self._files.release(file):
                self._publisher.publish(file, caller.cancelled)

    def _publish_before(self, file: File, cancelled: Cancelled) -> None:
        """What was written through descriptors: then a truncate that fails is undone
        alone. It may be what is in the way that is cut off."""
        try:
            self._publisher.publish(file, cancelled)
        except (NoSpace, Unreachable, TimedOut) as error:
            log.debug(
                "inode %d is truncated with what was written: %s", file.ino, error
            )

    # -- flushing --------------------------------------------------------------

    def flush(self, handle: Handle, caller: Caller | None = None) -> None:
        """close(2): near peers show what was written. Free if nothing was."""
        if not handle.writable:
            return
        self.show(handle, caller)
        if handle.lost:
            _say_lost(handle)

    def show(self, handle: Handle, caller: Caller | None = None) -> None:
        """Near peers show what was written, through whatever descriptor."""
        file = handle.file
        if file.draft is not None:
            cancelled = caller.cancelled if caller else None
            self._publisher.publish(file, cancelled, writer_of(handle, caller))
        if file.seq > file.waited:
            self._publisher.barrier(file)

    def fsync(self, handle: Handle, caller: Caller | None = None) -> None:
        cancelled = caller.cancelled if caller else None
        self._publisher.sync(handle.file, cancelled, writer_of(handle, caller))
        self._publisher.barrier(handle.file)
        if handle.lost:
            _say_lost(handle)

    def publish(self, file: File) -> None:
        """What was written so far, without waiting for peers."""
        self._publisher.publish(file)

    def publish_or_undo(self, file: File, began: Draft | None) -> None:
        """What an open that only reads has cut off, without waiting for peers."""
        self._publisher.publish_or_undo(file, began)

    def publish_older(self, age_s: float, *, but_halves: bool = False) -> list[FsError]:
        """Publish files whose writes have waited that long; what went wrong.
        `but_halves`: what may be a piece of a write(2) is left to the next worker."""
        problems: list[FsError] = []
        limit = time.monotonic() - age_s
        for file in list(self._files.dirty.values()):
            draft = file.draft
            if draft is not None and draft.since_s <= limit:
                if but_halves and _is_kept_half(file, draft):
                    continue
                try:
                    self._publisher.publish(file)
                except FsError as error:
                    problems.append(error)
                except Exception:  # a bug with one must not keep the others
                    log.exception("publishing inode %d failed", file.ino)
                    problems.append(FsError(f"inode {file.ino}: a bug"))
        return problems


def _say_lost(handle: Handle) -> None:
    """Once: the next fsync or close is about later writes."""
    handle.lost = False
    raise WritesLost(f"inode {handle.file.ino}: the worker died with writes")


def check_regular(row: Inode) -> None:
    """Only regular files have data to cut. Raises IsADirectory, Invalid."""
    if stat.S_ISDIR(row.mode):
        raise IsADirectory("a directory has no data")
    if not stat.S_ISREG(row.mode):
        raise Invalid("not a regular file")


def writer_of(handle: Handle, caller: Caller | None) -> int:
    """Tells who is in the middle of a write(2) from others: a thread. Several may share
    a descriptor, and a child closes its parent's. Where the binding does not tell it is
    the descriptor."""
    return caller.pid if caller is not None and caller.pid else handle.number


def _is_kept_half(file: File, draft: Draft) -> bool:
    half = file.half_written is not None and draft.appends
    return half and draft.log is not None and draft.log.is_whole


def _may_be_cut(offset: int, length: int) -> bool:
    """Whether it may be a piece of a write(2). The kernel cuts at the end of a page (of
    where it thinks the end is): of the first one, if it does not know the beginning of
    that, else when it has as much as it sends at once."""
    ends = not (offset + length) % PAGE
    return ends and (offset % PAGE != 0 or length >= WHOLE_BYTES)
