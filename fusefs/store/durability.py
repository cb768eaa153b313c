"""Which objects this process wrote are on the disk yet, and how they get there.

`sync` for a few objects at once (fsync of a file), `sync_all` for everything
behind the users' backs. Any thread; no lock: each large object carries the ticket
of its last write, and only that ticket is crossed off.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from fusefs.errors import FsError
from fusefs.model.ids import ChunkId
from fusefs.store.database import Database
from fusefs.store.files import Files

WHOLE_FROM = 32
"""From this many files on, one sync of the file system is cheaper."""


class Durability:
    """The books of what is written and not yet synced."""

    def __init__(
        self, files: Files, database: Database, write_anew: Callable[[ChunkId], bool]
    ) -> None:
        """`write_anew`: an object into another file; False: it is gone."""
        self._files = files
        self._database = database
        self._write_anew = write_anew
        self._tickets = itertools.count(1)
        self._large: dict[ChunkId, int] = {}
        self._small_written = 0
        self._small_synced = 0
        self._inherited = False
        self._failures = 0
        self._doubted: set[ChunkId] = set()
        """Whose sync failed. The next one may succeed though the disk has nothing, for
        the kernel calls their pages clean (fsync(2))."""

    def __len__(self) -> int:
        return len(self._large)

    @property
    def dirty(self) -> bool:
        small = self._small_written != self._small_synced
        return self._inherited or small or bool(self._large)

    def inherit(self) -> None:
        """A predecessor may have been killed before it synced what it wrote: the
        next sync covers everything."""
        self._inherited = True

    def wrote_large(self, cid: ChunkId) -> None:
        self._large[cid] = next(self._tickets)

    def wrote_small(self) -> None:
        """Call after the commit: a sync that ran before it does not count."""
        self._small_written = next(self._tickets)

    def removed(self, cid: ChunkId) -> None:
        self._large.pop(cid, None)
        self._doubted.discard(cid)

    def sync(self, cids: Iterable[ChunkId]) -> list[ChunkId]:
        """These objects survive a power cut when it returns; gives those gone."""
        if self._inherited:
            self._sync_inherited()
        large = self._large
        todo = {cid: large[cid] for cid in cids if cid in large}
        gone = self._sync_large(todo, whole=len(todo) >= WHOLE_FROM)
        self._cross_off(todo)
        self._sync_small()
        return gone

    def sync_all(self) -> None:
        """Everything written before, by both processes, survives a power cut."""
        if self._inherited:
            self._sync_inherited()
        todo = dict(self._large)
        self._sync_large(todo, whole=True)
        self._cross_off(todo)
        self._sync_small()

    def _sync_large(self, todo: dict[ChunkId, int], *, whole: bool) -> list[ChunkId]:
        while True:
            failures, again = self._failures, self._doubted.intersection(todo)
            gone = [cid for cid in again if not self._write_anew(cid)]
            try:
                if whole:
                    self._files.sync_filesystem()
                elif todo:
                    gone = self._files.sync(todo)
            except FsError:
                self._doubted.update(self._large if whole else todo)
                self._failures += 1
                raise
            if failures == self._failures:  # else another thread was told, not this one
                self._doubted -= again
                return gone

    def _sync_inherited(self) -> None:
        self._sync_large({}, whole=True)
        self._database.sync()
        self._inherited = False

    def _sync_small(self) -> None:
        written = self._small_written
        if written != self._small_synced:
            self._database.sync()
            self._small_synced = written

    def _cross_off(self, synced: dict[ChunkId, int]) -> None:
        for cid, ticket in synced.items():
            if self._large.get(cid) == ticket:
                self._large.pop(cid, None)
