"""The tree: making, naming, moving and removing entries, errno by errno.

The rules of POSIX and Linux that the kernel cannot check for a file system that
changes from elsewhere, too; all inside one transaction, so nothing moves between
check and act. The mode arrives with the umask applied, but for -o acl.
"""

from __future__ import annotations

import stat
from functools import partial
from itertools import islice

from fusefs.errors import (
    Busy,
    Exists,
    Invalid,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    TooManyLinks,
)
from fusefs.model.ids import LOST_FOUND_INO, ROOT_INO, Ino
from fusefs.model.records import S_DIR, S_REG
from fusefs.namespace.transaction import Transaction
from fusefs.namespace.types import FLAG_LINKABLE, Entry, Inode
from fusefs.vfs.acls import born
from fusefs.vfs.coherence import Coherence
from fusefs.vfs.commits import Commits
from fusefs.vfs.exclusive import Exclusive, Taken
from fusefs.vfs.files import Files, Orphan
from fusefs.vfs.inodes import Inodes
from fusefs.vfs.missing import Missing
from fusefs.vfs.names import PATH_MAX_BYTES, check_name, directory
from fusefs.vfs.types import Attr, Caller

MOST_OBJECTS = 1024
"""Of a file that replaces another one, to be looked at one by one."""
NOREPLACE, EXCHANGE = 1, 2
"""renameat2(2) flags."""


class Tree:
    """Thread-safe: the transaction serialises changes."""

    def __init__(
        self,
        files: Files,
        inodes: Inodes,
        commits: Commits,
    ) -> None:
        self._files = files
        self._inodes = inodes
        self._commits = commits
        self._exclusive = Exclusive(commits)

    # -- making ----------------------------------------------------------------

    def make(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        caller: Caller,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Attr:
        """A new inode of the mode's type under a new name."""
        return self._inodes.attr(
            self.create(parent, name, mode, caller, rdev, target)[0]
        )

    def create(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        caller: Caller,
        rdev: int = 0,
        target: bytes = b"",
        exclusive: bool = True,
    ) -> tuple[Ino, int]:
        """(inode number, seq of the transaction). Raises Exists: here, and if
        `exclusive` on no near node, has anybody made the name."""
        check_name(name)
        try:
            if exclusive:
                self._exclusive.begin(parent)
            return self._create(parent, name, mode, caller, rdev, target, ask=exclusive)
        except Taken:
            with self._exclusive.asked(parent, name):
                return self._create(parent, name, mode, caller, rdev, target, ask=False)

    def _create(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        caller: Caller,
        rdev: int,
        target: bytes,
        *,
        ask: bool,
    ) -> tuple[Ino, int]:
        commit = self._commits.begin((parent, name))
        with commit as tx:
            above = directory(tx, parent)
            _check_parent(parent)
            if tx.entry(parent, name) is not None:
                raise Exists(repr(name))
            if ask:
                self._exclusive.check(tx, parent)
            mode, gid = inherit(above, mode, caller.gid)
            mode, lists = born(tx, parent, mode, self._umask(caller))
            ino = tx.new_ino(parent, name, stat.S_IFMT(mode) >> 12)
            tx.create(parent, name, ino, mode, caller.uid, gid, rdev, target)
            for key, value in lists.items():
                tx.set_xattr(ino, key, value)
            caller.note(ino)
        return ino, commit.seq

    def mknod(
        self, parent: Ino, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Attr:
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            raise Invalid("mknod makes no directories and no links")
        return self.make(parent, name, mode, caller, rdev)

    def mkdir(self, parent: Ino, name: bytes, mode: int, caller: Caller) -> Attr:
        return self.make(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), caller)

    def symlink(self, parent: Ino, name: bytes, target: bytes, caller: Caller) -> Attr:
        if not target:
            raise NotFound("an empty link target")
        if len(target) > PATH_MAX_BYTES:
            raise NameTooLong(f"a link target of {len(target)} bytes")
        return self.make(parent, name, stat.S_IFLNK | 0o777, caller, 0, target)

    def unnamed(self, parent: Ino, mode: int, caller: Caller, linkable: bool) -> Ino:
        """O_TMPFILE: an orphan from birth. Nothing is written until link(2)."""
        with self._commits.begin() as tx:
            above = directory(tx, parent)
            mode, gid = inherit(above, mode, caller.gid)
            mode, lists = born(tx, parent, mode, self._umask(caller))
            now, salt = tx.now_ns, 0
            while True:
                name = b"#tmp %d %d" % (now, salt)
                ino = tx.new_ino(parent, name, stat.S_IFMT(mode) >> 12)
                if ino not in self._files.orphans:
                    break
                salt += 1
        row = Inode(
            ino, mode, caller.uid, gid, 0, 0, 0, now, now, 0, now, b"", 20, 0, 0, b"",
            int(parent), FLAG_LINKABLE if linkable else 0,
        )  # fmt: skip
        self._files.orphan(row, born=True)
        if lists:
            self._files.orphans[ino].xattrs = lists
        return ino

    def _umask(self, caller: Caller) -> int:
        """What the kernel has left to us of it."""
        return caller.umask if self._commits.options.acl else 0

    # -- linking ---------------------------------------------------------------

    def link(self, ino: Ino, parent: Ino, name: bytes) -> Attr:
        """link(2). A directory is EPERM; what has no name any more is ENOENT, unless
        it is an O_TMPFILE."""
        check_name(name)
        try:
            self._exclusive.begin(parent)
            self._link(ino, parent, name, ask=True)
        except Taken:
            with self._exclusive.asked(parent, name):
                self._link(ino, parent, name, ask=False)
        return self._inodes.attr(ino)

    def _link(self, ino: Ino, parent: Ino, name: bytes, *, ask: bool) -> None:
        orphan = self._files.orphans.get(ino)
        self._files.undecided(ino, True)
        try:
            with self._commits.begin((parent, name)) as tx:
                directory(tx, parent)
                _check_parent(parent)
                if tx.entry(parent, name) is not None:
                    raise Exists(repr(name))
                if ask:
                    self._exclusive.check(tx, parent)
                if orphan is not None and tx.inode(ino) is None:
                    self._name_orphan(tx, orphan, parent, name)
                else:  # perhaps it was named a moment ago
                    self._add_link(tx, ino, parent, name)
        finally:
            if self._files.undecided(ino, False):
                self._commits.coherence.refresh(ino)
        if orphan is not None:
            self._files.refresh(ino)

    def _add_link(self, tx: Transaction, ino: Ino, parent: Ino, name: bytes) -> None:
        row = tx.inode(ino)
        if row is None:
            raise NotFound("the file was removed")
        if stat.S_ISDIR(row.mode):
            raise NotPermitted("directories have one name")
        if row.nlink >= self._commits.options.link_max:
            raise TooManyLinks(f"{row.nlink} names")
        tx.add_link(ino, parent, name)

    def _name_orphan(
        self, tx: Transaction, orphan: Orphan, parent: Ino, name: bytes
    ) -> None:
        if not orphan.linkable:
            raise NotFound("the file has no name any more")
        row = orphan.row
        tx.create(parent, name, row.ino, row.mode, row.uid, row.gid)
        if row.root or row.size:
            tx.set_content(
                row.ino,
                size=row.size,
                root=row.root,
                chunk_log2=row.chunk_log2,
                mtime_ns=row.mtime_ns,
            )
        else:
            tx.set_times(row.ino, mtime_ns=row.mtime_ns)
        if row.atime_ns:
            tx.set_attrs(row.ino, atime_ns=row.atime_ns)
        for key, value in (orphan.xattrs or {}).items():
            tx.set_xattr(row.ino, key, value)

    # -- removing --------------------------------------------------------------

    def unlink(self, parent: Ino, name: bytes, caller: Caller) -> None:
        check_name(name)
        keep = Kept(self._files, self._commits.coherence)
        with keep, self._commits.begin((parent, name)) as tx:
            entry = _need(tx, parent, name)
            if entry.kind == S_DIR:
                raise IsADirectory(repr(name))
            keep.last_name(tx, entry)
            tx.unlink(parent, name)
            caller.note(entry.ino)

    def rmdir(self, parent: Ino, name: bytes, caller: Caller) -> Ino:
        """Gives what was removed."""
        if name == b".":
            raise Invalid("rmdir of .")
        if name == b"..":
            raise NotEmpty("rmdir of ..")
        check_name(name)
        keep = Kept(self._files, self._commits.coherence)
        with keep, self._commits.begin((parent, name)) as tx:
            entry = _need(tx, parent, name)
            _check_empty_directory(tx, entry)
            keep.last_name(tx, entry)
            tx.rmdir(parent, name)
            caller.note(entry.ino)
        self._commits.coherence.gone(entry.ino)
        return entry.ino

    # -- moving ----------------------------------------------------------------

    def rename(
        self,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> tuple[Ino, Ino]:
        """renameat2(2) with NOREPLACE or EXCHANGE; other flags are EINVAL. Gives what
        was moved, and what it replaced or was exchanged with (0: nothing)."""
        if flags not in (0, NOREPLACE, EXCHANGE):
            raise Invalid(f"rename flags {flags:#x}")
        check_name(name)
        check_name(new_name)
        move = partial(self._rename, parent, name, new_parent, new_name, flags, caller)
        try:
            return move(ask=flags == NOREPLACE)
        except Taken:
            with self._exclusive.asked(new_parent, new_name):
                return move(ask=False)

    def _rename(
        self,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int,
        caller: Caller,
        *,
        ask: bool,
    ) -> tuple[Ino, Ino]:
        keep = Kept(self._files, self._commits.coherence)
        commit = self._commits.begin((parent, name), (new_parent, new_name))
        replaced: Entry | None = None
        with keep, commit as tx:
            entry = _need(tx, parent, name)
            directory(tx, new_parent)
            _check_parent(new_parent)
            target = tx.entry(new_parent, new_name)
            if entry.kind == S_DIR and parent != new_parent:
                _check_not_below(tx, entry.ino, new_parent)
            if flags == EXCHANGE:
                self._exchange(tx, entry, target, new_parent, new_name)
            elif target is None:
                if ask:
                    self._exclusive.check(tx, new_parent)
                tx.rename(parent, name, new_parent, new_name)
            elif flags == NOREPLACE:
                raise Exists(repr(new_name))
            elif target.ino != entry.ino:
                _check_replaceable(tx, entry, target)
                keep.last_name(tx, target)
                self._note_risk(tx, entry)
                tx.rename(parent, name, new_parent, new_name)
                commit.replaces, replaced = True, target
            caller.note(entry.ino)
        if replaced is not None and replaced.kind == S_DIR:
            self._commits.coherence.gone(replaced.ino)
        return entry.ino, target.ino if target is not None else Ino(0)

    def _note_risk(self, tx: Transaction, entry: Entry) -> None:
        """What it shows takes the place of something else."""
        row = tx.inode(entry.ino)
        if entry.kind != S_REG or row is None or not row.root:
            return
        objects = islice(self._files.view_of(row).objects(), MOST_OBJECTS + 1)
        try:
            cids = set(objects)
        except Missing:
            return  # not written here
        if len(cids) > MOST_OBJECTS:
            self._commits.risks.add_everything()
        else:
            self._commits.risks.add(cids)

    def _exchange(
        self,
        tx: Transaction,
        entry: Entry,
        target: Entry | None,
        new_parent: Ino,
        new_name: bytes,
    ) -> None:
        if target is None:
            raise NotFound(repr(new_name))
        if target.kind == S_DIR and entry.parent != new_parent:
            _check_not_below(tx, target.ino, entry.parent)
        if target.ino != entry.ino:
            tx.exchange(entry.parent, entry.name, new_parent, new_name)


class Kept:
    """Around a transaction that may take an inode's last name: keeps the inode as
    an orphan if somebody here may still use it. It is one before the transaction
    commits, so that nobody ever finds neither."""

    __slots__ = ("_coherence", "_files", "_ino")

    def __init__(self, files: Files, coherence: Coherence) -> None:
        self._files = files
        self._coherence = coherence
        self._ino: Ino | None = None

    def last_name(self, tx: Transaction, entry: Entry) -> None:
        """Call before the name goes."""
        row = tx.inode(entry.ino)
        if row is None or (entry.kind != S_DIR and row.nlink > 1):
            return
        row = row._replace(ctime_ns=max(row.ctime_ns, tx.now_ns))
        if self._files.orphan(row, undecided=True):
            self._ino = entry.ino

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._ino is None:
            return
        if kind is not None:
            self._files.unorphan(self._ino)
        elif not self._files.undecided(self._ino, False):
            return
        self._coherence.refresh(self._ino)


def inherit(above: Inode, mode: int, gid: int) -> tuple[int, int]:
    """(mode, gid) below a set-gid directory: its group, and directories pass the
    bit on (linux/fs/inode.c, inode_init_owner)."""
    if not above.mode & stat.S_ISGID:
        return mode, gid
    return mode | stat.S_ISGID if stat.S_ISDIR(mode) else mode, above.gid


def _check_parent(parent: Ino) -> None:
    if parent == LOST_FOUND_INO:
        raise NotPermitted("lost+found shows what merges found, nothing is made there")


def _need(tx: Transaction, parent: Ino, name: bytes) -> Entry:
    entry = tx.entry(parent, name)
    if entry is None:
        raise NotFound(repr(name))
    if entry.ino == LOST_FOUND_INO:
        raise Busy("lost+found goes when it is empty")
    return entry


def _check_empty_directory(tx: Transaction, entry: Entry) -> None:
    if entry.kind != S_DIR:
        raise NotADirectory(repr(entry.name))
    if tx.has_children(entry.ino):
        raise NotEmpty(repr(entry.name))


def _check_replaceable(tx: Transaction, entry: Entry, target: Entry) -> None:
    """rename(2) over an existing name."""
    if target.ino == LOST_FOUND_INO:
        raise Busy("lost+found goes when it is empty")
    if entry.kind == S_DIR:
        _check_empty_directory(tx, target)
    elif target.kind == S_DIR:
        raise IsADirectory(repr(target.name))


def _check_not_below(tx: Transaction, ino: Ino, parent: Ino) -> None:
    """A directory cannot move into itself or below."""
    at = parent
    while at != ROOT_INO:
        if at == ino:
            raise Invalid("a directory cannot move below itself")
        row = tx.inode(at)
        if row is None or row.parent == at:
            return
        at = Ino(row.parent)
