"""Attributes of inodes: shown from a cache, changed by the rules of chmod, chown
and utimensat. Who may change them the kernel has decided already."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable

from fusefs.errors import Invalid, NameTooLong, NotADirectory, NotFound, ReadOnly, Stale
from fusefs.model.ids import NAME_MAX, Ino
from fusefs.namespace.cache import RowCache
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.transaction import Transaction
from fusefs.namespace.types import Inode
from fusefs.vfs.attributes import Attributes
from fusefs.vfs.commits import Commits
from fusefs.vfs.files import Files, permitted
from fusefs.vfs.killpriv import CAPABILITY, without_set_id
from fusefs.vfs.types import (
    EARLIEST_NS,
    LATEST_NS,
    NOW,
    Attr,
    Caller,
    Permissions,
    SetAttr,
)
from fusefs.vfs.writing import Writer

LOOKS, LOOK_AGAIN_S = 20, 0.0005
"""A commit tells the caches within microseconds; a busy machine may take longer."""


class Inodes:
    """Thread-safe. A hit costs two dict lookups and no lock."""

    def __init__(
        self,
        namespace: Namespace,
        files: Files,
        attributes: Attributes,
        cache: RowCache[Ino, Attr],
        commits: Commits,
        writer: Writer,
        clock: Callable[[], int],
    ) -> None:
        self._namespace = namespace
        self._files = files
        self._dirty = files.dirty
        self._attributes = attributes
        self._cache = cache
        self._cached = cache.get
        self._entry = namespace.entry
        self._commits = commits
        self._writer = writer
        self._clock = clock

    # -- looking ---------------------------------------------------------------

    def lookup(self, parent: Ino, name: bytes) -> Attr:
        entry = self._entry(parent, name)
        if entry is None:
            return self._unusual(parent, name)
        try:
            return self.attr(entry.ino)
        except Stale:
            return self._look_again(parent, name)

    def _look_again(self, parent: Ino, name: bytes) -> Attr:
        """The name was removed or replaced between two looks. One that is replaced
        is never missing: wait until the change has reached every cache."""
        for _ in range(LOOKS):
            time.sleep(LOOK_AGAIN_S)
            entry = self._entry(parent, name)
            if entry is None:
                break
            try:
                return self.attr(entry.ino)
            except Stale:
                continue
        raise NotFound("removed this moment")

    def _unusual(self, parent: Ino, name: bytes) -> Attr:
        """The dots (asked for by NFS export), or the reason why nothing is there."""
        if name == b".":
            return self.attr(parent)
        if name == b"..":
            return self.attr(Ino(self._files.need_row(parent).parent))
        if len(name) > NAME_MAX:
            raise NameTooLong(f"a name of {len(name)} bytes")
        if not stat.S_ISDIR(self.attr(parent).mode):
            raise NotADirectory("not a directory")
        raise NotFound(repr(name))

    def attr(self, ino: Ino) -> Attr:
        """What stat shows, unpublished writes included. Raises Stale.

        Looks for writes first: those that are published while it looks are then in
        the row, or were found."""
        file = self._dirty.get(ino)
        draft = file.draft if file is not None else None
        attr = self._cached(ino)
        if attr is None:
            attr = self._load(ino)
        if file is None or draft is None:
            return attr
        shown = self._attributes.with_draft(attr, draft, file.row)
        # One that was published meanwhile is empty, and the row perhaps of before.
        return shown if file.draft is draft else self.attr(ino)

    def _load(self, ino: Ino) -> Attr:
        generation = self._cache.generation
        attr = self._attributes.of(self._files.need_row(ino))
        if attr.nlink:  # orphans change without telling the cache
            self._cache.offer(ino, attr, generation)
        return attr

    def offer(self, row: Inode, generation: int) -> Attr:
        """Attributes of a row that a listing read, kept for the stats that follow."""
        attr = self._cached(row.ino)
        if attr is None:
            attr = self._attributes.of(row)
            self._cache.offer(row.ino, attr, generation)
        return attr

    @property
    def generation(self) -> int:
        return self._cache.generation

    def readlink(self, ino: Ino) -> bytes:
        row = self._files.need_row(ino)
        if not stat.S_ISLNK(row.mode):
            raise Invalid("not a symbolic link")
        return row.target

    # -- changing --------------------------------------------------------------

    def setattr(
        self, ino: Ino, change: SetAttr, caller: Caller, number: int | None
    ) -> Attr:
        """chmod, chown, truncate and utimensat, any of them at once."""
        if self._commits.options.read_only:
            raise ReadOnly("the file system is mounted read-only")
        if change.size is not None:
            kill = change.kill_suid
            self._writer.truncate(ino, change.size, number, caller, kill)
        elif change in (_NOTHING, _KILL):
            self._drop_set_id(ino, caller)
        if _touches_attributes(change):
            self._change(ino, change)
        return self.attr(ino)

    def _drop_set_id(self, ino: Ino, caller: Caller) -> None:
        """An empty change: chown(-1, -1), or a write that must drop privileges. Nobody
        has asked yet whether the caller may do the first."""
        attr = self.attr(ino)
        mode = without_set_id(attr.mode)
        if mode != attr.mode and _owns_or_writes(attr, caller):
            self._change(ino, SetAttr(mode=mode))

    def _change(self, ino: Ino, change: SetAttr) -> None:
        mtime, atime = self._times(change)
        if self._defer_permissions(ino, change):
            change = SetAttr()
        if self._change_orphan(ino, change, mtime, atime):
            return
        if self._defer_times(ino, mtime, atime):
            mtime = atime = None
        changes_row = change.mode is not None or _owner(change)
        if mtime is None and atime is None and not changes_row:
            return
        with self._commits.begin() as tx:
            row = tx.inode(ino)
            if row is None:
                raise Stale(f"inode {ino} is gone")
            if changes_row:
                self._set_attrs(tx, row, change, atime)
                atime = None
            if mtime is not None:
                tx.set_times(ino, mtime_ns=mtime, atime_ns=atime)
            elif atime is not None:
                tx.set_attrs(ino, atime_ns=atime)

    def _set_attrs(
        self, tx: Transaction, row: Inode, change: SetAttr, atime: int | None
    ) -> None:
        mode = _new_mode(row, change)
        tx.set_attrs(row.ino, mode=mode, uid=change.uid, gid=change.gid, atime_ns=atime)
        if _owner(change) and stat.S_ISREG(row.mode) and tx.xattr(row.ino, CAPABILITY):
            tx.remove_xattr(row.ino, CAPABILITY)

    def _times(self, change: SetAttr) -> tuple[int | None, int | None]:
        mtime, atime = self._time(change.mtime_ns), self._time(change.atime_ns)
        return mtime, atime or (None if atime is None else 1)  # 0: never set

    def _time(self, given_ns: int | None) -> int | None:
        if given_ns is None:
            return None
        if given_ns == NOW:
            return self._clock()
        return min(max(given_ns, EARLIEST_NS), LATEST_NS)

    def _defer_permissions(self, ino: Ino, change: SetAttr) -> bool:
        """While writes are unpublished, mode and owner wait with them: tar, rsync and
        cp set them between the last write and close. Not with sync=all, whose peers
        show each change when it returns."""
        file = self._files.get(ino)
        if file is None or file.draft is None or self._commits.options.sync == "all":
            return False
        if change.mode is None and not _owner(change):
            return False
        if _owner(change) and self._namespace.xattr(ino, CAPABILITY) is not None:
            self._writer.publish(file)  # it goes with the capability, in one
            return False
        with file.lock:
            draft = file.draft
            if draft is None:
                return False
            row, given = self._files.need_row(ino), draft.permissions
            shown = permitted(row, given)
            wanted = Permissions(_new_mode(shown, change), change.uid, change.gid)
            after = permitted(shown, wanted)
            draft.permissions = Permissions(
                _unless_same(after.mode, row.mode),
                _unless_same(after.uid, row.uid),
                _unless_same(after.gid, row.gid),
            )
            draft.ctime_ns = self._clock()
            if draft.log is not None:
                draft.log.permitted(draft)
        return True

    def _defer_times(self, ino: Ino, mtime: int | None, atime: int | None) -> bool:
        """While writes are unpublished, times given explicitly wait with them."""
        file = self._files.get(ino)
        if file is None or (mtime is None and atime is None):
            return False
        with file.lock:
            draft = file.draft
            if draft is None:
                return False
            draft.ctime_ns = self._clock()
            if mtime is not None:
                draft.mtime_ns = mtime
            if atime is not None:
                draft.atime_ns = atime
            if draft.log is not None:
                draft.log.timed(draft)
            return True

    def _change_orphan(
        self, ino: Ino, change: SetAttr, mtime: int | None, atime: int | None
    ) -> bool:
        with self._files.lock:
            orphan = self._files.orphans.get(ino)
            if orphan is None:
                return False
            row = orphan.row
            given = Permissions(_new_mode(row, change), change.uid, change.gid)
            orphan.row = permitted(row, given)._replace(
                mtime_ns=row.mtime_ns if mtime is None else mtime,
                atime_ns=row.atime_ns if atime is None else atime,
                ctime_ns=max(row.ctime_ns, self._clock()),
            )
        self._defer_times(ino, mtime, atime)
        return True


_NOTHING, _KILL = SetAttr(), SetAttr(kill_suid=True)


def _unless_same(value: int, before: int) -> int | None:
    return value if value != before else None


def _owns_or_writes(attr: Attr, caller: Caller) -> bool:
    """Of all the groups a caller is in only one is known here."""
    if caller.uid in (0, attr.uid):
        return True
    return bool(attr.mode & (stat.S_IWGRP | stat.S_IWOTH))


def _owner(change: SetAttr) -> bool:
    return change.uid is not None or change.gid is not None


def _touches_attributes(change: SetAttr) -> bool:
    times = change.mtime_ns is not None or change.atime_ns is not None
    return change.mode is not None or _owner(change) or times


def _new_mode(row: Inode, change: SetAttr) -> int | None:
    """The whole st_mode after the change; None when it stays."""
    if change.mode is not None:
        return stat.S_IFMT(row.mode) | (change.mode & 0o7777)
    if _owner(change):
        mode = without_set_id(row.mode)
        return mode if mode != row.mode else None
    return None
