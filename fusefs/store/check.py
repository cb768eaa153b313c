"""What `dfs fsck` proves about the store, and how each finding is repaired.

Safe beside running processes: what looks wrong is looked at again under the lock
before it is reported, and a repair never removes bytes that are still good.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fusefs.errors import ChunkMissing, FsError
from fusefs.model.ids import CHUNK_ID_BYTES, ChunkId
from fusefs.store.files import Found, path_of
from fusefs.store.types import (
    MAX_OBJECT_BYTES,
    PUSHED,
    SMALL_LIMIT_BYTES,
    Object,
    Problem,
    Progress,
)

if TYPE_CHECKING:
    from fusefs.store.store import Store

_TELL_EVERY = 64


def check(
    store: Store, *, repair: bool, contents: bool, progress: Progress | None
) -> Iterator[Problem]:
    """Every problem, in the order found."""
    yield from _database(store)
    done = 0
    for step in _steps(store, repair, contents):
        if step is None:
            done += 1
            if progress and done % _TELL_EVERY == 0:
                progress(done)
        else:
            yield step
    if progress:
        progress(done)


def _steps(store: Store, repair: bool, contents: bool) -> Iterator[Problem | None]:
    """Problems, and None after each object looked at."""
    for found in store.files.walk():
        yield from readable(found.path, _file(store, found, repair, contents))
        yield None
    for row in store.index.larges():
        yield from readable(path_of(row.cid), row_problems(store, row, repair))
    for row in store.index.smalls():
        yield from _small(store, row, repair, contents)
        yield None


def _database(store: Store) -> Iterator[Problem]:
    for (text,) in store.database.all("PRAGMA quick_check"):
        if text != "ok":
            yield Problem("database", "small.db", str(text))


def readable(path: str, problems: Iterator[Problem]) -> Iterator[Problem]:
    """The problems of one file; what the disk refuses is one more, and the end of
    that file only."""
    try:
        yield from problems
    except FsError:
        raise  # of the database, on which all the others depend
    except OSError as error:
        yield Problem("unreadable", path, error.strerror or str(error))


def _file(
    store: Store, found: Found, repair: bool, contents: bool
) -> Iterator[Problem]:
    if found.error:
        raise found.error
    cid = found.cid
    if cid is None:
        repaired = repair and store.files.unlink(found.path)
        yield Problem("stray-file", found.path, "not an object's name", repaired)
        return
    fits = SMALL_LIMIT_BYTES <= found.size <= MAX_OBJECT_BYTES
    suspect = (cid, found.mtime_s) in store.suspects
    if contents or suspect or not fits:
        damaged = _damaged(store, cid)
        if damaged:
            if repair:
                store.delete(cid)
            yield Problem("damaged", cid.hex(), damaged, repair)
            return
    yield from unindexed(store, cid, repair)


def _damaged(store: Store, cid: ChunkId) -> str:
    """What is wrong with the object's bytes, "" if nothing. Raises OSError."""
    try:
        return "" if store.verify(cid) else "its bytes do not match its id"
    except ChunkMissing:
        return ""


def unindexed(store: Store, cid: ChunkId, repair: bool) -> Iterator[Problem]:
    """A file without row: a crash came between the rename and the index. It may be
    the only copy of something written here, so it comes back as pushed."""
    if store.index.get_large(cid):
        return
    with store.lock:
        stat = store.files.stat(cid)
        if stat is None or store.index.flags(cid) is not None:
            return
        if repair:
            store.index.put_large(cid, stat.st_size, PUSHED, int(stat.st_mtime))
    yield Problem("unindexed", cid.hex(), "a file without a row", repair)


def row_problems(store: Store, row: Object, repair: bool) -> Iterator[Problem]:
    stat = store.files.stat(row.cid)
    if stat is not None and stat.st_size == row.size:
        return
    with store.lock:
        now = store.index.get_large(row.cid)
        stat = store.files.stat(row.cid)
        if now is None or (stat is not None and stat.st_size == now[0]):
            return
        if repair and stat is None:
            store.index.delete_large(row.cid)
    if stat is None:
        yield Problem("row-without-file", row.cid.hex(), path_of(row.cid), repair)
        return
    detail = f"the row says {row.size} bytes, the file has {stat.st_size}"
    if repair and _damaged(store, row.cid):  # the row was right
        store.delete(row.cid)
    elif repair:
        with store.lock:
            store.index.put_large(row.cid, stat.st_size, 0, int(stat.st_mtime))
    yield Problem("wrong-size", row.cid.hex(), detail, repair)


def _small(
    store: Store, row: Object, repair: bool, contents: bool
) -> Iterator[Problem]:
    detail = ""
    if len(row.cid) != CHUNK_ID_BYTES or not 0 <= row.size < SMALL_LIMIT_BYTES:
        detail = f"an id of {len(row.cid)} bytes, an object of {row.size}"
    elif contents:
        detail = _damaged(store, row.cid)
    if detail:
        if repair:
            store.delete(row.cid)
        yield Problem("damaged", row.cid.hex(), detail, repair)
