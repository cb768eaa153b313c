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

from fusefs.model import manifest
from fusefs.store.bloom import Bloom
from fusefs.store.marks import Marks, MaybeRoot, paced
from fusefs.store.types import Object

if TYPE_CHECKING:
    from fusefs.store.store import Store

GRACE_S = 3600.0
"""Twelve times the period in which leases are renewed: room for a sleepy laptop."""


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
    marks = Marks(local, Bloom(count, run), load or store.get, pause)
    marks.mark(roots)
    sync()
    swept = swept_bytes = 0
    for item in paced(store.stored(), pause):
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
    for item in paced(store.stored(), pause):
        if item.stored_s < before_s:
            local.add(item.cid)
            count += 1
    return local, count
