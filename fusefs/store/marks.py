"""Which objects the versions of files reach: their manifest nodes and their chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from fusefs.errors import FsError
from fusefs.model import manifest
from fusefs.model.ids import CHUNK_ID_BYTES, ChunkId, split_ids

T = TypeVar("T")
YIELD_EVERY = 256
"""Objects looked at between two calls of `pause`."""

Root = tuple[bytes, int, int]
"""(root, size, chunk_log2) of one version of a file."""
MaybeRoot = Root | None
"""None: there is one of which nobody knows what it is."""


class Ids(Protocol):
    """A set of ids, or a filter with false positives."""

    def add(self, cid: ChunkId, /) -> None: ...

    def __contains__(self, cid: ChunkId, /) -> bool: ...


class Marks:
    """The live objects among the candidates `local`; put into `live`."""

    def __init__(
        self, local: Ids, live: Ids, load: manifest.Load, pause: Callable[[], None]
    ) -> None:
        self.live = live
        self.unreadable = 0
        """Manifest nodes and roots that could not be had."""
        self._local = local
        self._load = load
        self._pause = pause
        self._seen = 0

    def mark(self, roots: Iterable[MaybeRoot]) -> None:
        for root in roots:
            if root is None:
                self.unreadable += 1
                continue
            node, size, chunk_log2 = root
            count = manifest.chunk_count(size, chunk_log2)
            self._descend(node, manifest.depth(count))

    def _descend(self, node: bytes, level: int) -> None:
        if not any(node):  # empty or a hole
            return
        cid = ChunkId(node)
        if cid in self._local:
            self.live.add(cid)
        self._seen += 1
        if self._seen % YIELD_EVERY == 0:
            self._pause()
        if level:
            for child in self._children(cid):
                self._descend(child, level - 1)

    def _children(self, node: ChunkId) -> list[ChunkId]:
        try:
            data = self._load(node)
        except FsError:
            data = b"?"
        if len(data) % CHUNK_ID_BYTES:  # not to be had, or no manifest at all
            self.unreadable += 1
            return []
        return split_ids(data)


def reached(
    cids: Iterable[ChunkId],
    roots: Iterable[MaybeRoot],
    load: manifest.Load,
    pause: Callable[[], None] = lambda: None,
) -> set[ChunkId]:
    """Which of these the roots reach, as far as anybody can tell: all of them when
    something could not be read."""
    wanted, live = set(cids), set[ChunkId]()
    marks = Marks(wanted, live, load, pause)
    if wanted:
        marks.mark(roots)
    return wanted if marks.unreadable else live


def paced(items: Iterable[T], pause: Callable[[], None]) -> Iterator[T]:
    """The same, with a pause now and then."""
    for number, item in enumerate(items, 1):
        if number % YIELD_EVERY == 0:
            pause()
        yield item
