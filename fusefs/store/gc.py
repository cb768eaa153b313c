"""Garbage collection: mark from every live root, sweep what is old and unmarked.

Runs beside writers without stopping them. Two rules make that safe: an object is
swept only if it was not stored, found again by a put, or renewed within the grace
time (checked under the lock at the moment of removal); and whoever holds objects
that no register names yet renews them (`Store.touch`).

Marks live in Bloom filters, a few bytes per local object whatever the size of the
cluster. A false positive keeps garbage for one more run: each run reads another
part of the ids, so it is another object's turn then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from fusefs.errors import FsError
from fusefs.model import manifest
from fusefs.model.ids import CHUNK_ID_BYTES, ChunkId
from fusefs.store.bloom import Bloom
from fusefs.store.types import Object

if TYPE_CHECKING:
    from fusefs.store.store import Store

GRACE_S = 3600.0
"""Four times the period in which leases are renewed, with room for a sleepy laptop."""
YIELD_EVERY = 256
"""Objects looked at between two calls of `pause`."""

Root = tuple[bytes, int, int]
"""(root, size, chunk_log2) of one version of a file."""
MaybeRoot = Root | None
"""None: there is one of which nobody knows what it is."""


class Collected(msgspec.Struct, frozen=True):
    """What one run did."""

    local: int
    """Objects old enough to be looked at."""
    swept: int
    swept_bytes: int
    unreadable: int
    """Manifest nodes and roots that could not be had. If any, only cache was swept."""


def collect(
    store: Store,
    roots: Iterable[MaybeRoot],
    *,
    now_s: float,
    grace_s: float = GRACE_S,
    own_grace_s: float | None = None,
    load: manifest.Load | None = None,
    sync: Callable[[], None] = lambda: None,
    run: int = 0,
    pause: Callable[[], None] = lambda: None,
) -> Collected:
    """Remove the objects that no root reaches.

    Args: roots: of one snapshot of the registers, taken at `now_s` or later;
    own_grace_s: for what this process wrote lately (`Objects.written`), if that is
    another. What peers store here may be long before the transaction that names it;
    load: gives a manifest node and may fetch it from peers (default: this store only);
    sync: called before anything goes: what took its place has to be on disk; run: the
    number of the run, to vary the filter; pause: called now and then, may sleep or
    raise to stop.
    """
    before_s = now_s - grace_s
    own_before_s = before_s if own_grace_s is None else now_s - own_grace_s

    def until(item: Object) -> float:
        return own_before_s if item.cid in store.written else before_s

    # An object may be written meanwhile: whatever could go then has to be marked.
    local, count = _candidates(store, max(before_s, own_before_s), run, pause)
    if count == 0:
        return Collected(0, 0, 0, 0)
    marks = _Marks(local, Bloom(count, run), load or store.get, pause)
    for root in roots:
        if root is None:
            marks.unreadable += 1
        else:
            marks.mark(*root)
    sync()
    swept = swept_bytes = 0
    for item in _paced(store.stored(), pause):
        if item.stored_s >= until(item) or item.cid in marks.live:
            continue
        if store.delete_older(item.cid, until(item), only_cache=marks.unreadable > 0):
            swept += 1
            swept_bytes += item.size
    return Collected(count, swept, swept_bytes, marks.unreadable)


def _candidates(
    store: Store, before_s: float, run: int, pause: Callable[[], None]
) -> tuple[Bloom, int]:
    """A filter of the objects that may go, and how many they are."""
    totals = store.statistics()
    local, count = Bloom(totals.chunks, run), 0
    for item in _paced(store.stored(), pause):
        if item.stored_s < before_s:
            local.add(item.cid)
            count += 1
    return local, count


class _Marks:
    """The live objects among the candidates."""

    def __init__(
        self,
        local: Bloom,
        live: Bloom,
        load: manifest.Load,
        pause: Callable[[], None],
    ) -> None:
        self.live = live
        self.unreadable = 0
        self._local = local
        self._load = load
        self._pause = pause
        self._seen = 0

    def mark(self, root: bytes, size: int, chunk_log2: int) -> None:
        """Mark one version of a file: its manifest nodes and its chunks."""
        count = manifest.chunk_count(size, chunk_log2)
        self._descend(root, manifest.depth(count))

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

    def _children(self, node: ChunkId) -> list[bytes]:
        try:
            data = self._load(node)
        except FsError:
            data = b"?"
        width = CHUNK_ID_BYTES
        if len(data) % width:  # not to be had, or no manifest at all
            self.unreadable += 1
            return []
        return [data[at : at + width] for at in range(0, len(data), width)]


def _paced(items: Iterable[Object], pause: Callable[[], None]) -> Iterable[Object]:
    for number, item in enumerate(items, 1):
        if number % YIELD_EVERY == 0:
            pause()
        yield item
