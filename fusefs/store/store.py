"""The store: the bytes of chunks and manifests on this disk, by their ids.

Worker and node have one directory open at once, each with its own `Store`, used
from any thread. Either may add or delete an object at any time, hence:

* absence is never remembered; presence is (`has`, `size`), and may be wrong after
  the other process evicted: a read then raises ChunkMissing and forgets it, and
  `missing`, which decides what is fetched, always looks;
* every change of the index, with the rename or unlink it belongs to, happens under
  the WriteLock: a put that finds its object present and an eviction of that object
  cannot interleave.

Nothing is made durable before `sync` or `sync_all`.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fusefs.errors import Corrupt, NoSpace
from fusefs.model.ids import ChunkId, chunk_id
from fusefs.store import cache, check, scrub
from fusefs.store.database import PAGE_BYTES, Database
from fusefs.store.files import Files, Stat
from fusefs.store.index import Index
from fusefs.store.locking import WriteLock
from fusefs.store.objects import Objects
from fusefs.store.packing import any_packed, files_in, zstd
from fusefs.store.reserve import Reserve
from fusefs.store.space import Space
from fusefs.store.suspects import Suspects, window_start
from fusefs.store.types import (
    MAX_OBJECT_BYTES,
    RESPONSIBLE,
    Buffer,
    Clock,
    Object,
    Problem,
    Progress,
    StoreStatistics,
)

log = logging.getLogger(__name__)

EVICT_EVERY_BYTES = 64 << 20
"""After so many fetched bytes the quota is looked at: how far it is overrun."""
SHRINK_PAGES = 256
"""Moved under one hold of the lock: a few milliseconds."""
CHECKPOINT_PAGES = 2048
"""Given back between two checkpoints: what moves is in the WAL as well until then."""
_BATCH = 256
"""Objects changed under one hold of the lock: a few milliseconds at most."""


class Store(Objects):
    """Everything a node keeps of the cluster's bytes. Open with `Store.open`."""

    def __init__(
        self,
        files: Files,
        lock: WriteLock,
        database: Database,
        space: Space,
        reserve: Reserve,
        suspects: Suspects,
        clock: Clock,
        cache_quota_bytes: int | None,
    ) -> None:
        super().__init__(files, lock, database, space, reserve, suspects, clock)
        self.cache_quota_bytes = cache_quota_bytes
        self._fetched_bytes = 0
        self._closed = False
        try:
            with lock:
                self._finish_for_killed()
        except NoSpace as error:  # who writes next does it
            log.info("what a predecessor left waits: %s", error)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        power_cut: bool = False,
        min_free_bytes: int | None = None,
        cache_bytes: int | None = None,
        compress: bool = False,
        looks: bool = False,
        clock: Clock = time.time,
    ) -> Store:
        """The store in `directory`, made when it is not there yet.

        Args: power_cut: the machine stopped without a clean stop of this store;
        min_free_bytes: free space that is never used, default `space`'s;
        cache_bytes: limit for objects without a flag, None for no limit;
        compress: large objects are kept as zstd frames from now on; looks: for such
        ones, whatever the database says.
        Raises: NotSupported: zstd is needed, and not installed.
        """
        if compress:
            zstd()
        objects = directory / "objects"
        had_objects = (objects / "tmp").is_dir()
        objects.mkdir(0o700, parents=True, exist_ok=True)
        lock = WriteLock(objects / "lock")

        def packed(is_new: bool) -> bool:
            doubtful = looks or (is_new and had_objects)
            return compress or (doubtful and any_packed(objects))

        # Before what is in objects/: else the other process, which makes a new store at
        # the same time, takes the database for lost.
        database = Database(directory / "small.db", lock, packed)
        if compress:
            database.sync()  # the first such object must not be there without it
        files = files_in(objects, packed=database.has_packed, packs=compress)
        index = Index(database)
        suspect_s = index.state("suspect_s")
        if power_cut:
            suspect_s = window_start(index.state("synced_s"), suspect_s)
            with lock:
                index.set_state("suspect_s", suspect_s)
        files.remove_stale_tmp(clock())
        space = Space(files.fd, min_free_bytes)
        store = cls(
            files,
            lock,
            database,
            space,
            Reserve(directory, space),
            Suspects(suspect_s),
            clock,
            cache_bytes,
        )
        if database.is_new and had_objects:
            log.warning(
                "small.db was gone, and what was in it: others are asked for what this "
                "node keeps; unmounted, `dfs fsck --repair` says what they have not"
            )
            store.note_lost()
        return store

    # -- durability -----------------------------------------------------------

    def sync(self, cids: Iterable[ChunkId]) -> None:
        """These objects, as far as this process wrote them, survive a power cut when
        it returns. Raises ChunkMissing when one is gone; Corrupt (EIO)."""
        for cid in self._durability.sync(cids):
            raise self._missing(cid)

    def inherit(self) -> None:
        """Who opened the store before may have been killed: the next sync makes
        durable what it wrote, too."""
        self._durability.inherit()

    def sync_all(self) -> None:
        """The background sync: everything written so far, by both processes, is
        durable when it returns. Call it every few seconds from a thread that may
        wait; it also settles the accounts that reads leave behind."""
        self._descriptors.drop_deleted()
        if self.index.state("suspect_s") is None:
            self.suspects.end()  # whichever process looked at them
        began_s = None
        if self._durability.dirty:
            began_s = self._clock()
            self._durability.sync_all()
        try:
            self._settle_accounts(began_s)
            self.database.checkpoint()
        except NoSpace as error:  # what is durable needs neither
            log.info("the accounts of the store wait: %s", error)

    def _settle_accounts(self, synced_s: float | None) -> None:
        if synced_s is not None:
            with self.lock:
                self.index.set_state("synced_s", synced_s)
        used, self._used = self._used, {}
        for batch in _batches(list(used)):
            with self.lock:
                self.index.used({cid: used[cid] for cid in batch})

    # -- keeping and dropping -------------------------------------------------

    def set_flags(
        self, cids: Iterable[ChunkId], *, set_: int = 0, clear: int = 0
    ) -> None:
        """Change the flags of the objects that are here. What gains a flag is also
        renewed: somebody relies on it from now on."""
        for batch in _batches(cids):
            with self.lock, self.database.transaction():
                now_s = self._clock()
                for cid in batch:
                    self.index.set_flags(cid, set_, clear, int(now_s))
                    if set_:
                        self.index.renew_large(cid, int(now_s))

    def flags(self, cid: ChunkId) -> int:
        """The object's flags. Raises ChunkMissing."""
        with self.lock:
            flags = self.index.flags(cid)
        if flags is None:
            raise self._missing(cid)
        return flags

    def without(self, flag: int, cids: Iterable[ChunkId]) -> list[ChunkId]:
        """Those of these objects that are here and have not this flag."""
        return [c for batch in _batches(cids) for c in self.index.without(flag, batch)]

    def pushed(self) -> Iterator[tuple[ChunkId, int]]:
        """(id, size) of every object the peers have not confirmed enough copies of."""
        mark = self.index.last_before_pushed()
        if mark:
            with self.lock:
                self.index.skip_pushed_up_to(*mark)
        yield from self.index.pushed_larges()
        yield from self.index.pushed_smalls()

    def touch(self, cids: Iterable[ChunkId]) -> list[ChunkId]:
        """Renew a lease: GC leaves these alone for another grace time though no
        register names them (unpublished writes, open unlinked files). Gives those
        that are not here."""
        gone = []
        for batch in _batches(cids):
            with self.lock, self.database.transaction():
                now_s = self._clock()
                gone += [cid for cid in batch if not self._renew(cid, now_s)]
        return gone

    def _renew(self, cid: ChunkId, now_s: float) -> bool:
        """In the index only: a file's time says when its bytes were seen to be right
        (`_doubtful`)."""
        if self.files.stat(cid) is None:
            return self.index.renew_small(cid, int(now_s))
        self.index.renew_large(cid, int(now_s))
        return True

    def delete_older(
        self, cid: ChunkId, before_s: float, *, only_cache: bool = False
    ) -> bool:
        """Remove an object unless it was stored or renewed since; True if removed.
        With `only_cache`, nor when it has a flag."""
        with self.lock:
            if only_cache and self.index.flags(cid) != 0:
                return False
            stat = self.files.stat(cid)
            if stat is not None and _stored_s(stat, self.index.used_s(cid)) >= before_s:
                return False
            if stat is None and not self.index.small_is_older(cid, before_s):
                return False
            self.remove_locked(cid)
        return True

    def drop(self, cids: Iterable[ChunkId]) -> int:
        """Remove those without any flag (nobody needs our copy); bytes freed."""
        return cache.drop(self, cids)

    def evict(self, incoming_bytes: int = 0) -> int:
        """Remove cache, least recently used first, until it is within its quota and
        the disk has its free space again, with room for what comes in; gives the bytes
        freed."""
        return cache.evict(self, incoming_bytes)

    def shrink(self, keep_bytes: int, pause: Callable[[], None] = lambda: None) -> int:
        """Give the disk back what removed small objects took, but for so much, which
        is for new ones; bytes given back. `pause`: called now and then, without a lock
        held; may raise to stop."""
        keep, given = keep_bytes // PAGE_BYTES, 0
        while (free := self.database.free_pages()) > keep:
            with self.lock:
                self.database.shrink(min(free - keep, SHRINK_PAGES))
            left = self.database.free_pages()
            if left >= free:
                break
            before, given = given, given + free - left
            if given // CHECKPOINT_PAGES > before // CHECKPOINT_PAGES:
                self.database.checkpoint()
            pause()
        if given:
            self.database.checkpoint(0)
        return given * PAGE_BYTES

    def put_verified(self, cid: ChunkId, data: Buffer, flags: int = 0) -> None:
        """Store bytes that came from a peer, as cache unless flags say otherwise.

        Raises: Corrupt when they are not the object's; NoSpace.
        """
        if len(data) > MAX_OBJECT_BYTES or chunk_id(data) != cid:
            raise Corrupt(f"received bytes are not those of {cid.hex()}")
        self._fetched_bytes += len(data)
        space, is_copy = self.space, flags & RESPONSIBLE
        floor = space.kept_from_copies_bytes if is_copy else space.min_free_bytes
        over = space.free_bytes() - len(data) < floor
        if over or self._fetched_bytes >= EVICT_EVERY_BYTES:
            self._fetched_bytes = 0
            # Not what a reader waits for, who needs several chunks at once.
            cache.evict(self, len(data), floor, space.spared_cache_bytes)
        if is_copy:
            space.require_for_copy(len(data))
        else:
            try:
                space.require_for_cache(len(data))
            except NoSpace:
                cache.evict(self, len(data))
                space.require_for_cache(len(data))
        self._store(cid, data, flags)

    def objects(self) -> Iterator[tuple[ChunkId, int]]:
        """(id, size) of every object in the index; no lock is held between them."""
        for item in itertools.chain(self.index.smalls(), self.index.larges()):
            yield item.cid, item.size

    def stored(self) -> Iterator[Object]:
        """Every object with its flags and the time its grace counts from."""
        yield from self.index.smalls()
        for item in self.index.larges():
            stat = self.files.stat(item.cid)
            if stat is not None:
                yield item._replace(stored_s=_stored_s(stat, item.stored_s))

    # -- checking -------------------------------------------------------------

    def check_suspects(self) -> list[ChunkId]:
        """Hash every object a power cut may have damaged, delete the bad ones (they
        are returned, to be fetched again), and end the suspicion for good. The node
        calls it once after the start."""
        return scrub.check_suspects(self)

    def scrub(
        self, after: ChunkId = scrub.START, budget_bytes: int = 64 << 20
    ) -> scrub.ScrubStep:
        """Hash the next objects; what is damaged is deleted and named."""
        return scrub.scrub(self, after, budget_bytes)

    def balanced(self) -> int | None:
        """What `set_balanced` was told last."""
        return self.index.state("balanced")  # type: ignore[return-value]

    def set_balanced(self, view: int | None) -> None:
        """Everything kept here is where it should be, in this view; None: it may not
        be. Raises NoSpace."""
        with self.lock:
            self.index.set_state("balanced", view)

    def moves_wait(self) -> bool:
        """What `set_moves_wait` was told last."""
        return self.index.state("moved") is not None

    def set_moves_wait(self, waits: bool) -> None:
        """What came to where more nodes keep it may not be here yet. Raises NoSpace."""
        with self.lock:
            self.index.set_state("moved", 1 if waits else None)

    def lost_s(self) -> float | None:
        """When objects were lost last that others may count as our copies; None: they
        are here again."""
        return self.index.state("lost_s")

    def regained(self, lost_s: float) -> None:
        """What was lost up to then is here again, or nobody has it."""
        with self.lock:
            if self.index.state("lost_s") == lost_s:
                self.index.set_state("lost_s", None)

    def check(
        self,
        repair: bool = False,
        *,
        contents: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[Problem]:
        """Everything wrong with files and index, repaired on the way if asked.

        Args: contents: also hash every object; progress: told the objects done.
        """
        return check.check(self, repair=repair, contents=contents, progress=progress)

    def statistics(self) -> StoreStatistics:
        """Counts over everything stored, by both processes."""
        large, large_bytes, pushed = self.index.large_totals()
        return StoreStatistics(
            small=self.index.small_count(),
            small_bytes=self.database.size_bytes(),
            large=large,
            large_bytes=large_bytes,
            cache_bytes=self.index.cache_bytes(),
            pushed=pushed,
            free_bytes=self.space.free_bytes(),
            total_bytes=self.space.total_bytes(),
            unsynced=len(self._durability),
            open_files=len(self._descriptors) + len(self._unpacked),
        )

    def close(self) -> None:
        """Make everything durable and let go. Closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self.sync_all()
        finally:
            self._descriptors.clear()
            self._unpacked.clear()
            self.database.close()
            self.lock.close()
            self.files.close()


def _stored_s(stat: Stat, used_s: float) -> float:
    """When a large object was written, renewed or used."""
    return max(stat.st_mtime, used_s)


def _batches(cids: Iterable[ChunkId]) -> Iterator[list[ChunkId]]:
    rest = iter(cids)
    while batch := list(itertools.islice(rest, _BATCH)):
        yield batch
