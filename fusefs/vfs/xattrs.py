"""Extended attributes: the namespaces of xattr(7), and our own read-only ones.

    user.*, trusted.*, security.*   stored and replicated
    system.posix_acl_*              with -o acl: access control lists, acls.py; else, as
                                    all of system.*, EOPNOTSUPP: cp -a and tar skip them
    user.dfs.*                      computed, never listed, but for one never settable:
                                    cp -a and rsync -X neither copy nor set them

user.dfs.manifest   hex root of the data        user.dfs.version   node.seq of it
user.dfs.local      bytes on this disk          user.dfs.chunks    local/all chunks
user.dfs.replicas   nodes that keep the data: what the nearest directory above says that
                    has one of its own, else the cluster's setting; set on directories
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from fusefs.errors import (
    ArgumentTooBig,
    Exists,
    Invalid,
    NoAttribute,
    NoSpace,
    NotPermitted,
    NotSupported,
    OutOfRange,
    Stale,
)
from fusefs.model.ids import HOLE, Ino
from fusefs.model.records import MAX_REPLICAS, REPLICAS, replicas_of
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.replicas import of_cluster, replicas_for
from fusefs.namespace.transaction import Transaction
from fusefs.namespace.types import Inode
from fusefs.store.store import Store
from fusefs.vfs.commits import Commits
from fusefs.vfs.content import View
from fusefs.vfs.files import Files, Orphan
from fusefs.vfs.killpriv import CAPABILITY
from fusefs.vfs.missing import Missing
from fusefs.vfs.objects import Objects

CREATE, REPLACE = 1, 2
NAME_MAX_BYTES, VALUE_MAX_BYTES, LIST_MAX_BYTES = 255, 65_536, 65_536
"""linux/limits.h: XATTR_NAME_MAX, XATTR_SIZE_MAX, XATTR_LIST_MAX."""
_SPACES = (b"user.", b"trusted.", b"security.")
_OWN = b"user.dfs."


class Xattrs:
    """Thread-safe."""

    def __init__(
        self,
        namespace: Namespace,
        files: Files,
        commits: Commits,
        store: Store,
        objects: Objects,
        clock: Callable[[], int],
    ) -> None:
        acls = commits.options.acl
        self._hidden = (_OWN,) if acls else (_OWN, b"system.")
        self._namespace = namespace
        self._files = files
        self._commits = commits
        self._store = store
        self._objects = objects
        self._clock = clock

    # -- reading ---------------------------------------------------------------

    def get(self, ino: Ino, name: bytes) -> bytes:
        """Raises NoAttribute (ENODATA), NotSupported."""
        _check(name)
        if name.startswith(_OWN):
            return self._computed(ino, name[len(_OWN) :])
        return self.stored(ino, name)

    def stored(self, ino: Ino, name: bytes) -> bytes:
        """Raises NoAttribute. The name is one that is stored."""
        orphan = self._files.orphans.get(ino)
        if orphan is not None:
            value = self._of_orphan(orphan).get(name)
        else:
            value = self._namespace.xattr(ino, name)
        if value is None:
            raise NoAttribute(name.decode("utf-8", "replace"))
        return value

    def list(self, ino: Ino, uid: int) -> list[bytes]:
        """Names; trusted ones are shown to root only, computed ones to nobody."""
        orphan = self._files.orphans.get(ino)
        names = (
            list(self._of_orphan(orphan))
            if orphan is not None
            else self._namespace.xattrs(ino)
        )
        hidden = self._hidden if uid == 0 else (*self._hidden, b"trusted.")
        return [name for name in names if not name.startswith(hidden)]

    # -- changing --------------------------------------------------------------

    def set(self, ino: Ino, name: bytes, value: bytes, flags: int) -> None:
        """Raises Exists (XATTR_CREATE), NoAttribute (XATTR_REPLACE), ArgumentTooBig,
        NoSpace (no room in the list)."""
        self._check_settable(ino, name)
        if flags & ~(CREATE | REPLACE):
            raise Invalid(f"setxattr flags {flags:#x}")
        if len(value) > VALUE_MAX_BYTES:
            raise ArgumentTooBig(f"a value of {len(value)} bytes")
        if name == REPLICAS and replicas_of(value) is None:
            raise Invalid(f"replicas are a number from 1 to {MAX_REPLICAS}")
        if name == CAPABILITY and (file := self._files.get(ino)) is not None:
            file.capability = True
        self.store(ino, name, value, flags)

    def store(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        """As `set`, of a name that is stored."""
        orphan = self._files.orphans.get(ino)
        if orphan is not None:
            held = self._of_orphan(orphan)
            _check_flags(name, name in held, flags)
            held[name] = value
            self._changed_orphan(ino)
            return
        with self._commits.begin() as tx:
            if tx.inode(ino) is None:
                raise Stale(f"inode {ino} is gone")
            self.store_in(tx, ino, name, value, flags)

    def store_in(
        self, tx: Transaction, ino: Ino, name: bytes, value: bytes, flags: int = 0
    ) -> None:
        present = tx.xattr(ino, name) is not None
        _check_flags(name, present, flags)
        if not present:
            self._check_room(ino, name)
        tx.set_xattr(ino, name, value)

    def remove(self, ino: Ino, name: bytes) -> None:
        self._check_settable(ino, name)
        self.drop(ino, name)

    def drop(self, ino: Ino, name: bytes) -> None:
        """As `remove`, of a name that is stored."""
        orphan = self._files.orphans.get(ino)
        if orphan is not None:
            if self._of_orphan(orphan).pop(name, None) is None:
                raise NoAttribute(name.decode("utf-8", "replace"))
            self._changed_orphan(ino)
            return
        with self._commits.begin() as tx:
            if tx.xattr(ino, name) is None:
                raise NoAttribute(name.decode("utf-8", "replace"))
            tx.remove_xattr(ino, name)

    def _changed_orphan(self, ino: Ino) -> None:
        self._files.touch_orphan(ino, self._clock())
        self._files.keep_orphans()

    def _check_settable(self, ino: Ino, name: bytes) -> None:
        _check(name)
        if not name.startswith(_OWN):
            return
        if name != REPLICAS:
            raise NotPermitted("it is computed")
        if not stat.S_ISDIR(self._files.need_row(ino).mode):
            raise NotPermitted("replicas are set on directories")

    def _check_room(self, ino: Ino, name: bytes) -> None:
        """listxattr(2) must be able to show them all."""
        used = sum(len(n) + 1 for n in self._namespace.xattrs(ino))
        if used + len(name) + 1 > LIST_MAX_BYTES:
            raise NoSpace("no room for another attribute name")

    def _of_orphan(self, orphan: Orphan) -> dict[bytes, bytes]:
        held = orphan.xattrs
        if held is None:
            ino = orphan.row.ino
            held = {}
            for name in self._namespace.xattrs(ino):
                value = self._namespace.xattr(ino, name)
                if value is not None:
                    held[name] = value
            orphan.xattrs = held
        return held

    # -- computed --------------------------------------------------------------

    def _computed(self, ino: Ino, name: bytes) -> bytes:
        row = self._files.need_row(ino)
        if name == b"replicas":
            namespace = self._namespace
            usual = of_cluster(namespace)
            return b"%d" % replicas_for(namespace, ino, namespace.replicas, usual)
        if row.mode >> 12 == 8:  # regular files only
            if name == b"manifest":
                return row.root.hex().encode()
            if name == b"version":
                return b"%d.%d" % (row.node, row.seq)
            if name == b"local":
                return b"%d" % self._local(row)[2]
            if name == b"chunks":
                return b"%d/%d" % self._local(row)[:2]
        raise NoAttribute(name.decode("utf-8", "replace"))

    def _local(self, row: Inode) -> tuple[int, int, int]:
        """(chunks here, chunks, bytes here), as far as local manifest nodes tell."""
        view = View.of(row, self._objects.node)
        try:
            chunks = [view.chunk(i) for i in view.present()]
        except Missing:
            return 0, view.count, 0
        absent = set(self._store.missing(chunks))
        here = [cid for cid in chunks if cid not in absent and cid != HOLE]
        return len(here), len(chunks), sum(self._store.size(cid) for cid in here)


def _check(name: bytes) -> None:
    if len(name) > NAME_MAX_BYTES:
        raise OutOfRange(f"an attribute name of {len(name)} bytes")
    for space in _SPACES:
        if name.startswith(space):
            if name == space:
                raise Invalid("an attribute name ends after its prefix")
            return
    raise NotSupported(name.decode("utf-8", "replace"))


def _check_flags(name: bytes, present: bool, flags: int) -> None:
    if present and flags & CREATE:
        raise Exists(name.decode("utf-8", "replace"))
    if not present and flags & REPLACE:
        raise NoAttribute(name.decode("utf-8", "replace"))
