"""Starts and ends of a store: whether it was closed cleanly, and what a power cut took.

Notes in the table `meta` (docs/formats.md, section 3).
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

from fusefs.errors import Corrupt
from fusefs.model.context import EPOCHS_PER_POWER_CUT, cuts_into
from fusefs.model.ids import NodeId, Seq
from fusefs.namespace.lock import WriteLock

_AT_FDCWD, _STATX_BTIME, _STATX_BYTES = -100, 0x800, 256
_FIRST_TURN_NS, _TURN_NS = 1_735_689_600 * 10**9, 600 * 10**9
"""Copies get epochs by when they were first used, by steps of ten minutes from 2025."""
_LAST_EPOCH = 1 << 22
"""By the clock: half of what there are (`model.context.writer`), enough for 39 years. A
clock that is far ahead leaves the other half for power cuts."""
_libc = ctypes.CDLL(None)


def boot_id() -> str:
    """Changes with every boot of the kernel (proc(5))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def file_id(path: Path) -> str:
    """Another one for each copy of a file: when it was made (statx(2)); "" where the
    file system does not tell."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    statx = getattr(_libc, "statx", None)
    if statx and statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, buffer) == 0:
        (told,) = struct.unpack_from("=I", buffer, 0)
        if told & _STATX_BTIME:
            return "{}.{:09}".format(*struct.unpack_from("=qI", buffer, 80))
    return ""


def own_id(db: sqlite3.Connection) -> NodeId:
    """The id of the node whose store this is. Raises Corrupt."""
    row = db.execute("SELECT value FROM meta WHERE key = 'node_id'").fetchone()
    if row is None:
        raise Corrupt("meta.db does not say of which node it is")
    return NodeId(int(row[0]))


class Life:
    """Of one namespace; `sync` makes what was noted durable."""

    def __init__(
        self,
        writer: sqlite3.Connection,
        path: Path,
        lock: WriteLock,
        node_id: NodeId,
        sync: Callable[[], None],
        clock: Callable[[], int],
    ) -> None:
        self._path = path
        self._clock = clock
        self._writer = writer
        self._write_lock = lock
        self._node_id = node_id
        self._sync = sync

    def mark_running(self) -> bool:
        """Called once by the owner of the store at start; what it notes is on disk
        when it returns. True: the machine went down without a clean stop, or the store
        is a copy, perhaps an old one: the local seq jumps and objects are suspect."""
        with self._write_lock:
            self._write_lock.raise_counter()
            before, clean = self._meta("boot_id"), self._meta("clean")
            power_cut = bool(before) and not int(clean or 0) and before != boot_id()
            known, file = self._meta("file"), file_id(self._path)
            is_copy = bool(known and file) and known != file
            # those noted before are still there: what came after was lost, too
            skip = int(self._meta("skip") or 0) + 1
            if is_copy:
                # Another copy of the same store may have been used before.
                turn = (self._clock() - _FIRST_TURN_NS) // _TURN_NS
                epoch = min(EPOCHS_PER_POWER_CUT * turn, _LAST_EPOCH)
                skip = max(skip, cuts_into(self._own_seq(), epoch))
            if power_cut or is_copy:
                self._set_meta("skip", skip)
                if not self._meta("lost_after"):
                    self._set_meta("lost_after", self._own_seq())
            self._set_meta("file", file or known)
            self._set_meta("boot_id", boot_id())
            self._set_meta("clean", 0)
        self._sync()
        return power_cut or is_copy

    def lost_after(self) -> Seq | None:
        """After a power cut: own transactions above this may be lost here and known
        to peers, until `found_again`. None: nothing is missing."""
        text = self._meta("lost_after")
        return Seq(int(text)) if text else None

    def found_again(self) -> None:
        """Every member was asked for what was lost here."""
        with self._write_lock:
            self._writer.execute("DELETE FROM meta WHERE key = 'lost_after'")

    def mark_clean(self) -> None:
        """Called by the owner after everything is synced and closed by others."""
        with self._write_lock:
            self._set_meta("clean", 1)
        self._sync()

    def _meta(self, key: str) -> str:
        row = self._writer.execute(
            "SELECT value FROM meta WHERE key = ?", (key,)
        ).fetchone()
        return str(row[0]) if row else ""

    def _set_meta(self, key: str, value: object) -> None:
        self._writer.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))

    def _own_seq(self) -> Seq:
        row = self._writer.execute(
            "SELECT seq FROM vector WHERE node = ?", (self._node_id,)
        ).fetchone()
        return Seq(row[0] if row else 0)
