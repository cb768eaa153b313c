"""Open chunk files, least recently used first out.

No lock: a dictionary operation is atomic, and a reader keeps its `ChunkFile`
alive by holding it, so a descriptor is closed only when the last reader is done
and its number is never used again under a running read.
"""

from __future__ import annotations

import os
import resource
from collections import OrderedDict

from fusefs.model.ids import ChunkId

CAPACITY = 256
"""Descriptors kept open: 256 MiB of chunks."""
SHARE = 4
"""At most one in so many of those that the process may have."""


class ChunkFile:
    """An open object; closes its descriptor when nobody holds it any more."""

    __slots__ = ("fd", "size")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size

    def __del__(self) -> None:
        os.close(self.fd)


class Descriptors:
    """A bounded map from object to open file."""

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = _room() if capacity is None else capacity
        self._files: OrderedDict[ChunkId, ChunkFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def get(self, cid: ChunkId) -> ChunkFile | None:
        """The open file, now the most recently used one."""
        file = self._files.get(cid)
        if file is not None:
            try:
                self._files.move_to_end(cid)
            except KeyError:  # dropped meanwhile; the file in hand stays usable
                pass
        return file

    def add(self, cid: ChunkId, file: ChunkFile) -> None:
        # Not an assignment: it would run the old file's __del__ half way through.
        self._files.setdefault(cid, file)
        while len(self._files) > self._capacity:
            try:
                self._files.popitem(last=False)
            except KeyError:
                return

    def drop(self, cid: ChunkId) -> None:
        self._files.pop(cid, None)

    def drop_deleted(self) -> None:
        """Close files the other process deleted, so that their space is freed."""
        for cid, file in list(self._files.items()):
            if os.fstat(file.fd).st_nlink == 0:
                self.drop(cid)

    def clear(self) -> None:
        while self._files:
            self._files.popitem()


def _room() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CAPACITY if limit < 0 else min(CAPACITY, limit // SHARE)
