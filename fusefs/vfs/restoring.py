"""Drafts that a killed worker left, made anew from their journals.

Done once, before the first request. A draft is what it was; a handle that the kernel
still has finds it when it is adopted, and without one it is published in a few
seconds. Done to it is again what was done, so this needs no rules of its own.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Container

from fusefs.errors import FsError
from fusefs.model.context import has_seen
from fusefs.model.ids import ChunkId, Ino, Seq, split_ids
from fusefs.namespace.namespace import Namespace
from fusefs.vfs import regions
from fusefs.vfs.buffers import Pool
from fusefs.vfs.content import View
from fusefs.vfs.draft import Draft
from fusefs.vfs.extents import Extents
from fusefs.vfs.files import Files
from fusefs.vfs.missing import Missing
from fusefs.vfs.objects import Objects
from fusefs.vfs.patch import Patch
from fusefs.vfs.regions import Record, Start

log = logging.getLogger(__name__)

_MOST_REQUESTS = 256
"""Of one file that may have been carried out without an answer: more than there are
threads that serve."""

Requests = Container[int]
UNKNOWN = -1
"""Nobody is it (`writing.writer_of`)."""


def restore(
    namespace: Namespace,
    files: Files,
    objects: Objects,
    pool: Pool,
    *,
    same_mount: bool,
) -> dict[Ino, Requests]:
    """All that can be made anew; the rest is lost, and who has it open is told.
    `same_mount`: programs may still have open what has no name. Gives the last requests
    to append that are in each."""
    found: dict[Ino, Requests] = {}
    for ino in files.journal.marks.live:
        try:
            found[ino] = _restore(ino, namespace, files, objects, pool, same_mount)
        except (FsError, Missing, OSError) as error:
            log.warning("unpublished writes of inode %d are lost: %r", ino, error)
            files.journal.marks.give_up(ino)
        except Exception:  # a bug must not keep all files from their users
            log.exception("unpublished writes of inode %d are lost", ino)
            files.journal.marks.give_up(ino)
    return found


def _restore(
    ino: Ino,
    namespace: Namespace,
    files: Files,
    objects: Objects,
    pool: Pool,
    same_mount: bool,
) -> Requests:
    start, records = files.journal.left(ino)
    appended: deque[int] = deque(maxlen=_MOST_REQUESTS)
    if _is_published(ino, namespace, files.journal.marks.published_as(ino)):
        appended += [r.argument for r, _ in records if r.kind == regions.APPEND]
        files.journal.end(ino, None)
        return appended
    draft = _begin(start, objects, pool)
    end, named = 0, draft.sources()
    for record, where in records:
        _apply(draft, record)
        if record.kind == regions.SHARE:
            named.update(_shared(record))
        end = where
        if record.kind == regions.APPEND:
            appended.append(record.argument)
    if files.row(ino) is None and not same_mount:
        files.journal.end(ino, None)  # who had it open is gone
        return appended
    files.adopt_orphan(ino)
    file = files.acquire(ino)
    draft.log = files.journal.resume(ino, end, named)
    draft.inherited = True
    file.draft = draft
    files.dirty[ino] = file
    if same_mount:  # the other half of a write(2) may be the next request
        file.half_written = (UNKNOWN, math.inf)
    if appended and not same_mount:  # numbers of requests are those of a mount
        draft.log.rewrite(draft)
    files.release(file)
    return appended


def _is_published(ino: Ino, namespace: Namespace, seq: int) -> bool:
    """Whether the transaction that was about to publish the draft is there."""
    if not seq:
        return False
    seen = namespace.content_versions(ino).context
    return has_seen(seen, (namespace.node_id, Seq(seq)))


def _begin(start: Start, objects: Objects, pool: Pool) -> Draft:
    base = View(start.base_size, start.base_root, start.chunk_log2, objects.node)
    draft = Draft(base, 0, time.monotonic(), objects, pool)
    draft.cut = start.cut
    draft.permissions = start.permissions
    for was in start.patches:
        patch = draft.patches[was.index] = Patch()
        patch.source = ChunkId(was.source) if was.source else None
        patch.limit, patch.based = was.limit, was.based
        patch.written = Extents(*was.written)
    return draft


def _apply(draft: Draft, record: Record) -> None:
    """What was done, and the simple fields as they were afterwards. Raises Missing."""
    match record.kind:
        case regions.WRITE:
            draft.write(record.argument, memoryview(record.data))
        case regions.APPEND:
            draft.write(record.size - len(record.data), memoryview(record.data))
        case regions.TRUNCATE:
            draft.truncate(record.argument)
        case regions.ZERO:
            draft.zero(record.argument, int.from_bytes(record.data, "little"))
        case regions.SHARE:
            draft.share(record.argument, _shared(record))
        case regions.ATTRIBUTES:
            draft.permissions = regions.decode_permissions(record.data)
    draft.appends = record.appends
    draft.size, draft.lowest = record.size, record.lowest
    draft.mtime_ns, draft.ctime_ns = record.mtime_ns, record.ctime_ns
    draft.atime_ns = record.atime_ns


def _shared(record: Record) -> list[ChunkId]:
    """The objects that a SHARE names."""
    return split_ids(record.data)
