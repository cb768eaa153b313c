"""POSIX by inode number: what a binding calls.

`Vfs` only composes. Who does what:

    inodes      lookup, attributes        tree       names: make, link, move, remove
    opening     open, create, close       reading    read, holes, read-ahead
    writing     write, truncate, flush    ranges     fallocate, copy_file_range
    publish     drafts to versions        draft      unpublished writes of one file
    storing     chunks to objects         recutting  smaller chunks, for databases
    appending   concurrent appends        twins      names given up to what is alike
    commits     transactions              risks      what has to be durable before
    journal     drafts, kept on disk      restoring  those of the worker before
    lockjournal the same for locks        unnamed    the same for files without names
    files       handles, orphans          roots      which data only these name
    shares      and copies, for a moment  coherence  caches, here and in the kernel
    listing     readdir, both forms       background the vfs's own clock
    xattrs      locks    space

Locks, in the order they may be taken: `File.lock`, `Commits.lock` (with it the
namespace's write lock), then leaves (`Files.lock`, the caches' and the pool's).
Nothing waits for the network under any of them.

Every method is thread-safe and raises FsError; anything else is a bug. Permissions
are the kernel's business (default_permissions), the umask too, but for -o acl.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from fusefs.errors import FsError
from fusefs.model import acl
from fusefs.model.ids import Ino
from fusefs.model.tx import Effects
from fusefs.namespace.cache import RowCache
from fusefs.namespace.namespace import Namespace
from fusefs.relief import Relief
from fusefs.store.store import Store
from fusefs.vfs.acls import Acls
from fusefs.vfs.appending import Appends
from fusefs.vfs.attributes import Attributes
from fusefs.vfs.background import Background
from fusefs.vfs.buffers import Pool
from fusefs.vfs.coherence import Coherence
from fusefs.vfs.commits import Commits
from fusefs.vfs.files import Files
from fusefs.vfs.inodes import Inodes
from fusefs.vfs.killpriv import Privileges
from fusefs.vfs.listing import Listings
from fusefs.vfs.lockjournal import LockJournal
from fusefs.vfs.locks import Locks
from fusefs.vfs.missing import Fetcher
from fusefs.vfs.objects import Objects
from fusefs.vfs.opening import Opener
from fusefs.vfs.options import VfsOptions
from fusefs.vfs.ports import Peers
from fusefs.vfs.publish import Publisher
from fusefs.vfs.ranges import Ranges
from fusefs.vfs.reading import Reader
from fusefs.vfs.restoring import restore
from fusefs.vfs.risks import Risks
from fusefs.vfs.roots import live_roots
from fusefs.vfs.siblings import Siblings
from fusefs.vfs.snapshots import Snapshots
from fusefs.vfs.space import SpaceReport
from fusefs.vfs.tree import Tree
from fusefs.vfs.twins import Twins
from fusefs.vfs.types import (
    Attr,
    Buffer,
    Caller,
    DirEntry,
    FileLock,
    Invalidator,
    Opened,
    SetAttr,
    StatFs,
)
from fusefs.vfs.writing import Writer
from fusefs.vfs.xattrs import Xattrs

__all__ = ["Vfs", "VfsOptions"]

log = logging.getLogger(__name__)

_NOBODY = Caller()


class VfsStatistics(msgspec.Struct, frozen=True):
    """Counts of this moment, for `dfs status`."""

    handles: int
    orphans: int
    dirty_files: int
    buffer_bytes: int
    locks: int
    commits: int
    invalidations: int


class Vfs:
    """See the module."""

    def __init__(
        self,
        namespace: Namespace,
        store: Store,
        peers: Peers,
        options: VfsOptions | None = None,
        clock: Callable[[], int] = time.time_ns,
        lock_journal: LockJournal | None = None,
    ) -> None:
        """`lock_journal`: the locks of the worker before, and of this one."""
        options = options or VfsOptions()
        objects, fetcher = Objects(store), Fetcher(peers, options.fetch_timeout_s)
        pool, snapshots = Pool(), Snapshots()
        cache: RowCache[Ino, Attr] = RowCache(options.cached_inodes)
        first = (clock() // 1_000_000) << 16  # above those of an earlier worker
        files = Files(namespace, objects, first, options)
        coherence = Coherence(namespace, files, objects, cache, snapshots)
        risks = Risks(store)
        commits = Commits(namespace, peers, coherence, options, risks)
        self._relief = Relief(namespace, store)
        self._appends = Appends(namespace, commits, store, objects, fetcher)
        publisher = Publisher(
            files, commits, store, objects, fetcher, pool, self._appends, self._relief
        )
        self._appended = restore(
            namespace, files, objects, pool, same_mount=options.same_mount
        )
        publisher.spill(options.dirty_bytes)
        self._storing = publisher.storing
        privileges = Privileges(files, commits, namespace)
        self._store = store
        self._files = files
        self._pool = pool
        self._coherence = coherence
        self._commits = commits
        self._locks = Locks(
            peers if options.locks == "cluster" else None,
            errno.EAGAIN if options.lock_failure == "again" else errno.ENOLCK,
            lock_journal,
        )
        self._writer = Writer(
            files, publisher, privileges, fetcher, store, pool, options, clock
        )
        self._twins = Twins(commits, files)
        self._background = Background(
            files,
            self._writer,
            store,
            self._appends,
            self._twins,
            options.writeback_s,
        )
        self._reader = Reader(
            files,
            store,
            objects,
            fetcher,
            peers,
            Siblings(namespace, store),
            options.read_ahead_chunks,
        )
        self._ranges = Ranges(
            files,
            self._reader,
            self._writer,
            publisher,
            privileges,
            fetcher,
            store,
            pool,
        )
        attributes = Attributes(objects)
        self._inodes = Inodes(
            namespace, files, attributes, cache, commits, self._writer, clock
        )
        self._tree = Tree(files, self._inodes, commits)
        self._opener = Opener(
            namespace,
            files,
            self._inodes,
            self._tree,
            self._writer,
            commits,
            coherence,
            self._locks,
        )
        self._listings = Listings(namespace, files, self._inodes, snapshots)
        self._xattrs = Xattrs(namespace, files, commits, store, objects, clock)
        self._acls = Acls(files, commits, self._inodes, self._writer, self._xattrs)
        self._acl_names = acl.NAMES if options.acl else ()
        self._space = SpaceReport(namespace, store)
        # The two hottest calls go straight through.
        self.getattr: Callable[[Ino], Attr] = self._inodes.attr
        """(ino) -> Attr, unpublished writes included. Raises Stale."""
        self.lookup: Callable[[Ino, bytes], Attr] = self._inodes.lookup
        """(parent, name) -> Attr. Raises NotFound."""
        self._background.start()

    def set_invalidator(self, invalidator: Invalidator) -> None:
        """Who tells the kernel what changed. Call before serving."""
        self._coherence.invalidator = invalidator

    # -- inodes ----------------------------------------------------------------

    def setattr(
        self, ino: Ino, change: SetAttr, caller: Caller, handle: int | None = None
    ) -> Attr:
        """chmod, chown, truncate, utimensat. With a handle a change of size is
        published at its flush, else at once. An empty change drops set-id bits."""
        act = partial(self._inodes.setattr, ino, change, caller, handle)
        # Of sizes publishing knows whether something goes.
        return act() if change.size is not None else self._relief.removing(act)

    def readlink(self, ino: Ino) -> bytes:
        return self._inodes.readlink(ino)

    # -- names -----------------------------------------------------------------

    def symlink(self, parent: Ino, name: bytes, target: bytes, caller: Caller) -> Attr:
        self._store.reserve.require()
        return self._tree.symlink(parent, name, target, caller)

    def mknod(
        self, parent: Ino, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Attr:
        """Any type but a directory; a mode without type is a regular file."""
        self._store.reserve.require()
        return self._tree.mknod(parent, name, mode, rdev, caller)

    def mkdir(self, parent: Ino, name: bytes, mode: int, caller: Caller) -> Attr:
        self._store.reserve.require()
        return self._tree.mkdir(parent, name, mode, caller)

    def link(self, ino: Ino, parent: Ino, name: bytes) -> Attr:
        self._store.reserve.require()
        return self._tree.link(ino, parent, name)

    def unlink(self, parent: Ino, name: bytes, caller: Caller = _NOBODY) -> None:
        self._relief.removing(lambda: self._tree.unlink(parent, name, caller))

    def rmdir(self, parent: Ino, name: bytes, caller: Caller = _NOBODY) -> Ino:
        """Gives what was removed."""
        return self._relief.removing(lambda: self._tree.rmdir(parent, name, caller))

    def rename(
        self,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int = 0,
        caller: Caller = _NOBODY,
    ) -> tuple[Ino, Ino]:
        """Flags of renameat2(2): NOREPLACE (1), EXCHANGE (2). Gives what was moved, and
        what it replaced or was exchanged with (0: nothing)."""
        return self._relief.removing(
            lambda: self._tree.rename(parent, name, new_parent, new_name, flags, caller)
        )

    # -- files -----------------------------------------------------------------

    def create(
        self, parent: Ino, name: bytes, mode: int, flags: int, caller: Caller
    ) -> Opened:
        self._store.reserve.require()
        return self._opener.create(parent, name, mode, flags, caller)

    def tmpfile(self, parent: Ino, mode: int, flags: int, caller: Caller) -> Opened:
        return self._opener.tmpfile(parent, mode, flags, caller)

    def open(
        self, ino: Ino, flags: int, caller: Caller, kill_suid: bool = False
    ) -> Opened:
        return self._opener.open(ino, flags, caller, kill_suid)

    def read(
        self, handle: int, offset: int, size: int, caller: Caller = _NOBODY
    ) -> bytes:
        """At most `size` bytes; fewer only at the end of the file."""
        buffer = bytearray(size)
        got = self._reader.read_into(handle, offset, memoryview(buffer), caller)
        return bytes(buffer) if got == size else bytes(memoryview(buffer)[:got])

    def read_into(
        self, handle: int, offset: int, into: memoryview, caller: Caller = _NOBODY
    ) -> int:
        """The same into the caller's buffer; gives how many bytes."""
        return self._reader.read_into(handle, offset, into, caller)

    def write(
        self,
        handle: int,
        offset: int,
        data: Buffer,
        caller: Caller = _NOBODY,
        kill_suid: bool = False,
        appends: bool | None = None,
        request: int = 0,
    ) -> int:
        """Takes all of `data`, which is not kept. With O_APPEND the kernel gives the
        offset, which is moved to the end if a peer appended meanwhile; `appends`,
        `request`: see Writer.write."""
        return self._writer.write(
            handle, offset, data, caller, kill_suid, appends, request
        )

    def flush(
        self, handle: int, lock_owner: int = 0, caller: Caller | None = None
    ) -> None:
        self._opener.flush(handle, lock_owner, caller)

    def release(self, handle: int) -> None:
        self._opener.release(handle)

    def fsync(
        self, handle: int, datasync: bool = False, caller: Caller | None = None
    ) -> None:
        self._writer.fsync(self._files.handle(handle), caller)

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        self._ranges.fallocate(handle, mode, offset, length)

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE."""
        return self._reader.lseek(handle, offset, whence)

    def may_be_mapped(self, handle: int) -> bool:
        """Whether a program may write to the file through a mapping: there is an open
        for writing that has not ended."""
        return self._files.handle(handle).file.writers > 0

    def copy_file_range(
        self,
        handle_in: int,
        offset_in: int,
        handle_out: int,
        offset_out: int,
        length: int,
        caller: Caller = _NOBODY,
    ) -> int:
        return self._ranges.copy(
            handle_in, offset_in, handle_out, offset_out, length, caller
        )

    # -- directories -----------------------------------------------------------

    def opendir(self, ino: Ino) -> int:
        return self._listings.opendir(ino)

    def readdir(self, handle: int, offset: int) -> Iterator[DirEntry]:
        """Entries after the cookie `offset`, the dots first; 0 rewinds."""
        return self._listings.readdir(handle, offset)

    def readdirplus(self, handle: int, offset: int) -> Iterator[tuple[DirEntry, Attr]]:
        return self._listings.readdirplus(handle, offset)

    def releasedir(self, handle: int) -> None:
        self._listings.releasedir(handle)

    def readdir_ino(self, ino: Ino, cookie: int) -> Iterator[DirEntry]:
        """The same without a handle: the cookie alone says where to go on."""
        return self._listings.readdir_ino(ino, cookie)

    def readdirplus_ino(self, ino: Ino, cookie: int) -> Iterator[tuple[DirEntry, Attr]]:
        return self._listings.readdirplus_ino(ino, cookie)

    def names_given(self) -> Iterator[tuple[Ino, bytes]]:
        """Every name that there is or was, as far as it is remembered."""
        return self._listings.names_given()

    def fsyncdir(self, handle: int = 0, datasync: bool = False) -> None:
        """Every change of names made before is durable here."""
        self._commits.sync()

    # -- the rest --------------------------------------------------------------

    def statfs(self) -> StatFs:
        return self._space.statfs()

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        if name in self._acl_names:
            return self._acls.get(ino, name)
        return self._xattrs.get(ino, name)

    def setxattr(
        self,
        ino: Ino,
        name: bytes,
        value: Buffer,
        flags: int = 0,
        caller: Caller = _NOBODY,
        kill_sgid: bool = False,
    ) -> None:
        """`kill_sgid`: with an access control list that bit goes."""
        self._store.reserve.require()
        if name in self._acl_names:
            self._acls.set(ino, name, bytes(value), kill_sgid, caller)
        else:
            self._xattrs.set(ino, name, bytes(value), flags)

    def listxattr(self, ino: Ino, caller: Caller = _NOBODY) -> list[bytes]:
        """Names; trusted.* for root only."""
        return self._xattrs.list(ino, caller.uid)

    def removexattr(self, ino: Ino, name: bytes, caller: Caller = _NOBODY) -> None:
        part = self._acls if name in self._acl_names else self._xattrs
        self._relief.removing(lambda: part.remove(ino, name))

    def getlk(
        self,
        handle: int,
        owner: int,
        lock: FileLock,
        is_flock: bool = False,
        caller: Caller = _NOBODY,
    ) -> FileLock:
        ino = self._files.handle(handle).file.ino
        return self._locks.test(ino, owner, lock, is_flock, caller.cancelled)

    def setlk(
        self,
        handle: int,
        owner: int,
        lock: FileLock,
        wait: bool,
        is_flock: bool,
        caller: Caller = _NOBODY,
    ) -> None:
        """Blocks if `wait`: call it from a thread that may wait."""
        opened = self._files.handle(handle)
        ino = opened.file.ino
        try:
            if lock.kind != fcntl.F_WRLCK and self._locks.exclude_others(ino):
                self._writer.show(opened, caller)  # for the next holder to read
        except FsError as error:
            if lock.kind != fcntl.F_UNLCK:
                raise
            log.warning("inode %d is unlocked unpublished: %s", ino, error)
        self._locks.change(ino, owner, lock, wait, is_flock, caller.cancelled, handle)

    def record_locked(self) -> list[Ino]:
        """Inodes with record locks, those of an earlier worker included."""
        return self._locks.record_locked()

    def forget(self, ino: Ino) -> None:
        """The kernel dropped its last reference to the inode."""
        file = self._files.forget(ino)
        if file is not None:
            self._writer.publish(file)

    # -- changes from elsewhere ------------------------------------------------

    def forget_effects(self, effects: Effects | None) -> None:
        """A peer's change was applied: our own caches forget what it touched (None:
        everything, changes may have been missed). Waits for nothing."""
        if effects is None:
            self._coherence.forget_everything()
        else:
            self._coherence.forget_remote(effects)

    def tell_kernel(self, effects: Effects | None) -> None:
        """Then the kernel forgets it. May wait for requests under way."""
        if effects is None:
            self._coherence.tell_everything()
            self._twins.settle_soon()
            return
        self._coherence.tell(effects)
        if effects.appends:
            self._appends.merge_soon(effects.appends)
        if effects.twins:
            self._twins.settle_soon()

    # -- life ------------------------------------------------------------------

    def adopt_handle(self, handle: int, ino: Ino, flags: int = 0) -> None:
        """Go on with a handle that an earlier worker gave out: the number says how
        it may be used (`flags` are not needed), so nothing has to be carried over.
        Raises Stale."""
        self._files.adopt(handle, ino)

    def adopt_orphan(self, ino: Ino) -> bool:
        """Go on with an inode that lost its last name under an earlier worker, and that
        the kernel still knows; False: there is no such inode."""
        return self._files.adopt_orphan(ino)

    def has_appended(self, ino: Ino, request: int) -> bool | None:
        """Whether an earlier worker carried out this request to append, without having
        answered it. None: it left no journal of the file."""
        requests = self._appended.get(ino)
        return None if requests is None else request in requests

    def adopt_directory(self, ino: Ino) -> bool:
        """Goes on with a directory that a peer removed and the kernel still knows."""
        return self._files.adopt_directory(ino)

    def renew_leases(self) -> None:
        """Keep garbage collection away from what only unpublished writes name."""
        self._background.renew_leases()

    def live_roots(self) -> Iterator[tuple[bytes, int, int]]:
        """(root, size, chunk_log2) of data that only open files name, for GC, which
        begins with them."""
        self._ranges.shares.begin()
        return live_roots(self._files)

    def late_roots(self) -> Iterator[tuple[bytes, int, int]]:
        """What only open files name since then, once the registers are looked at."""
        return self._ranges.shares.roots()

    def sync(self) -> None:
        """sync(2): everything written before is published and durable."""
        problems = self._writer.publish_older(0)
        self._store.sync_all()
        self._commits.sync()
        if problems:
            raise problems[0]

    def close(self, *, makes_way: bool = False) -> None:
        """Publish what is dirty and stop the threads. The store and the namespace
        stay open: they are the caller's. `makes_way`: for another worker of the mount,
        which gets the other half of a write(2) of which the first is here."""
        self._background.stop()
        self._appends.close()
        self._twins.close()
        self._writer.publish_older(0, but_halves=makes_way)
        self._storing.close()
        self._coherence.close()

    def statistics(self) -> VfsStatistics:
        return VfsStatistics(
            handles=len(self._files),
            orphans=len(self._files.orphans),
            dirty_files=len(self._files.dirty),
            buffer_bytes=self._pool.used_bytes,
            locks=len(self._locks),
            commits=self._commits.count,
            invalidations=self._coherence.invalidations,
        )
