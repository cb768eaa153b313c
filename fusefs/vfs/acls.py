"""POSIX access control lists (model/acl.py): what the kernel asks for with -o acl, and
what is made below a directory with a default, with or without it.

A list and the mode are registers of their own, which two nodes may change at once. So
the mode is the truth of what both say: where a list is shown, its entries for the
owner, the group class and others are those of the mode. That is what chmod(2) does to
a list, which therefore has not to be written for it (docs/adr/0009).
"""

from __future__ import annotations

import stat
from contextlib import suppress

from fusefs.errors import AccessDenied, FsError, NoAttribute, NotSupported, Stale
from fusefs.model import acl
from fusefs.model.ids import Ino
from fusefs.namespace.transaction import Transaction
from fusefs.vfs.commits import Commits
from fusefs.vfs.files import Files
from fusefs.vfs.inodes import Inodes
from fusefs.vfs.types import UNCHANGED, Caller, SetAttr
from fusefs.vfs.writing import Writer
from fusefs.vfs.xattrs import Xattrs


class Acls:
    """Thread-safe."""

    def __init__(
        self,
        files: Files,
        commits: Commits,
        inodes: Inodes,
        writer: Writer,
        xattrs: Xattrs,
    ) -> None:
        self._files = files
        self._commits = commits
        self._inodes = inodes
        self._writer = writer
        self._xattrs = xattrs

    def get(self, ino: Ino, name: bytes) -> bytes:
        """Raises NoAttribute."""
        value = self._xattrs.stored(ino, name)
        if name == acl.DEFAULT:
            return value
        try:
            found = acl.decode(value)
        except FsError as error:
            raise NoAttribute(str(error)) from error
        return acl.encode(acl.shown(found, self._inodes.attr(ino).mode))

    def set(
        self, ino: Ino, name: bytes, value: bytes, kill_sgid: bool, caller: Caller
    ) -> None:
        """An empty list is none. That of access sets the mode, too. Raises Invalid,
        NotSupported, TooBig; AccessDenied: a default of what is no directory."""
        found = acl.decode(value)
        mode = self._files.need_row(ino).mode
        if stat.S_ISLNK(mode):
            raise NotSupported("a symbolic link has no access control list")
        if not found:
            self.remove(ino, name)
        elif name == acl.ACCESS:
            self._set_access(ino, found, kill_sgid, caller)
        elif stat.S_ISDIR(mode):
            self._xattrs.store(ino, name, value)
        else:
            raise AccessDenied("only directories have a default")

    def remove(self, ino: Ino, name: bytes) -> None:
        """Nothing happens where there is none. The mode stays as it is."""
        with suppress(NoAttribute):
            self._xattrs.drop(ino, name)

    def _set_access(
        self, ino: Ino, found: acl.Acl, kill_sgid: bool, caller: Caller
    ) -> None:
        bits, whole = acl.as_mode(found)
        value = b"" if whole else acl.encode(found)

        def changed(mode: int) -> int:
            mode = mode & ~0o777 | bits
            return mode & ~stat.S_ISGID if kill_sgid else mode

        if ino in self._files.orphans:
            mode = stat.S_IMODE(changed(self._inodes.attr(ino).mode))
            self._inodes.setattr(ino, SetAttr(mode=mode), caller, None)
            if value:
                self._xattrs.store(ino, acl.ACCESS, value)
            else:
                self.remove(ino, acl.ACCESS)
            return
        self._publish_permissions(ino)
        with self._commits.begin() as tx:
            row = tx.inode(ino)
            if row is None:
                raise Stale(f"inode {ino} is gone")
            tx.set_attrs(ino, mode=changed(row.mode))
            if value:
                self._xattrs.store_in(tx, ino, acl.ACCESS, value)
            elif tx.xattr(ino, acl.ACCESS) is not None:
                tx.remove_xattr(ino, acl.ACCESS)

    def _publish_permissions(self, ino: Ino) -> None:
        """A mode that waits with unpublished writes comes before this one."""
        file = self._files.get(ino)
        draft = file.draft if file is not None else None
        if file and draft and draft.permissions is not UNCHANGED:
            self._writer.publish(file)


def born(
    tx: Transaction, parent: Ino, mode: int, umask: int
) -> tuple[int, dict[bytes, bytes]]:
    """Mode and lists of what is made with this mode in a directory: where that has a
    default it decides, and the umask does not count (umask(2)). `umask`: 0 where the
    kernel has applied it."""
    if stat.S_ISLNK(mode):
        return mode, {}
    value = tx.xattr(parent, acl.DEFAULT)
    default: acl.Acl = ()
    if value is not None:
        with suppress(FsError):
            default = acl.decode(value)
    if value is None or not default:
        return mode & ~umask, {}
    found, mode = acl.inherited(default, mode)
    lists = {acl.ACCESS: acl.encode(found)} if found else {}
    if stat.S_ISDIR(mode):
        lists[acl.DEFAULT] = value
    return mode, lists
