"""Making small.db anew from what can be read of a damaged one.

Pages are read one by one, without SQLite, which gives up at the first bad one: every
leaf of the file and of its WAL is looked through for rows. A small object counts when
its bytes hash to its id, a large one when its file is there, so that nothing of a page
that is garbage, or was free, can do harm: at most something removed comes back, and
goes with the next garbage collection.

For `dfs fsck --repair`: no process has the store open.

Source: the SQLite database file format, sqlite.org/fileformat2.html, sections 1.2, 1.6,
2.1 and 4.1.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from fusefs.errors import NoSpace
from fusefs.model.ids import CHUNK_ID_BYTES, ChunkId, chunk_id
from fusefs.store.database import (
    PACKED_VERSION,
    PAGE_BYTES,
    SHRINKS,
    allow_packed,
    create_tables,
    sync_directory,
    translated,
)
from fusefs.store.files import Files
from fusefs.store.packing import any_packed, files_in
from fusefs.store.types import ALL_FLAGS, SMALL_LIMIT_BYTES

DAMAGED = "small.db.damaged"
_TABLES = (
    "SELECT n, id, size, stored_s, flags, data FROM small LIMIT 1",
    "SELECT id, size, used_s, flags FROM large LIMIT 1",
    "SELECT key, value FROM state LIMIT 1",
)
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""The last: a table is missing."""
_INDEX_INTERIOR, _INDEX_LEAF, _TABLE_LEAF = 0x02, 0x0A, 0x0D
_WAL_HEADER, _FRAME_HEADER = 32, 24
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_SMALL = (
    "INSERT INTO small(id, size, stored_s, flags, data) VALUES(?, ?, ?, ?, ?)"
    " ON CONFLICT(id) DO UPDATE SET flags = flags | excluded.flags"
)
_LARGE = (
    "INSERT INTO large VALUES(?, ?, ?, ?)"
    " ON CONFLICT(id) DO UPDATE SET flags = flags | excluded.flags"
)

Value = int | bytes | None


def damage(path: Path, *, quick: bool = False) -> str:
    """What is wrong with the database, in one line; "" if nothing. Reads all of it;
    `quick`: without comparing tables and indices.

    Raises: FsError when it cannot be read for another reason.
    """
    if not path.exists():
        return ""
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > PACKED_VERSION:
                return ""  # of a newer program, and its business
            check = "quick_check" if quick else "integrity_check"
            found = [text for (text,) in database.execute(f"PRAGMA {check}(1)")]
            for sql in _TABLES:
                database.execute(sql).fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in _DAMAGE:
            raise translated(error, path) from error
        return str(error)
    return "" if found == ["ok"] else found[0].splitlines()[-1]


def rebuild(directory: Path) -> tuple[int, int]:
    """Put a sound small.db in the place of the damaged one, which stays beside it as
    `small.db.damaged`. Gives how many small and large objects it names.

    Killed at any moment, it leaves the old one or the new one. Raises NoSpace.
    """
    old, new = directory / "small.db", directory / "small.db.new"
    new.unlink(missing_ok=True)
    objects = directory / "objects"
    packed = any_packed(objects)
    files = files_in(objects, packed=packed, packs=False)
    try:
        with closing(files):
            counts = _write(new, _Pages(old), files, packed=packed)
    except sqlite3.Error as error:
        new.unlink(missing_ok=True)
        raise translated(error, old) from error
    except OSError as error:
        raise NoSpace(f"small.db could not be made anew: {error.strerror}") from error
    kept = directory / DAMAGED
    kept.unlink(missing_ok=True)
    os.link(old, kept)
    # The WAL belongs to the old file: what it had is in the new one.
    for suffix in ("-wal", "-shm"):
        old.with_name(old.name + suffix).unlink(missing_ok=True)
    new.replace(old)
    sync_directory(directory)
    return counts


def _write(path: Path, pages: _Pages, files: Files, *, packed: bool) -> tuple[int, int]:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA {SHRINKS}")
        create_tables(database)
        if packed:
            allow_packed(database)
        database.execute("BEGIN")
        for row in pages.rows():
            match row:
                case [None, bytes(cid), int(size), int(at_s), int(flags), bytes(data)]:
                    if _is_small(cid, size, flags, data):
                        database.execute(_SMALL, (cid, size, at_s, flags, data))
                case [bytes(cid), int(size), int(at_s), int(flags)]:
                    if _is_large(files, cid, size, flags):
                        database.execute(_LARGE, (cid, size, at_s, flags))
        database.execute("COMMIT")
        (small,) = database.execute("SELECT count(*) FROM small").fetchone()
        (large,) = database.execute("SELECT count(*) FROM large").fetchone()
    return small, large


def _is_small(cid: bytes, size: int, flags: int, data: bytes) -> bool:
    if not size == len(data) < SMALL_LIMIT_BYTES or flags & ~ALL_FLAGS:
        return False
    return chunk_id(data) == cid


def _is_large(files: Files, cid: bytes, size: int, flags: int) -> bool:
    if len(cid) != CHUNK_ID_BYTES or flags & ~ALL_FLAGS:
        return False
    try:
        found = files.stat(ChunkId(cid))
    except OSError:
        return False
    return found is not None and found.st_size == size


class _Pages:
    """The pages of a database file and of its WAL."""

    def __init__(self, path: Path) -> None:
        self._main = path.open("rb", buffering=0)
        self._count = os.fstat(self._main.fileno()).st_size // PAGE_BYTES
        try:
            self._wal = path.with_name(path.name + "-wal").read_bytes()
        except FileNotFoundError:
            self._wal = b""
        self._frames: dict[int, int] = {}
        """Where in the WAL the latest version of a page is."""
        self._read_frames()

    def _read_frames(self) -> None:
        salts, at = self._wal[16:24], _WAL_HEADER
        step = _FRAME_HEADER + PAGE_BYTES
        while at + step <= len(self._wal) and self._wal[at + 8 : at + 16] == salts:
            (number,) = struct.unpack_from(">I", self._wal, at)
            self._frames[number] = at + _FRAME_HEADER
            at += step

    def rows(self) -> Iterator[list[Value]]:
        """The rows of all tables and indices, whatever they are of."""
        for number in range(1, self._count + 1):
            yield from self._rows_of(number, self._read(number))
        for number in self._frames:
            yield from self._rows_of(number, self._page(number))

    def _read(self, number: int) -> bytes:
        try:
            return os.pread(self._main.fileno(), PAGE_BYTES, (number - 1) * PAGE_BYTES)
        except OSError:  # the disk has it no more
            return b""

    def _page(self, number: int) -> bytes:
        at = self._frames.get(number)
        return self._read(number) if at is None else self._wal[at : at + PAGE_BYTES]

    def _rows_of(self, number: int, page: bytes) -> Iterator[list[Value]]:
        head = 100 if number == 1 else 0
        if len(page) < PAGE_BYTES:
            return
        kind = page[head]
        if kind not in (_INDEX_INTERIOR, _INDEX_LEAF, _TABLE_LEAF):
            return
        (cells,) = struct.unpack_from(">H", page, head + 3)
        first = head + (12 if kind == _INDEX_INTERIOR else 8)
        for at in range(first, min(first + 2 * cells, PAGE_BYTES - 1), 2):
            (cell,) = struct.unpack_from(">H", page, at)
            try:
                yield _record(self._payload(page, kind, cell))
            except (IndexError, ValueError):
                continue  # no cell, or not all of it is there

    def _payload(self, page: bytes, kind: int, at: int) -> bytes:
        if kind == _INDEX_INTERIOR:
            at += 4
        size, at = _varint(page, at)
        if kind == _TABLE_LEAF:
            _, at = _varint(page, at)
        if size > 2 * SMALL_LIMIT_BYTES:
            raise ValueError("longer than any row")
        local = _local(size, kind)
        parts = [page[at : at + local]]
        left = size - local
        if left:
            following = int.from_bytes(page[at + local : at + local + 4], "big")
            while left > 0:
                more = self._page(following)
                if len(more) < PAGE_BYTES:
                    raise ValueError("the rest is not there")
                parts.append(more[4 : 4 + left])
                left -= PAGE_BYTES - 4
                following = int.from_bytes(more[:4], "big")
        return b"".join(parts)


def _local(size: int, kind: int) -> int:
    """How much of a payload is in the page of its cell."""
    least = (PAGE_BYTES - 12) * 32 // 255 - 23
    most = PAGE_BYTES - 35
    if kind != _TABLE_LEAF:
        most = (PAGE_BYTES - 12) * 64 // 255 - 23
    if size <= most:
        return size
    kept = least + (size - least) % (PAGE_BYTES - 4)
    return kept if kept <= most else least


def _record(payload: bytes) -> list[Value]:
    """Its values. Raises IndexError, ValueError."""
    header, at = _varint(payload, 0)
    body = header
    values: list[Value] = []
    while at < header:
        serial, at = _varint(payload, at)
        value, body = _value(payload, body, serial)
        values.append(value)
    return values


def _value(payload: bytes, at: int, serial: int) -> tuple[Value, int]:
    if serial in (0, 8, 9):
        return (None if serial == 0 else serial - 8), at
    length = _INTEGERS.get(serial)
    if length is None and serial < 12:
        return None, at + 8  # a real number: of a state, which is not needed
    if length is None:
        length = (serial - 12) // 2
    if at + length > len(payload):
        raise ValueError("it ends too early")
    data = payload[at : at + length]
    if serial < 12:
        return int.from_bytes(data, "big", signed=True), at + length
    return data, at + length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | data[at], at + 1
