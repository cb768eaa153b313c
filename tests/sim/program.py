"""Programs at work on every node: random POSIX operations through the real vfs.

File data is made of tokens of eight bytes, each written once in a run, so that it
can be told what became of every write (`promises`).
"""

from __future__ import annotations

import os
import random
import stat

from fusefs.errors import FsError
from fusefs.model.ids import ROOT_INO, Ino
from fusefs.vfs.types import Attr, Caller, SetAttr
from fusefs.vfs.vfs import Vfs
from tests.sim.cluster import SimNode
from tests.sim.promises import TOKEN_BYTES, Promises

NAMES = (b"a", b"b.txt", b"c.tar.gz", b"d", b"e", b"log")
USER = Caller(uid=0, gid=0, pid=7)
MAX_DEPTH = 3
KINDS = (
    *("write",) * 5,
    *("append",) * 4,
    *("change",) * 2,
    *("rename",) * 4,
    *("unlink",) * 4,
    *("mkdir",) * 3,
    *("rmdir", "truncate", "link", "chmod", "utimens", "symlink"),
    *("exchange", "setxattr", "removexattr", "mknod", "copy"),
)

Place = tuple[Ino, bytes]


class Program:
    """Random operations on one node; `step` says what it did."""

    def __init__(self, node: SimNode, promises: Promises, rng: random.Random) -> None:
        assert node.vfs is not None
        self._node = node
        self._vfs: Vfs = node.vfs
        self._promises = promises
        self._rng = rng

    def step(self) -> str:
        """One operation, possible or not; one line for the log."""
        kind = self._rng.choice(KINDS)
        place = self._some_place()
        try:
            detail = getattr(self, f"_{kind}")(*place)
        except FsError as error:
            detail = f"- {error.strerror}"
        return f"{kind} {place[0]}/{place[1].decode()} {detail or ''}"

    # -- choosing ----------------------------------------------------------------------

    def _some_directory(self) -> Ino:
        found, level = [ROOT_INO], [ROOT_INO]
        for _ in range(MAX_DEPTH):
            level = [
                Ino(entry.ino)
                for ino in level
                for entry in self._node.namespace.children(ino)
                if entry.kind == stat.S_IFDIR >> 12
            ]
            found += level
        return self._rng.choice(found)

    def _some_place(self) -> Place:
        directory = self._some_directory()
        there = [e.name for e in self._node.namespace.children(directory)]
        if there and self._rng.random() < 0.6:
            return directory, self._rng.choice(there)
        return directory, self._rng.choice(NAMES)

    def _attr(self, parent: Ino, name: bytes) -> Attr | None:
        try:
            return self._vfs.lookup(parent, name)
        except FsError:
            return None

    # -- data --------------------------------------------------------------------------

    def _put(
        self, parent: Ino, name: bytes, flags: int, offset: int, data: bytes
    ) -> None:
        """open, write, close; what close acknowledged is a promise."""
        before = self._attr(parent, name)
        seen = self._promises.under(self._node, before)
        if before is None:
            opened = self._vfs.create(parent, name, 0o644, os.O_RDWR | flags, USER)
        else:
            opened = self._vfs.open(before.ino, os.O_RDWR | flags, USER)
        try:
            if data:
                self._vfs.write(opened.handle, offset, data, USER)
            self._vfs.flush(opened.handle, 0)
        finally:
            self._vfs.release(opened.handle)
        after = self._vfs.getattr(opened.attr.ino)
        self._promises.wrote(self._node, seen, self._promises.shown(self._node, after))

    def _write(self, parent: Ino, name: bytes) -> str:
        data = b"".join(self._promises.token() for _ in range(self._rng.randrange(4)))
        self._put(parent, name, os.O_TRUNC, 0, data)
        return data.decode()

    def _append(self, parent: Ino, name: bytes) -> str:
        data = self._promises.token()
        attr = self._attr(parent, name)
        self._put(parent, name, os.O_APPEND, attr.size if attr else 0, data)
        return data.decode()

    def _change(self, parent: Ino, name: bytes) -> str:
        """Write in place, in the middle."""
        attr = self._attr(parent, name)
        count = attr.size // TOKEN_BYTES if attr else 0
        at = self._rng.randrange(count + 1) * TOKEN_BYTES
        data = self._promises.token()
        self._put(parent, name, 0, at, data)
        return f"{data.decode()} at {at}"

    def _truncate(self, parent: Ino, name: bytes) -> str:
        attr = self._vfs.lookup(parent, name)
        if not stat.S_ISREG(attr.mode):
            return "- no file"
        size = self._rng.randrange(attr.size // TOKEN_BYTES + 1) * TOKEN_BYTES
        seen = self._promises.under(self._node, attr)
        self._vfs.setattr(attr.ino, SetAttr(size=size), USER)
        after = self._vfs.getattr(attr.ino)
        self._promises.wrote(self._node, seen, self._promises.shown(self._node, after))
        return f"to {size}"

    def _copy(self, parent: Ino, name: bytes) -> str:
        """cp: equal data in two files."""
        attr = self._vfs.lookup(parent, name)
        if not stat.S_ISREG(attr.mode):
            return "- no file"
        handle = self._vfs.open(attr.ino, os.O_RDONLY, USER).handle
        data = bytearray(attr.size)
        try:
            self._vfs.read_into(handle, 0, memoryview(data), USER)
        finally:
            self._vfs.release(handle)
        to = self._some_place()
        self._put(*to, os.O_TRUNC, 0, bytes(data))
        return f"to {to[0]}/{to[1].decode()}"

    # -- names -------------------------------------------------------------------------

    def _mkdir(self, parent: Ino, name: bytes) -> None:
        self._vfs.mkdir(parent, name, 0o755, USER)

    def _symlink(self, parent: Ino, name: bytes) -> None:
        self._vfs.symlink(parent, name, b"target", USER)

    def _mknod(self, parent: Ino, name: bytes) -> None:
        self._vfs.mknod(parent, name, stat.S_IFIFO | 0o600, 0, USER)

    def _rmdir(self, parent: Ino, name: bytes) -> None:
        self._vfs.rmdir(parent, name, USER)

    def _unlink(self, parent: Ino, name: bytes) -> None:
        seen = self._last_link(self._attr(parent, name))
        self._vfs.unlink(parent, name, USER)
        self._promises.wrote(self._node, seen, frozenset())

    def _last_link(self, attr: Attr | None) -> frozenset[bytes]:
        """What goes with a name of this file."""
        if attr is None or attr.nlink > 1:
            return frozenset()
        return self._promises.shown(self._node, attr)

    def _link(self, parent: Ino, name: bytes) -> str:
        attr = self._vfs.lookup(parent, name)
        to = self._some_place()
        self._vfs.link(attr.ino, *to)
        return f"to {to[0]}/{to[1].decode()}"

    def _rename(self, parent: Ino, name: bytes) -> str:
        to = self._some_place()
        self._vfs.lookup(parent, name)
        target = self._attr(*to)
        moved = self._attr(parent, name)
        seen: frozenset[bytes] = frozenset()
        if moved and target and moved.ino != target.ino:
            seen = self._last_link(target)
        self._vfs.rename(parent, name, *to)
        self._promises.wrote(self._node, seen, frozenset())
        return f"to {to[0]}/{to[1].decode()}"

    def _exchange(self, parent: Ino, name: bytes) -> str:
        to = self._some_place()
        self._vfs.rename(parent, name, *to, 2)
        return f"with {to[0]}/{to[1].decode()}"

    # -- attributes --------------------------------------------------------------------

    def _chmod(self, parent: Ino, name: bytes) -> None:
        mode = self._rng.choice((0o600, 0o640, 0o755))
        ino = self._vfs.lookup(parent, name).ino
        self._vfs.setattr(ino, SetAttr(mode=mode), USER)

    def _utimens(self, parent: Ino, name: bytes) -> None:
        ino = self._vfs.lookup(parent, name).ino
        ns = self._rng.randrange(10**18)
        self._vfs.setattr(ino, SetAttr(mtime_ns=ns, atime_ns=ns), USER)

    def _setxattr(self, parent: Ino, name: bytes) -> None:
        ino = self._vfs.lookup(parent, name).ino
        self._vfs.setxattr(ino, b"user.x", self._rng.randbytes(3), 0, USER)

    def _removexattr(self, parent: Ino, name: bytes) -> None:
        self._vfs.removexattr(self._vfs.lookup(parent, name).ino, b"user.x", USER)
