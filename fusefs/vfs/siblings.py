"""Asking ahead of a program that goes through the small files of a directory.

Each of them costs a round trip, which over a far line is all it costs. A program that
has waited for two files of a directory gets those behind the second one, too, more with
each it has to wait for. Listings come in another order than names (listing.py): what is
asked ahead is a part of the directory in any case, and goes round it once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from fusefs.model.ids import ChunkId, Ino
from fusefs.model.records import S_REG
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.types import Entry, Inode
from fusefs.store.store import Store
from fusefs.store.types import ROUND_TRIP_BYTES

FIRST_FILES, MOST_FILES = 8, 128
MOST_BYTES = 1 << 20
"""Asked for at a time: 0.4 s over 20 Mbit/s."""
PAGE, PAGES = 256, 4
"""Read at a time (a few ms), to find what is not here."""
FORGET_S = 10.0
MOST_WALKS = 64


class _Walk:
    __slots__ = ("after", "at_s", "files", "rounds")

    def __init__(self, after: bytes, at_s: float) -> None:
        self.after = after
        self.at_s = at_s
        self.files = 0
        """Asked for the last time."""
        self.rounds = 0
        """How often the end was reached: after the second all was asked for."""


class Siblings:
    """Thread-safe."""

    def __init__(self, namespace: Namespace, store: Store) -> None:
        self._namespace = namespace
        self._store = store
        # Held over a few short reads of the namespace and the store.
        self._lock = threading.Lock()
        self._walks: OrderedDict[Ino, _Walk] = OrderedDict()

    def ahead(self, ino: Ino) -> Sequence[ChunkId]:
        """A program waits for this file, of one chunk: which others to ask for."""
        names = self._namespace.parents(ino)
        if not names:
            return ()
        with self._lock:
            walk = self._walk(names[0])
            return self._next(names[0].parent, ino, walk) if walk is not None else ()

    def _walk(self, entry: Entry) -> _Walk | None:
        """None: it is the first file of the directory for some time."""
        now = time.monotonic()
        walk = self._walks.pop(entry.parent, None)
        begins = walk is None or now - walk.at_s > FORGET_S
        if walk is None or begins:
            walk = _Walk(entry.name, now)
        walk.at_s = now
        self._walks[entry.parent] = walk
        if len(self._walks) > MOST_WALKS:
            self._walks.popitem(last=False)
        return None if begins else walk

    def _next(self, directory: Ino, but: Ino, walk: _Walk) -> Sequence[ChunkId]:
        walk.files = min(max(FIRST_FILES, 2 * walk.files), MOST_FILES)
        found: dict[ChunkId, None] = {}
        size = 0
        for _ in range(PAGES):
            if walk.rounds > 1:
                break
            page = self._namespace.children_full(directory, walk.after, PAGE)
            small: dict[ChunkId, tuple[bytes, int]] = {}
            for entry, row in page:
                if entry.ino != but and _is_small(entry, row):
                    small.setdefault(ChunkId(row.root), (entry.name, row.size))
            for cid in self._store.missing(list(small)):
                name, length = small[cid]
                if len(found) >= walk.files or size + length > MOST_BYTES:
                    return list(found)
                if cid not in found:
                    found[cid] = None
                    size += length
                walk.after = name
            if len(page) == PAGE:
                walk.after = page[-1][0].name
            else:
                walk.after = b""
                walk.rounds += 1
        return list(found)


def _is_small(entry: Entry, row: Inode) -> bool:
    return (
        entry.kind == S_REG
        and 0 < row.size <= min(ROUND_TRIP_BYTES, 1 << row.chunk_log2)
        and bool(row.root)
    )
