"""Reading and writing objects: what the file system waits for.

`Store` adds what happens behind it. The promises are in `store.py`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable

from fusefs.errors import ChunkMissing, Corrupt, FsError
from fusefs.model.ids import CHUNK_ID_BYTES, HOLE, ChunkId, chunk_id
from fusefs.store.database import Database
from fusefs.store.descriptors import ChunkFile, Descriptors
from fusefs.store.durability import Durability
from fusefs.store.files import Files, path_of
from fusefs.store.index import Index
from fusefs.store.locking import WriteLock
from fusefs.store.reserve import Reserve
from fusefs.store.space import Space
from fusefs.store.suspects import Suspects
from fusefs.store.types import (
    MAX_OBJECT_BYTES,
    PUSHED,
    SMALL_LIMIT_BYTES,
    Buffer,
    Clock,
)

log = logging.getLogger(__name__)

DAMAGE = (errno.EIO, errno.ELOOP)
"""What a file cannot be opened for that is of the disk. Else its bytes may be sound, as
those of one that another user made."""
KNOWN_LIMIT = 32768
"""Sizes remembered: about 6 MiB of memory; beyond it all are forgotten."""
WRITTEN_LIMIT = 16384
"""Of `written`, about 2 MiB of memory; beyond it all are forgotten."""


class Objects:
    """The part of the store on the path of reads and writes."""

    def __init__(
        self,
        files: Files,
        lock: WriteLock,
        database: Database,
        space: Space,
        reserve: Reserve,
        suspects: Suspects,
        clock: Clock,
    ) -> None:
        self.files = files
        self.lock = lock
        self.database = database
        self.index = Index(database)
        self.space = space
        self.reserve = reserve
        self.suspects = suspects
        self._clock = clock
        self._descriptors = Descriptors()
        self._unpacked = Descriptors(files.most_unpacked)
        self._known: dict[ChunkId, int] = {}
        self._durability = Durability(files, database, self._write_anew)
        self.written: set[ChunkId] = set()
        """Large objects that `put` stored here lately. A small one found again is not
        always renewed (`index.py`), so that none may go early."""
        self._used: dict[ChunkId, int] = {}
        self._began_s = clock()
        self._seen_whole: set[ChunkId] = set()
        """Large objects of earlier times that this process has hashed."""

    # -- writing --------------------------------------------------------------

    def require_space(self, size_bytes: int) -> None:
        """Raises NoSpace when that many bytes more would not fit: ask before
        accepting a write that is only buffered."""
        self.space.require(size_bytes)
        self.reserve.require()

    def put(
        self,
        data: Buffer,
        cid: ChunkId | None = None,
        *,
        pushed: bool = True,
        removes: bool = False,
    ) -> ChunkId:
        """Store bytes made here; readable by both processes when it returns.

        Args: data: up to 1 MiB, not kept; cid: its id when the caller has it.
        pushed: keep it until the peers have confirmed enough copies; removes: more will
        go because of it, so it may take what is kept free.
        Raises: NoSpace, before anything is stored.
        """
        if cid is None:
            cid = chunk_id(data)
        if not removes:
            self.space.require(len(data))
        self._store(cid, data, PUSHED if pushed else 0)
        if len(data) >= SMALL_LIMIT_BYTES:
            self._note_written(cid)
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
        try:
            with self.lock:
                self._finish_for_killed()
                self.lock.note(cid)
                self.files.publish(tmp, cid)
                self.index.put_large(cid, len(data), flags, int(self._clock()))
                self.lock.note(HOLE)
                self._durability.wrote_large(cid)
        except BaseException:  # a full disk must not be filled by what failed
            self.files.discard(tmp)
            raise
        self.suspects.clear(cid)
        self._let_go(cid)

    def _write_anew(self, cid: ChunkId) -> bool:
        """A large object's bytes into another file. False: it is not here, or was
        damaged and is no more. Raises NoSpace, Corrupt."""
        fd = self.files.open(cid)
        if fd is None:
            return False
        try:
            data = _hashed_bytes(cid, fd)
        finally:
            os.close(fd)
        if data is None:
            if not self._lost(cid):
                raise Corrupt(f"{path_of(cid)} cannot be read to be written anew")
            return False
        tmp = self.files.write(data)
        try:
            with self.lock:
                is_here = self.index.flags(cid) is not None
                if is_here:
                    self.files.publish(tmp, cid)
        finally:
            self.files.discard(tmp)
        self._let_go(cid)
        return is_here

    def _let_go(self, cid: ChunkId) -> None:
        self._descriptors.drop(cid)
        self._unpacked.drop(cid)

    def _finish_for_killed(self) -> None:
        """Who was killed, or had no room on the disk, between a file and its row has
        the row made, or removed, for it. It may have been the only copy, so it counts
        as pushed. The caller holds `lock`."""
        cid = ChunkId(self.lock.noted(CHUNK_ID_BYTES))
        if cid == HOLE:
            return
        stat = self.files.stat(cid)
        if stat is None:
            self.index.delete_large(cid)
        elif self.index.flags(cid) is None:
            self.index.put_large(cid, stat.st_size, PUSHED, int(stat.st_mtime))
        self.lock.note(HOLE)

    def _keep_present(self, cid: ChunkId, size: int, flags: int) -> bool:
        """True when a sound copy is here already; it is then renewed and counts as
        written by this call. Its writer may not have synced it, so we do."""
        stat = self.files.stat(cid)
        if stat is None or stat.st_size != size:
            return False
        if self._doubtful(cid, stat.st_mtime) and not self.verify(cid):
            return False
        with self.lock:
            now_s = self._clock()
            if not self.files.renew(cid, now_s):
                return False
            self.index.put_large(cid, size, flags, int(now_s))
            self._durability.wrote_large(cid)
        self.suspects.clear(cid)
        return True

    def _note_written(self, cid: ChunkId) -> None:
        if len(self.written) >= WRITTEN_LIMIT:
            self.written.clear()
        self.written.add(cid)

    def _remember(self, cid: ChunkId, size: int) -> None:
        if len(self._known) >= KNOWN_LIMIT:
            self._known.clear()
        self._known[cid] = size

    # -- reading --------------------------------------------------------------

    def get(self, cid: ChunkId) -> bytes:
        """The whole object. Raises ChunkMissing, also for one that is damaged (it is
        deleted, and can be fetched again)."""
        if self._known.get(cid, 0) < SMALL_LIMIT_BYTES:
            data = self._get_small(cid)
            if data is not None:
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
        data = self._get_small(cid)
        if data is None:
            raise self._missing(cid)
        part = memoryview(data)[offset : offset + len(into)]
        into[: len(part)] = part
        return len(part)

    def _get_small(self, cid: ChunkId) -> bytes | None:
        """A small object, hashed each time: that costs less than asking for it."""
        data = self.index.get_small(cid)
        if data is None:
            return None
        if chunk_id(data) != cid:
            self._lost(cid)
            return None
        self._remember(cid, len(data))
        return data

    def _doubtful(self, cid: ChunkId, mtime_s: float) -> bool:
        """Whether a large object must be hashed before it is used: bytes rot on disks,
        and a power cut leaves files half written. What was stored since this process
        began was hashed by who stored it."""
        if (cid, mtime_s) in self.suspects:
            return True
        return mtime_s < self._began_s and cid not in self._seen_whole

    def _open(self, cid: ChunkId) -> ChunkFile | None:
        """Open a large object, after hashing it if that is in doubt."""
        unpacked = self._unpacked.get(cid)
        if unpacked is not None:
            return unpacked
        try:
            fd = self.files.open(cid)
        except OSError as error:
            if self._lost(cid):
                return None
            raise Corrupt(f"opening {path_of(cid)}: {error.strerror}") from error
        if fd is None:
            return None
        stat = os.fstat(fd)
        file = ChunkFile(fd, stat.st_size)
        doubtful = not file.size or self._doubtful(cid, stat.st_mtime)
        if doubtful and not self._sound(cid, file):
            self._lost(cid)
            return None
        kept = self._descriptors if stat.st_nlink else self._unpacked
        kept.add(cid, file)
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

    # -- removing -------------------------------------------------------------

    def delete(self, cid: ChunkId) -> None:
        """Remove an object, whatever its flags; nothing happens if it is not here."""
        with self.lock:
            self.remove_locked(cid)

    def remove_locked(self, cid: ChunkId) -> None:
        """Remove file, row and what is remembered; the caller holds `lock`. Raises
        NoSpace, and the file has given its room back then: it goes first."""
        self._finish_for_killed()
        self._let_go(cid)
        self._known.pop(cid, None)
        self.written.discard(cid)
        self._durability.removed(cid)
        self.lock.note(cid)
        if self.files.unlink(path_of(cid)) or not self.index.delete_small(cid):
            self.index.delete_large(cid)
        self.lock.note(HOLE)

    # -- checking -------------------------------------------------------------

    def verify(self, cid: ChunkId) -> bool:
        """Read the object from the disk and hash it. Raises ChunkMissing; OSError when
        it may be sound and cannot be opened."""
        data = self.index.get_small(cid)
        if data is not None:
            return chunk_id(data) == cid
        try:
            fd = self.files.open(cid)
        except OSError as error:
            if error.errno not in DAMAGE:
                raise
            log.warning("opening %s: %s", path_of(cid), error.strerror)
            return False
        if fd is None:
            raise self._missing(cid)
        return self._sound(cid, ChunkFile(fd, os.fstat(fd).st_size))

    def _sound(self, cid: ChunkId, file: ChunkFile) -> bool:
        if _hashed_bytes(cid, file.fd) is None:
            return False
        self.suspects.clear(cid)
        if len(self._seen_whole) >= KNOWN_LIMIT:
            self._seen_whole.clear()
        self._seen_whole.add(cid)
        return True

    def delete_if_damaged(self, cid: ChunkId) -> bool:
        """True if the bytes, read twice, did not match their id: they are gone (unless
        the disk refuses even that)."""
        try:
            if self.verify(cid) or self.verify(cid):
                return False
        except ChunkMissing:
            return False
        except FsError:
            raise
        except OSError as error:
            log.error("%s cannot be opened: %s", path_of(cid), error.strerror)
            return False
        log.warning("%s is damaged; it is deleted and fetched again", path_of(cid))
        try:
            self.delete(cid)
        except FsError:
            raise
        except OSError as error:
            log.error("%s cannot be deleted: %s", path_of(cid), error.strerror)
        return True

    def _lost(self, cid: ChunkId) -> bool:
        """`delete_if_damaged` for a reader, who fetches it again as any other. It may
        have been a copy that others count on."""
        damaged = self.delete_if_damaged(cid)
        if damaged:
            self.note_lost()
        return damaged

    def note_lost(self) -> None:
        """The node sees to it that what it keeps is here again (`lost_s`)."""
        with self.lock:
            self.index.set_state("lost_s", self._clock())


def _hashed_bytes(cid: ChunkId, fd: int) -> bytes | None:
    """The bytes of a large object; None if they are not its own."""
    try:
        data = os.pread(fd, MAX_OBJECT_BYTES + 1, 0)
    except OSError as error:
        log.warning("reading %s: %s", path_of(cid), error.strerror)
        return None
    return data if chunk_id(data) == cid else None
