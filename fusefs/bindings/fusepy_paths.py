"""Paths to inodes for a binding that is given paths; libfuse's hidden files.

Called from libfuse's threads. Holds no lock while the vfs works, except while it
settles an unlink (see `Orphans`).

The path of a directory is remembered, the last component of a path never is. One
`forget` drops all that is remembered; a walk that began before it can only add to
the dictionary that was dropped, so nothing stale comes back.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import NamedTuple, Protocol

from fusefs.errors import NotFound, Stale
from fusefs.model.ids import Ino
from fusefs.vfs.types import Attr, Caller

log = logging.getLogger("dfs.fusepy")

ROOT = Ino(1)
HIDDEN = re.compile(rb"\.fuse_hidden[0-9a-f]{16,}")
"""The name libfuse gives to a file that is removed while it is open."""

MAX_DIRECTORIES = 4096
"""Remembered directory paths (about 0.2 KiB each); then all are dropped."""

MAX_PAGES = 16_384
"""Remembered opens (about 0.4 KiB each); then all are dropped."""

MAX_RETIRED = 4096
"""Hidden names remembered after they are gone; needed for milliseconds."""

MAX_SHOWN = 16_384
"""Names remembered with the time they were shown (about 0.2 KiB each); then all are
dropped."""

SHOWN_S = 2.0
"""Longer than the kernel keeps a name (fusepy_ops.ENTRY_TIMEOUT_S)."""

SETTLE_S = 0.002
"""How long an unlink of an open file waits for the rename it may belong to: libfuse
makes both calls one after the other, a few microseconds apart."""


class Names(Protocol):
    """What is needed of the vfs here."""

    def lookup(self, parent: Ino, name: bytes) -> Attr: ...
    def getattr(self, ino: Ino) -> Attr: ...
    def unlink(self, parent: Ino, name: bytes, caller: Caller) -> None: ...


class Paths:
    """Walks paths. Raises what `lookup` raises."""

    def __init__(self, names: Names, orphans: Orphans) -> None:
        self._names = names
        self._orphans = orphans
        self._directories: dict[bytes, Ino] = {}
        self._shown: dict[tuple[Ino, bytes], float] = {}
        """Names, and when the kernel was told last that they are there."""

    def forget(self) -> None:
        """A directory was renamed or removed, here or elsewhere."""
        self._directories = {}

    def attr(self, path: bytes) -> Attr:
        """What is at `path` now."""
        if path == b"/":
            return self._names.getattr(ROOT)
        parent, name = self.split(path)
        orphan = self._orphans.ino(parent, name)
        if orphan is not None:
            attr = self._names.getattr(orphan)
            return attr._replace(nlink=attr.nlink + 1)  # libfuse takes one off again
        try:
            attr = self._names.lookup(parent, name)
        except NotFound:
            self._orphans.check_retired(parent, name)
            self._check_shown(parent, name)
            raise
        if len(self._shown) >= MAX_SHOWN:
            self._shown = {}
        self._shown[parent, name] = time.monotonic()
        return attr

    def _check_shown(self, parent: Ino, name: bytes) -> None:
        """Raises Stale, once, for a name that a peer took: the kernel, which may have
        it still, looks again, and open(2) with O_CREAT makes the file. ENOENT it would
        hand on."""
        if self._shown.pop((parent, name), 0.0) > time.monotonic() - SHOWN_S:
            raise Stale("removed elsewhere")

    def taken(self, parent: Ino, name: bytes) -> None:
        """The kernel itself removes the name, or moves it away."""
        self._shown.pop((parent, name), None)

    def ino(self, path: bytes) -> Ino:
        return ROOT if path == b"/" else self.attr(path).ino

    def split(self, path: bytes) -> tuple[Ino, bytes]:
        """The inode of the directory and the last name."""
        head, _, name = path.rpartition(b"/")
        return (self._directory(head) if head else ROOT), name

    def _directory(self, path: bytes) -> Ino:
        known = self._directories
        ino = known.get(path)
        if ino is None:
            head, _, name = path.rpartition(b"/")
            parent = self._directory(head) if head else ROOT
            ino = self._names.lookup(parent, name).ino
            if len(known) >= MAX_DIRECTORIES:
                known = self._directories = {}
            known[path] = ino
        return ino


class Pages:
    """What the kernel's page cache holds of each path, as of its last open."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, ...]] = {}

    def current(self, path: str, attr: Attr) -> bool:
        """The file at the path is what it was at the path's last open.

        ctime is part of it: contents that came back are not taken for unchanged.
        """
        now = (attr.ino, attr.version, attr.size, attr.mtime_ns, attr.ctime_ns)
        if self._seen.get(path) == now:
            return True
        if len(self._seen) >= MAX_PAGES:
            self._seen = {}
        self._seen[path] = now
        return False


class _Unsettled(NamedTuple):
    """An unlink that was answered and is not done: a rename may follow at once."""

    parent: Ino
    name: bytes
    caller: Caller


class Orphans:
    """Files removed while open.

    libfuse 2 turns both the unlink of an open file and the replacing of one by a
    rename into a rename to `.fuse_hidden*`, and unlinks that name at the last close.
    Those names exist only here: the file itself is unlinked in the vfs, so no
    listing, no peer and no disk ever sees them.

    When it was a rename, the real one follows at once. It must replace the name in
    one transaction, so the unlink waits (`SETTLE_S`) until another operation
    arrives; the rename of the same name takes its place.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._hidden: dict[tuple[Ino, bytes], Ino] = {}
        self._retired: set[tuple[Ino, bytes]] = set()
        self._lock = threading.Lock()  # _unsettled, until Names.unlink has returned
        self._unsettled: _Unsettled | None = None

    def ino(self, parent: Ino, name: bytes) -> Ino | None:
        """The removed file that libfuse knows by this name."""
        if self._hidden:
            return self._hidden.get((parent, name))
        return None

    def hide(self, parent: Ino, name: bytes, hidden: bytes, caller: Caller) -> None:
        """`name` is gone for programs; its file is now known as `hidden`."""
        ino = self._names.lookup(parent, name).ino
        waiting = _Unsettled(parent, name, caller)
        with self._lock:
            self._settle()
            self._hidden[parent, hidden] = ino
            self._unsettled = waiting
        timer = threading.Timer(SETTLE_S, self._settle_in_time, (waiting,))
        timer.daemon = True
        timer.start()

    def release(self, parent: Ino, hidden: bytes) -> bool:
        """The last descriptor is closed. False when the name is not one of ours."""
        if self._hidden.pop((parent, hidden), None) is None:
            return False
        if len(self._retired) >= MAX_RETIRED:
            self._retired.clear()
        self._retired.add((parent, hidden))
        return True

    def check_retired(self, parent: Ino, name: bytes) -> None:
        """Raises Stale for a hidden name that is gone: who opens a name just while
        it is replaced comes here by the old inode, and the kernel then looks the
        name up again. (For ENOENT it would not, and a program would miss a file
        that is always there.)"""
        if (parent, name) in self._retired:
            raise Stale("removed, and closed by now")

    def replaced(self, parent: Ino, name: bytes) -> None:
        """A rename onto `name` is about to be done: no unlink is needed for it."""
        with self._lock:
            waiting = self._unsettled
            if waiting is not None and waiting[:2] == (parent, name):
                self._unsettled = None
            self._settle()

    def settle(self) -> None:
        """Does the unlink that waits; returns when it is done, whoever does it. Called
        before every other operation."""
        if self._unsettled is not None:
            with self._lock:
                self._settle()

    def _settle_in_time(self, waiting: _Unsettled) -> None:
        """Not one that was hidden since: it has its own time."""
        with self._lock:
            if self._unsettled is waiting:
                self._settle()

    def _settle(self) -> None:
        """With the lock held. The unlink waits until it is done: others ask for it."""
        if (waiting := self._unsettled) is None:
            return
        try:
            self._names.unlink(*waiting)
        except Exception:
            log.exception("cannot remove %r, which was open; it stays", waiting.name)
        self._unsettled = None
