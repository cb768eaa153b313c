"""Which locks the programs of this mount hold, kept where the next worker finds them.

The kernel keeps no lock that it asked us for: a program goes on in the belief that it
excludes others, whichever worker answers. So each change is appended to a small file
before it is answered (docs/formats.md, section 10.1), and an upgrade or a kill takes no
lock from anybody. Never synced: a power cut ends the programs, too.

Made before the link and the vfs, which both begin with `held`; afterwards `Locks` calls
it under the lock of its tables.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from xxhash import xxh3_64_intdigest

from fusefs.model.ids import Ino
from fusefs.nodelink.ranges import UNLOCK, HeldLock, LockKey, Range, changed

log = logging.getLogger(__name__)

_HEADER = b"dfs locks 1\n".ljust(64, b"\0")
_RECORD = struct.Struct("<QQQQQIBB10x")
_CHECKSUM = struct.Struct("<Q")
_RECORD_BYTES = _RECORD.size + _CHECKSUM.size
"""Pages are multiples of it: a kill leaves no half of one."""
_THROUGH = 3
"""The kind that says only through which handle an owner locked."""
_ANEW_BYTES = 64 << 10
"""A shorter file is not worth writing anew."""

Through = tuple[Ino, set[int]]
"""The inode of a handle, and the owners that locked through it."""


class LockJournal:
    """See the module."""

    def __init__(self, path: Path | None = None, *, same_mount: bool = True) -> None:
        """`path` None: nothing outlives this process. `same_mount`: what an earlier
        worker left is of this mount; otherwise it is void."""
        self._path = path
        self._fd = -1
        self._size_bytes = self._limit_bytes = 0
        self.held: dict[LockKey, list[Range]] = {}
        """What the worker before left."""
        self.through: dict[int, Through] = {}
        """By handle: whose locks go when it is released."""
        if path is not None and same_mount:
            self._read(path)
        self.rewrite(self.all_held(), self.through)

    def all_held(self) -> list[HeldLock]:
        """What the worker before left, as the node is told."""
        return [HeldLock(key, r) for key, ranges in self.held.items() for r in ranges]

    def append(self, key: LockKey, change: Range, handle: int) -> bool:
        """Note a change that the cluster agreed to. False when it is not noted:
        `rewrite` the file then."""
        if self._path is None:
            return True
        if self._fd < 0 or self._size_bytes >= self._limit_bytes:
            return False
        record = _record(key, change, handle)
        try:
            if os.write(self._fd, record) == len(record):
                self._size_bytes += len(record)
                return True
            log.warning("%s was not written whole", self._path)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)
        return False

    def rewrite(self, held: Iterable[HeldLock], through: dict[int, Through]) -> None:
        """Say it all anew. If that fails there is no file: better a lock forgotten
        than one that nobody can drop."""
        path = self._path
        if path is None:
            return
        fresh = path.with_suffix(".new")
        parts = [_HEADER, *(_record(lock.key, lock.range, 0) for lock in held)]
        for handle, (ino, owners) in through.items():
            key = LockKey(ino, False)
            parts += [_record(key, Range(o, _THROUGH), handle) for o in owners]
        self.close()
        try:
            self._fd = _write(fresh, b"".join(parts))
            fresh.replace(path)
        except OSError as error:
            log.warning("locks are not kept for the next worker: %s", error)
            self.close()
            path.unlink(missing_ok=True)
            fresh.unlink(missing_ok=True)
            return
        self._size_bytes = len(parts) * _RECORD_BYTES
        self._limit_bytes = max(_ANEW_BYTES, 3 * self._size_bytes)

    def close(self) -> None:
        """Let go of the file, which stays for the next worker."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # -- reading -----------------------------------------------------------------

    def _read(self, path: Path) -> None:
        try:
            self._replay(path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("the locks of the worker before are lost: %s", error)
            self.held, self.through = {}, {}

    def _replay(self, data: bytes) -> None:
        locked: dict[tuple[Ino, int], set[int]] = {}
        """Inode and owner: through which handles."""
        if data[: len(_HEADER)] != _HEADER or len(data) % _RECORD_BYTES:
            raise ValueError(f"{self._path} is not a journal of locks")
        for at in range(len(_HEADER), len(data), _RECORD_BYTES):
            record = data[at : at + _RECORD.size]
            (checksum,) = _CHECKSUM.unpack_from(data, at + _RECORD.size)
            if checksum != xxh3_64_intdigest(record):
                raise ValueError(f"{self._path} is damaged at {at}")
            ino, owner, handle, start, end, pid, kind, flock = _RECORD.unpack(record)
            key = LockKey(Ino(ino), bool(flock))
            if handle:
                locked.setdefault((key.ino, owner), set()).add(handle)
            if kind != _THROUGH:
                self._change(key, Range(owner, kind, start, end, pid))
            if kind == UNLOCK and not self._holds(key.ino, owner):
                locked.pop((key.ino, owner), None)  # by closing it, perhaps
        for (inode, owner), handles in locked.items():
            if self._holds(inode, owner):
                for handle in handles:
                    self.through.setdefault(handle, (inode, set()))[1].add(owner)

    def _change(self, key: LockKey, change: Range) -> None:
        after = changed(self.held.get(key, ()), change)
        if after:
            self.held[key] = after
        else:
            self.held.pop(key, None)

    def _holds(self, ino: Ino, owner: int) -> bool:
        return any(
            r.owner == owner
            for is_flock in (False, True)
            for r in self.held.get(LockKey(ino, is_flock), ())
        )


def _record(key: LockKey, change: Range, handle: int) -> bytes:
    record = _RECORD.pack(
        key.ino,
        change.owner,
        handle,
        change.start,
        change.end,
        change.pid,
        change.kind,
        key.is_flock,
    )
    return record + _CHECKSUM.pack(xxh3_64_intdigest(record))


def _write(path: Path, data: bytes) -> int:
    """The new file, open for appending. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(f"{path} was not written whole")
    except OSError:
        os.close(fd)
        raise
    return fd
