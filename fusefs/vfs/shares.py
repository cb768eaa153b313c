"""Chunks that copies took over while garbage is collected.

Collecting looks at open files, then at the registers as they are at one moment. A chunk
that goes in between from a version that is replaced into a file that was open already
is in neither, and old enough to be swept; so what is shared meanwhile is noted. Later
that is safe: what is shared then was in the registers, or noted, or is young. So is a
version that a copy began to read before it was replaced, as long as the copy takes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fusefs.model.ids import HOLE, ChunkId

Root = tuple[bytes, int, int]
"""(root, size, chunk_log2)"""


class Shares:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a leaf
        self._noted: set[ChunkId] | None = None
        self._read: list[Root] = []

    def begin(self) -> None:
        """A collection begins. One that was broken off never ended."""
        with self._lock:
            self._noted = set()

    @contextmanager
    def reading(self, version: Root) -> Iterator[None]:
        """Around looking which chunks a version has and sharing them. Within, see that
        it is still the file's."""
        with self._lock:
            self._read.append(version)
        try:
            yield
        finally:
            with self._lock:
                self._read.remove(version)

    @contextmanager
    def noting(self, chunks: Iterable[ChunkId]) -> Iterator[None]:
        """Around what makes a draft name them: no collection begins or ends there."""
        with self._lock:
            if self._noted is not None:
                self._noted.update(chunks)
            yield

    def roots(self) -> Iterator[Root]:
        """What was shared since `begin`, each as a file of one chunk, and what is about
        to be. Ask when the registers have been looked at."""
        with self._lock:
            noted, self._noted = self._noted or set(), None
            read = list(self._read)
        yield from read
        for cid in noted:
            if cid != HOLE:
                yield cid, 1, 0
