"""Listings, in two forms, both stable while the directory changes.

*By handle* (opendir): entries in byte order of their names, read a page at a time;
a cookie is a position in what was read. Rewinding to 0 starts afresh.

*Stateless* (FUSE_NO_OPENDIR_SUPPORT, and across a restart): a cookie is 62 bits of
xxh3-64 of the name, entries come in the order of their cookies, so where to go on
is known from the cookie alone, also when its entry is gone. The sorted listing is
kept for the next call; if it was dropped meanwhile it is made again.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator

from fusefs.errors import BadHandle, NotADirectory, NotFound, Stale
from fusefs.model.ids import Ino
from fusefs.model.records import S_DIR
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.types import Entry
from fusefs.vfs.files import Files
from fusefs.vfs.inodes import Inodes
from fusefs.vfs.snapshots import Snapshot, Snapshots, sort
from fusefs.vfs.types import Attr, DirEntry

PAGE = 1000
"""Entries read from the namespace at once (~2 ms)."""
FIRST_PAGE = 100
"""The first page is small: most directories are, and the first reply is soon."""
SELF, PARENT = 1, 2
"""Cookies of the dots."""
ATTRS_WITH_LISTING = 4_000
"""Up to this many entries a listing brings the attributes along, in one query."""


class Directory:
    """An open directory; one reader at a time (the kernel sees to it, and `lock`)."""

    __slots__ = ("entries", "ino", "last", "lock", "more")

    def __init__(self, ino: Ino) -> None:
        self.ino = ino
        self.lock = threading.Lock()  # the fields below; the namespace is read under it
        self.rewind()

    def rewind(self) -> None:
        self.entries: list[Entry] = []
        self.last = b""
        self.more = True


class Listings:
    """Thread-safe."""

    def __init__(
        self,
        namespace: Namespace,
        files: Files,
        inodes: Inodes,
        snapshots: Snapshots,
    ) -> None:
        self._namespace = namespace
        self._files = files
        self._inodes = inodes
        self._open: dict[int, Directory] = {}
        self._snapshots = snapshots

    # -- by handle -------------------------------------------------------------

    def opendir(self, ino: Ino) -> int:
        self._check(ino)
        number = self._files.number()
        self._open[number] = Directory(ino)
        return number

    def releasedir(self, number: int) -> None:
        self._open.pop(number, None)

    def readdir(self, number: int, offset: int) -> Iterator[DirEntry]:
        directory = self._directory(number)
        if offset == 0:
            with directory.lock:
                directory.rewind()
        yield from self._dots(directory.ino, offset)
        at = max(0, offset - PARENT)
        while (entry := self._nth(directory, at)) is not None:
            at += 1
            yield DirEntry(at + PARENT, entry.name, entry.ino, entry.kind)

    def _directory(self, number: int) -> Directory:
        directory = self._open.get(number)
        if directory is None:
            raise BadHandle(f"directory handle {number} is not open")
        return directory

    def _nth(self, directory: Directory, at: int) -> Entry | None:
        entries = directory.entries
        if at < len(entries):
            return entries[at]
        with directory.lock:
            while at >= len(directory.entries) and directory.more:
                self._page(directory)
            found = directory.entries
            return found[at] if at < len(found) else None

    def _page(self, directory: Directory) -> None:
        limit = PAGE if directory.entries else FIRST_PAGE
        if len(directory.entries) < ATTRS_WITH_LISTING:
            page = self._page_with_attrs(directory.ino, directory.last, limit)
        else:
            page = self._namespace.children(directory.ino, directory.last, limit)
        directory.entries += page
        directory.more = len(page) == limit
        if page:
            directory.last = page[-1].name

    def _page_with_attrs(self, ino: Ino, after: bytes, limit: int) -> list[Entry]:
        generation = self._inodes.generation
        page = self._namespace.children_full(ino, after, limit)
        for _, row in page:
            self._inodes.offer(row, generation)
        return [entry for entry, _ in page]

    def readdirplus(self, number: int, offset: int) -> Iterator[tuple[DirEntry, Attr]]:
        ino = self._directory(number).ino
        for line in self.readdir(number, offset):
            if now := self._as_it_is(ino, line):
                yield now

    def _as_it_is(self, ino: Ino, line: DirEntry) -> tuple[DirEntry, Attr] | None:
        """A line that was read a while ago, with what the name shows now: the kernel
        keeps what we answer as what the name shows, for ever."""
        if line.name not in (b".", b".."):
            entry = self._namespace.entry(ino, line.name)
            if entry is None:
                return None
            if entry.ino != line.ino:
                line = line._replace(ino=entry.ino, kind=entry.kind)
        try:
            return line, self._inodes.attr(line.ino)
        except Stale:  # removed this moment
            return None

    # -- stateless -------------------------------------------------------------

    def names_given(self) -> Iterator[tuple[Ino, bytes]]:
        """Every name that there is or was, as far as it is remembered."""
        return self._namespace.names_given()

    def readdir_ino(self, ino: Ino, cookie: int) -> Iterator[DirEntry]:
        """Entries after the cookie (0: all)."""
        if cookie == 0:
            self._check(ino)
        yield from self._dots(ino, cookie)
        yield from _after(self._snapshot(ino, fresh=cookie <= PARENT), cookie)

    def readdirplus_ino(self, ino: Ino, cookie: int) -> Iterator[tuple[DirEntry, Attr]]:
        if cookie == 0:
            self._check(ino)
        for line in self._dots(ino, cookie):
            if now := self._as_it_is(ino, line):
                yield now
        shot = self._snapshot(ino, fresh=cookie <= PARENT)
        kept, attr = self._snapshots.get, self._inodes.attr
        for line in _after(shot, cookie):
            if shot.current and kept(ino) is shot:
                try:
                    yield line, attr(line.ino)
                except Stale:  # removed this moment
                    continue
            elif now := self._as_it_is(ino, line):
                yield now

    def _snapshot(self, ino: Ino, fresh: bool) -> Snapshot:
        """The sorted listing; a fresh one is no older than the call."""
        shot = self._snapshots.get(ino)
        if shot is not None and (shot.current or not fresh):
            return shot
        generation = self._snapshots.generation
        shot = sort(self._all(ino))
        self._snapshots.keep(ino, shot, generation)
        return shot

    def _all(self, ino: Ino) -> Iterator[Entry]:
        """Every entry; attributes come along while the directory may be small."""
        after, limit, seen = b"", FIRST_PAGE, 0
        while True:
            if seen < ATTRS_WITH_LISTING:
                page = self._page_with_attrs(ino, after, limit)
            else:
                page = self._namespace.children(ino, after, limit)
            yield from page
            if len(page) < limit:
                return
            after, limit, seen = page[-1].name, PAGE, seen + len(page)

    # -- both ------------------------------------------------------------------

    def _check(self, ino: Ino) -> None:
        row = self._files.row(ino)
        if row is None:
            raise NotFound("the directory was removed")
        if row.mode >> 12 != S_DIR:
            raise NotADirectory("not a directory")

    def _dots(self, ino: Ino, cookie: int) -> Iterator[DirEntry]:
        if cookie < SELF:
            yield DirEntry(SELF, b".", ino, S_DIR)
        if cookie < PARENT:
            row = self._files.row(ino)
            above = Ino(row.parent) if row is not None else ino
            yield DirEntry(PARENT, b"..", above, S_DIR)


def _after(shot: Snapshot, cookie: int) -> Iterator[DirEntry]:
    """Its lines after the cookie."""
    cookies, names, inos, kinds, _ = shot
    for at in range(bisect_right(cookies, cookie), len(cookies)):
        yield DirEntry(cookies[at], names[at], Ino(inos[at]), kinds[at])
