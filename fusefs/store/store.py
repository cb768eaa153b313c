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
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from fusefs.errors import ChunkMissing, Corrupt
from fusefs.model.ids import HOLE, ChunkId, chunk_id
from fusefs.store import cache, check, scrub
from fusefs.store.database import Database
from fusefs.store.descriptors import ChunkFile, Descriptors
from fusefs.store.durability import Durability
from fusefs.store.files import Files, path_of
from fusefs.store.index import Index
from fusefs.store.locking import WriteLock
from fusefs.store.space import Space
from fusefs.store.suspects import Suspects, window_start
from fusefs.store.types import (
    MAX_OBJECT_BYTES,
    PUSHED,
    SMALL_LIMIT_BYTES,
    Buffer,
    Clock,
    Object,
    Problem,
    Progress,
    StoreStatistics,
)

log = logging.getLogger(__name__)

KNOWN_LIMIT = 32768
"""Sizes remembered: about 6 MiB of memory; beyond it all are forgotten."""
EVICT_EVERY_BYTES = 64 << 20
"""After so many fetched bytes the quota is looked at: how far it is overrun."""
_BATCH = 256
"""Objects changed under one hold of the lock: a few milliseconds at most."""


class Store:
    """Everything a node keeps of the cluster's bytes. Open with `Store.open`."""

    def __init__(
        self,
        files: Files,
        lock: WriteLock,
        database: Database,
        space: Space,
        suspects: Suspects,
        *,
        cache_quota_bytes: int | None,
        clock: Clock,
    ) -> None:
        self.files = files
        self.lock = lock
        self.database = database
        self.index = Index(database)
        self.space = space
        self.suspects = suspects
        self.cache_quota_bytes = cache_quota_bytes
        self._clock = clock
        self._descriptors = Descriptors()
        self._known: dict[ChunkId, int] = {}
        self._durability = Durability(files, database)
        self._fetched_bytes = 0
        self._used: dict[ChunkId, int] = {}
        self._closed = False

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        power_cut: bool = False,
        min_free_bytes: int | None = None,
        cache_bytes: int | None = None,
        clock: Clock = time.time,
    ) -> Store:
        """The store in `directory`, made when it is not there yet.

        Args: power_cut: the machine stopped without a clean stop of this store;
        min_free_bytes: free space that is never used, default `space`'s;
        cache_bytes: limit for objects without a flag, None for no limit.
        """
        files = Files(directory / "objects")
        lock = WriteLock(directory / "objects" / "lock")
        database = Database(directory / "small.db", lock)
        index = Index(database)
        suspect_s = index.state("suspect_s")
        if power_cut:
            suspect_s = window_start(index.state("synced_s"), suspect_s)
            with lock:
                index.set_state("suspect_s", suspect_s)
        files.remove_stale_tmp(clock())
        return cls(
            files,
            lock,
            database,
            Space(files.fd, min_free_bytes),
            Suspects(suspect_s),
            cache_quota_bytes=cache_bytes,
            clock=clock,
        )

    # -- writing --------------------------------------------------------------

    def require_space(self, size_bytes: int) -> None:
        """Raises NoSpace when that many bytes more would not fit: ask before
        accepting a write that is only buffered."""
        self.space.require(size_bytes)

    def put(
        self, data: Buffer, cid: ChunkId | None = None, *, pushed: bool = True
    ) -> ChunkId:
        """Store bytes made here; readable by both processes when it returns.

        Args: data: up to 1 MiB, not kept; cid: its id when the caller has it.
        pushed: keep it until the peers have confirmed enough copies.
        Raises: NoSpace, before anything is stored.
        """
        if cid is None:
            cid = chunk_id(data)
        self.space.require(len(data))
        self._store(cid, data, PUSHED if pushed else 0)
        return cid

    def put_many(
        self, items: Iterable[tuple[ChunkId, Buffer]], *, pushed: bool = True
    ) -> None:
        """Store several objects, the small ones in one transaction. The ids are
        trusted. Raises NoSpace, before anything is stored."""
        batch = list(items)
        self.space.require(sum(len(data) for _, data in batch))
        flags = PUSHED if pushed else 0
        small = [item for item in batch if len(item[1]) < SMALL_LIMIT_BYTES]
        with self.lock:
            self.index.put_smalls(small, flags, int(self._clock()))
            self._durability.wrote_small()
        for cid, data in small:
            self._remember(cid, len(data))
        for cid, data in batch:
            if len(data) >= SMALL_LIMIT_BYTES:
                self._store(cid, data, flags)

    def put_verified(self, cid: ChunkId, data: Buffer, flags: int = 0) -> None:
        """Store bytes that came from a peer, as cache unless flags say otherwise.

        Raises: Corrupt when they are not the object's; NoSpace.
        """
        if len(data) > MAX_OBJECT_BYTES or chunk_id(data) != cid:
            raise Corrupt(f"received bytes are not those of {cid.hex()}")
        self._fetched_bytes += len(data)
        over = self.space.free_bytes() - len(data) < self.space.min_free_bytes
        if over or self._fetched_bytes >= EVICT_EVERY_BYTES:
            self._fetched_bytes = 0
            self.evict()
        self.space.require_for_cache(len(data))
        self._store(cid, data, flags)

    def _store(self, cid: ChunkId, data: Buffer, flags: int) -> None:
        size = len(data)
        if size < SMALL_LIMIT_BYTES:
            with self.lock:
                self.index.put_small(cid, data, flags, int(self._clock()))
                self._durability.wrote_small()
        elif size <= MAX_OBJECT_BYTES:
            self._store_large(cid, data, flags)
        else:
            raise ValueError(f"an object of {size} bytes is longer than a chunk")
        self._remember(cid, size)

    def _store_large(self, cid: ChunkId, data: Buffer, flags: int) -> None:
        if self._keep_present(cid, len(data), flags):
            return
        tmp = self.files.write(data)
        with self.lock:
            self.files.publish(tmp, cid)
            self.index.put_large(cid, len(data), flags, int(self._clock()))
            self._durability.wrote_large(cid)
        self.suspects.clear(cid)
        self._descriptors.drop(cid)

    def _keep_present(self, cid: ChunkId, size: int, flags: int) -> bool:
        """True when a sound copy is here already; it is then renewed and counts as
        written by this call. Its writer may not have synced it, so we do."""
        stat = self.files.stat(cid)
        if stat is None or stat.st_size != size:
            return False
        if (cid, stat.st_mtime) in self.suspects and not self.verify(cid):
            return False
        with self.lock:
            now_s = self._clock()
            if not self.files.renew(cid, now_s):
                return False
            self.index.put_large(cid, size, flags, int(now_s))
            self._durability.wrote_large(cid)
        self.suspects.clear(cid)
        return True

    def _remember(self, cid: ChunkId, size: int) -> None:
        if len(self._known) >= KNOWN_LIMIT:
            self._known.clear()
        self._known[cid] = size

    # -- reading --------------------------------------------------------------

    def get(self, cid: ChunkId) -> bytes:
        """The whole object. Raises ChunkMissing, also for one that a power cut
        damaged (it is deleted, and can be fetched again)."""
        if self._known.get(cid, 0) < SMALL_LIMIT_BYTES:
            data = self.index.get_small(cid)
            if data is not None:
                self._remember(cid, len(data))
                return data
        file = self._descriptors.get(cid) or self._open(cid)
        if file is None:
            raise self._missing(cid)
        try:
            data = os.pread(file.fd, file.size, 0)
        except OSError as error:
            raise Corrupt(f"reading {path_of(cid)}: {error.strerror}") from error
        if len(data) != file.size:
            raise Corrupt(f"{path_of(cid)} is shorter than it was")
        return data

    def read_into(self, cid: ChunkId, offset: int, into: memoryview) -> int:
        """Read at an offset of the object; gives how many bytes, fewer than asked
        only at its end. Raises ChunkMissing like `get`."""
        file = self._descriptors.get(cid)
        if file is None:
            size = self._known.get(cid)
            if size is None or size >= SMALL_LIMIT_BYTES:
                file = self._open(cid)
            if file is None:
                return self._read_small(cid, offset, into)
        try:
            return os.preadv(file.fd, (into,), offset)
        except OSError as error:
            raise Corrupt(f"reading {path_of(cid)}: {error.strerror}") from error

    def _read_small(self, cid: ChunkId, offset: int, into: memoryview) -> int:
        data = self.index.get_small(cid)
        if data is None:
            raise self._missing(cid)
        self._remember(cid, len(data))
        part = memoryview(data)[offset : offset + len(into)]
        into[: len(part)] = part
        return len(part)

    def _open(self, cid: ChunkId) -> ChunkFile | None:
        """Open a large object, after hashing it if it is a suspect."""
        fd = self.files.open(cid)
        if fd is None:
            return None
        stat = os.fstat(fd)
        file = ChunkFile(fd, stat.st_size)
        if (cid, stat.st_mtime) in self.suspects and not self._sound(cid, file):
            scrub.delete_if_damaged(self, cid)
            return None
        self._descriptors.add(cid, file)
        self._remember(cid, file.size)
        self._used[cid] = int(self._clock())
        return file

    def _missing(self, cid: ChunkId) -> ChunkMissing:
        self._known.pop(cid, None)
        return ChunkMissing(f"{cid.hex()} is not in the store")

    def has(self, cid: ChunkId) -> bool:
        """Is the object here? A yes may be out of date after the other process
        evicted it: reading then says ChunkMissing. A no is always true."""
        return cid in self._known or self._size(cid) is not None

    def size(self, cid: ChunkId) -> int:
        """The object's length in bytes. Raises ChunkMissing."""
        size = self._known.get(cid)
        if size is None:
            size = self._size(cid)
        if size is None:
            raise self._missing(cid)
        return size

    def _size(self, cid: ChunkId) -> int | None:
        size = self.index.small_size(cid)
        if size is None:
            stat = self.files.stat(cid)
            if stat is None:
                return None
            size = stat.st_size
        self._remember(cid, size)
        return size

    def missing(self, cids: Iterable[ChunkId]) -> list[ChunkId]:
        """Those not here, each once, in order, holes left out; always looks."""
        wanted = [cid for cid in dict.fromkeys(cids) if cid != HOLE]
        maybe_small = [
            cid for cid in wanted if self._known.get(cid, 0) < SMALL_LIMIT_BYTES
        ]
        small = self.index.small_sizes(maybe_small)
        absent = []
        for cid in wanted:
            if cid not in small and self.files.stat(cid) is None:
                self._known.pop(cid, None)
                absent.append(cid)
        return absent

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
                yield item._replace(stored_s=stat.st_mtime)

    # -- durability -----------------------------------------------------------

    def sync(self, cids: Iterable[ChunkId]) -> None:
        """These objects, as far as this process wrote them, survive a power cut when
        it returns. Raises ChunkMissing when one is gone; Corrupt (EIO)."""
        for cid in self._durability.sync(cids):
            raise self._missing(cid)

    def sync_all(self) -> None:
        """The background sync: everything written so far, by both processes, is
        durable when it returns. Call it every few seconds from a thread that may
        wait; it also settles the accounts that reads leave behind."""
        self._descriptors.drop_deleted()
        self._write_used()
        if self._durability.dirty:
            began_s = self._clock()
            self._durability.sync_all()
            with self.lock:
                self.index.set_state("synced_s", began_s)
        self.database.checkpoint()

    def _write_used(self) -> None:
        used, self._used = self._used, {}
        for batch in _batches(used):
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
                        self.files.renew(cid, now_s)

    def flags(self, cid: ChunkId) -> int:
        """The object's flags. Raises ChunkMissing."""
        with self.lock:
            flags = self.index.flags(cid)
        if flags is None:
            raise self._missing(cid)
        return flags

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
        return self.files.renew(cid, now_s) or self.index.renew_small(cid, int(now_s))

    def delete(self, cid: ChunkId) -> None:
        """Remove an object, whatever its flags; nothing happens if it is not here."""
        with self.lock:
            self.remove_locked(cid)

    def delete_older(
        self, cid: ChunkId, before_s: float, *, only_cache: bool = False
    ) -> bool:
        """Remove an object unless it was stored or renewed since; True if removed.
        With `only_cache`, nor when it has a flag."""
        with self.lock:
            if only_cache and self.index.flags(cid) != 0:
                return False
            stat = self.files.stat(cid)
            if stat is not None and stat.st_mtime >= before_s:
                return False
            if stat is None and not self.index.small_is_older(cid, before_s):
                return False
            self.remove_locked(cid)
        return True

    def drop(self, cids: Iterable[ChunkId]) -> int:
        """Remove those without any flag (nobody needs our copy); bytes freed."""
        return cache.drop(self, cids)

    def evict(self) -> int:
        """Remove cache, least recently used first, until it is within its quota and
        the disk has its free space again; gives the bytes freed."""
        return cache.evict(self)

    def remove_locked(self, cid: ChunkId) -> None:
        """Remove file, row and what is remembered; the caller holds `lock`."""
        if self.files.unlink(path_of(cid)) or not self.index.delete_small(cid):
            self.index.delete_large(cid)
        self._descriptors.drop(cid)
        self._known.pop(cid, None)
        self._durability.removed(cid)

    # -- checking -------------------------------------------------------------

    def verify(self, cid: ChunkId) -> bool:
        """Read the object from the disk and hash it. Raises ChunkMissing."""
        data = self.index.get_small(cid)
        if data is not None:
            return chunk_id(data) == cid
        fd = self.files.open(cid)
        if fd is None:
            raise self._missing(cid)
        return self._sound(cid, ChunkFile(fd, os.fstat(fd).st_size))

    def _sound(self, cid: ChunkId, file: ChunkFile) -> bool:
        try:
            data = os.pread(file.fd, MAX_OBJECT_BYTES + 1, 0)
        except OSError as error:
            log.warning("reading %s: %s", path_of(cid), error.strerror)
            return False
        if chunk_id(data) != cid:
            return False
        self.suspects.clear(cid)
        return True

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
            open_files=len(self._descriptors),
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
            self.database.close()
            self.lock.close()
            self.files.close()


def _batches(cids: Iterable[ChunkId]) -> Iterator[list[ChunkId]]:
    rest = iter(cids)
    while batch := list(itertools.islice(rest, _BATCH)):
        yield batch
