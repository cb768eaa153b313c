"""Smaller chunks for files that are changed in place, a few bytes here and there.

Each publish of such a file stores every chunk that was touched anew, a whole one for a
page of a database. What that cost beyond the bytes written is added up; once it is as
much as the file is long, the file is cut into smaller chunks, which costs as much once
more. So nobody pays more than twice what knowing it from the start would have saved.
"""

from __future__ import annotations

import time
from functools import partial

from fusefs.errors import NoSpace
from fusefs.model import manifest
from fusefs.model.ids import ChunkId, Ino
from fusefs.model.manifest import chunk_count
from fusefs.vfs.content import View
from fusefs.vfs.draft import Draft
from fusefs.vfs.files import File
from fusefs.vfs.missing import Missing
from fusefs.vfs.objects import Objects
from fusefs.vfs.storing import Storing

LEAST_CHUNKS = 4
"""Of the smaller size: below that there is little to win."""
MOST_BYTES = 256 << 20
"""Cutting a longer file would hold up its users for seconds."""
LEASE_S = 5.0
"""Parts are renewed when storing them took longer: well below the least grace of GC."""
MOST_FILES = 4096
"""Whose costs are remembered."""


class Recutting:
    """Each draft under its file's lock."""

    def __init__(self, storing: Storing, objects: Objects, chunk_log2: int) -> None:
        """`chunk_log2`: of the smaller chunks."""
        self._storing = storing
        self._objects = objects
        self._log2 = chunk_log2
        self._wasted: dict[Ino, int] = {}

    def waste(self, draft: Draft) -> int:
        """Bytes that publishing the draft stores besides those written."""
        size = draft.size
        if (
            draft.base.log2 <= self._log2
            or not LEAST_CHUNKS << self._log2 <= size <= MOST_BYTES
        ):
            return 0
        total = 0
        for index, patch in draft.patches.items():
            total += max(0, draft.length(index) - patch.ours_bytes)
        return total

    def wasted(self, ino: Ino, count: int) -> None:
        """So much was; what `waste` gave before it was published."""
        if count:
            if len(self._wasted) >= MOST_FILES:
                self._wasted.clear()
            self._wasted[ino] = self._wasted.get(ino, 0) + count

    def cut_if_due(self, file: File, draft: Draft, waste: int) -> View | None:
        """The draft's version in smaller chunks, if there is waste and it is time for
        that, the disk has room and all bytes are here."""
        if not waste or self._wasted.get(file.ino, 0) < draft.size:
            return None
        self._wasted.pop(file.ino, None)
        try:
            return self._cut(file, draft)
        except (Missing, NoSpace):
            return None

    def _cut(self, file: File, draft: Draft) -> View:
        load, log2 = self._objects.node, self._log2
        chunks: dict[int, ChunkId] = {}
        began_s = time.monotonic()
        within = draft.base.log2 - log2
        for index, parts in self._storing.store_in_parts(file, draft, 1 << log2):
            chunks.update(enumerate(parts, index << within))
        if time.monotonic() - began_s > LEASE_S:
            self._storing.renew(set(chunks.values()))
        save = partial(self._storing.put_node, file, draft)
        count = chunk_count(draft.size, log2)
        root = manifest.update(b"", 0, count, chunks, load, save)
        return View(draft.size, root, log2, load)
