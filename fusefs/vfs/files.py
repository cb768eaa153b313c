"""Open files: one `File` per inode, any number of handles on it, and orphans.

A `File` lives from the first open to the last release. An orphan is an inode
without a name that somebody here still uses: unlinked while open (or known to the
kernel), or made by O_TMPFILE. Its last row is kept in memory, and beside it for the
next worker only (unnamed.py), so it is seen by no listing and no peer.

Locks: `File.lock` covers the file's draft; reading this disk and committing are
allowed under it, waiting for peers is not. `Files.lock` is a leaf: under it only
the namespace is read; it orders refreshes of what files show against each other.
"""

from __future__ import annotations

import os
import stat
import threading
from copy import copy
from typing import TypeVar

import msgspec

from fusefs.errors import BadHandle, Stale
from fusefs.model.ids import ChunkId, Ino, Seq
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.types import FLAG_LINKABLE, Inode
from fusefs.vfs.content import View
from fusefs.vfs.draft import Draft
from fusefs.vfs.journal import Journal
from fusefs.vfs.objects import Objects
from fusefs.vfs.options import VfsOptions
from fusefs.vfs.types import Attr, Permissions
from fusefs.vfs.unnamed import Kept, Unnamed

HANDLE_FLAG_BITS = 4
_WRITES, _READS, _APPENDS = 1, 2, 4


class File:
    """What this node knows of an inode in use."""

    __slots__ = (
        "behind",
        "capability",
        "draft",
        "grown_from",
        "half_written",
        "ino",
        "lock",
        "overflows",
        "refs",
        "row",
        "seq",
        "synced",
        "uncommitted",
        "unmerged",
        "unsynced",
        "view",
        "waited",
        "writers",
    )

    def __init__(self, ino: Ino, row: Inode, view: View) -> None:
        self.ino = ino
        self.lock = threading.Lock()  # draft and its patches; never across a fetch
        self.row = row
        self.view = view
        """The published version; replaced as a whole, read without the lock."""
        self.draft: Draft | None = None
        self.refs = 0
        self.writers = 0
        """Handles that may write."""
        self.behind = False
        """A peer's change was not shown to the kernel because of the draft."""
        self.grown_from = -1
        """Where the kernel may think the end is: the size before a peer appended."""
        self.seq = Seq(0)
        """Our last transaction with this file's data; `waited`: peers show it."""
        self.waited = Seq(0)
        self.synced = False
        """Everything but `unsynced` is durable; before the first fsync: unknown."""
        self.half_written: tuple[int, float] | None = None
        """Who made an append that may be the first part of a write(2) (`writer_of`),
        and when."""
        self.unmerged = False
        """What peers appended could not be had when it was tried last."""
        self.uncommitted: set[ChunkId] = set()
        """Stored since the last transaction about the file."""
        self.unsynced: set[ChunkId] = set()
        self.overflows = 0
        """How often `unsynced` was more than is remembered."""
        self.capability = True
        """It may have security.capability, which a write has to remove."""


class Handle:
    """One open. `number` alone says how it may be used (see `Files.adopt`)."""

    __slots__ = (
        "ahead",
        "appends",
        "file",
        "lost",
        "next_read",
        "number",
        "window",
        "writable",
    )

    def __init__(self, number: int, file: File) -> None:
        self.number = number
        self.file = file
        self.writable = bool(number & _WRITES)
        self.appends = bool(number & _APPENDS)
        """O_APPEND: writes go to the end, wherever a peer has moved it."""
        self.lost = False
        """Writes through it went with a worker that died; the next fsync says so."""
        self.next_read = 0
        """Where a sequential reader goes on; `window` chunks are asked `ahead`."""
        self.window = 0
        self.ahead = 0


Shown = TypeVar("Shown", Inode, Attr)


def permitted(row: Shown, given: Permissions) -> Shown:
    """The row, or what stat shows of it, with the mode and owner that were given."""
    return row._replace(
        mode=row.mode if given.mode is None else given.mode,
        uid=row.uid if given.uid is None else given.uid,
        gid=row.gid if given.gid is None else given.gid,
    )


class Orphan(msgspec.Struct):
    row: Inode
    xattrs: dict[bytes, bytes] | None = None
    """Read from the namespace when first asked for: registers outlive names."""
    forgotten: bool = False
    """The kernel has no reference any more."""
    undecided: int = 0
    """The thread with a transaction that makes it one, or gives it a name: until that
    ends the row stays as it is, and the namespace is not asked."""
    moved: bool = False
    """Another thread heard of a change of a peer meanwhile."""

    @property
    def linkable(self) -> bool:
        return bool(self.row.flags & FLAG_LINKABLE)


class Files:
    """The table of open files, handles and orphans. Thread-safe."""

    def __init__(
        self,
        namespace: Namespace,
        objects: Objects,
        first_handle: int,
        options: VfsOptions,
    ) -> None:
        self.lock = threading.Lock()  # see the module
        self._namespace = namespace
        self._objects = objects
        self._next_handle = first_handle
        self._kernel_refs = options.kernel_refs
        self._chunk_log2 = options.chunk_log2
        self._files: dict[Ino, File] = {}
        self._handles: dict[int, Handle] = {}
        self.orphans: dict[Ino, Orphan] = {}
        self.dirty: dict[Ino, File] = {}
        """Files with a draft, the oldest first."""
        first = (first_handle + 1) << HANDLE_FLAG_BITS
        self.journal = Journal(options.journal, options.unfinished, first)
        self._unnamed = Unnamed(options.unnamed, same_mount=options.same_mount)
        self._keeping = threading.Lock()  # the file of `_unnamed`; before `lock`
        self.handle_or_none = self._handles.get
        self.get = self._files.get

    # -- rows ------------------------------------------------------------------

    def row(self, ino: Ino) -> Inode | None:
        """The inode as it is now, named or not."""
        orphan = self.orphans.get(ino)
        if orphan is not None:
            return orphan.row
        row = self._namespace.inode(ino)
        if row is None:  # its last name may have gone between the two looks
            orphan = self.orphans.get(ino)
            return orphan.row if orphan is not None else None
        return row

    def need_row(self, ino: Ino) -> Inode:
        row = self.row(ino)
        if row is None:
            raise Stale(f"inode {ino} is gone")
        return row

    def view_of(self, row: Inode) -> View:
        """The data of a row. A file without data gets the configured chunk size."""
        if not row.size and not row.root:
            return View(0, b"", self._chunk_log2, self._objects.node)
        return View.of(row, self._objects.node)

    # -- files and handles -----------------------------------------------------

    def acquire(self, ino: Ino) -> File:
        """The file of an inode, kept until `release`. Raises Stale."""
        with self.lock:
            file = self._files.get(ino)
            if file is None:
                row = self.need_row(ino)
                file = self._files[ino] = File(ino, row, self.view_of(row))
            file.refs += 1
            return file

    def release(self, file: File) -> bool:
        """The counterpart of `acquire`. A draft, or an orphan, keeps the file; True:
        nobody uses it, and there is a draft to publish."""
        with self.lock:
            file.refs -= 1
            self._drop_if_unused(file)
            return not file.refs and file.draft is not None

    def published(self, file: File) -> None:
        """The draft is gone; perhaps it was all that kept the file."""
        if not file.refs:
            with self.lock:
                self._drop_if_unused(file)

    def _drop_if_unused(self, file: File) -> None:
        if file.refs or file.draft is not None:
            return
        orphan = self.orphans.get(file.ino)
        if orphan is not None:
            if self._kernel_refs and not orphan.forgotten:
                return
            del self.orphans[file.ino]
        self._files.pop(file.ino, None)

    def open(self, file: File, flags: int) -> Handle:
        """A handle on an acquired file; it takes the reference over."""
        mode = flags & os.O_ACCMODE
        bits = _READS if mode != os.O_WRONLY else 0
        bits |= _WRITES if mode != os.O_RDONLY else 0
        bits |= _APPENDS if flags & os.O_APPEND else 0
        with self.lock:
            self._next_handle += 1
            number = self._next_handle << HANDLE_FLAG_BITS | bits
            handle = self._handles[number] = Handle(number, file)
            file.writers += handle.writable
        return handle

    def adopt(self, number: int, ino: Ino) -> Handle:
        """A handle that another worker gave out: its number says what it may do. An
        unlinked file is an orphan again, with what was published of it."""
        self.adopt_orphan(ino)
        file = self.acquire(ino)
        with self.lock:
            known = self._handles.get(number)
            if known is None:
                known = self._handles[number] = Handle(number, file)
                file.writers += known.writable
                if file.draft is not None:
                    file.draft.inherited = False
                known.lost = known.writable and self.journal.marks.lost(ino, number)
                return known
        self.release(file)
        return known

    def number(self) -> int:
        """A handle number without a file (directories)."""
        with self.lock:
            self._next_handle += 1
            return self._next_handle << HANDLE_FLAG_BITS

    def handle(self, number: int) -> Handle:
        handle = self._handles.get(number)
        if handle is None:
            raise BadHandle(f"handle {number} is not open")
        return handle

    def close(self, number: int) -> Handle | None:
        """Forget a handle; the caller releases its file."""
        handle = self._handles.pop(number, None)
        if handle is not None and handle.writable:
            with self.lock:
                handle.file.writers -= 1
        return handle

    def opened(self) -> list[File]:
        with self.lock:
            return list(self._files.values())

    def __len__(self) -> int:
        return len(self._handles)

    # -- orphans ---------------------------------------------------------------

    def orphan(
        self,
        row: Inode,
        *,
        born: bool = False,
        undecided: bool = False,
    ) -> bool:
        """Keep an inode that loses its last name, or is `born` without one, if
        somebody may still use it."""
        with self.lock:
            if row.ino in self.orphans:
                return True
            if not self._kernel_refs and not born and row.ino not in self._files:
                return False
            row = row._replace(nlink=0)
            decider = threading.get_ident() if undecided else 0
            self.orphans[row.ino] = Orphan(row, undecided=decider)
            return True

    def unorphan(self, ino: Ino) -> None:
        """It has a name (again)."""
        with self.lock:
            self.orphans.pop(ino, None)

    def touch_orphan(self, ino: Ino, now_ns: int) -> None:
        """Its ctime is now."""
        with self.lock:
            orphan = self.orphans.get(ino)
            if orphan is not None:
                row = orphan.row
                orphan.row = row._replace(ctime_ns=max(row.ctime_ns, now_ns))

    def undecided(self, ino: Ino, now: bool) -> bool:
        """See `Orphan.undecided`. True: what the namespace says has to be looked at."""
        with self.lock:
            orphan = self.orphans.get(ino)
            if orphan is None:
                return False
            orphan.undecided = threading.get_ident() if now else 0
            moved, orphan.moved = orphan.moved and not now, False
            return moved

    def is_void(self, file: File, orphan: Orphan) -> bool:
        """Whether nobody can get at an inode without a name any more."""
        if file.refs:
            return False
        if self._kernel_refs:
            return orphan.forgotten
        return file.draft is None or not file.draft.inherited

    def adopt_orphan(self, ino: Ino) -> bool:
        """The kernel knows an inode that lost its last name before this worker began:
        it is an orphan again. False: it is not known at all."""
        if self.row(ino) is not None:
            return True
        unlinked, kept = self._namespace.unlinked(ino), self._unnamed.left.get(ino)
        if unlinked is None and kept is not None:  # all have forgotten the delete
            unlinked = kept.row
        if unlinked is None or not self.orphan(unlinked, born=True):
            return False
        if kept is not None and kept.attributes is not None:
            self.orphans[ino].xattrs = copy(kept.attributes)
        return True

    def keep_orphans(self) -> bool:
        """Now and then, at the end, and when nothing else tells the next worker: those
        that are open. False: it would not find them as they are."""
        with self._keeping:
            with self.lock:
                open_ = {
                    ino: Kept(orphan.row, copy(orphan.xattrs))
                    for ino, orphan in self.orphans.items()
                    if ino in self._files
                }
            return self._unnamed.keep(open_)

    def without_name(self) -> list[Inode]:
        """All that has none and is in use here, or was under the worker before."""
        orphans = list(self.orphans.values())
        left = [kept.row for kept in self._unnamed.left.values()]
        return [*left, *(orphan.row for orphan in orphans)]

    def adopt_directory(self, ino: Ino) -> bool:
        """The same of a directory that a peer removed: who is in it stays there."""
        if self._namespace.inode(ino) is not None:
            return False
        unlinked = self._namespace.unlinked(ino)
        if unlinked is None or not stat.S_ISDIR(unlinked.mode):
            return False
        self.orphan(unlinked, born=True)
        if self._namespace.inode(ino) is not None:  # it came back this moment
            self.unorphan(ino)
        return True

    def forget(self, ino: Ino) -> File | None:
        """The kernel dropped its last reference. Gives the file if it has a draft,
        which is void now."""
        self._unnamed.left.pop(ino, None)
        if ino not in self.orphans:
            return None
        with self.lock:
            orphan = self.orphans.get(ino)
            if orphan is None:
                return None
            orphan.forgotten = True
            file = self._files.get(ino)
            if file is None:
                del self.orphans[ino]
                return None
            self._drop_if_unused(file)
            return file if file.draft is not None else None

    # -- following the namespace -----------------------------------------------

    def refresh(self, ino: Ino) -> bool:
        """Bring an open file to what the namespace says now. An unpublished draft
        keeps the data; a row that is gone makes an orphan of the file, and one that
        came back makes it a file again: then it gives True."""
        with self.lock:  # also before looking: somebody may be opening it
            file, orphan = self._files.get(ino), self.orphans.get(ino)
            if file is None and orphan is None:
                return False
            if orphan is not None and orphan.undecided:
                orphan.moved |= orphan.undecided != threading.get_ident()
                return False
            row = self._namespace.inode(ino)
            if row is None:
                if orphan is None and file is not None:
                    self.orphans[ino] = Orphan(file.row._replace(nlink=0))
                return False
            self.orphans.pop(ino, None)
            if file is None:
                return orphan is not None
            file.row = row
            if file.draft is None and not file.view.shows(row):
                file.grown_from = file.view.size
                file.view = self.view_of(row)
            return orphan is not None
