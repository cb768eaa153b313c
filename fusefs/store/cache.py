"""Eviction: which objects go when the cache is over its quota or the disk is full.

Only objects without a flag are cache. Large ones go by when they were last opened,
small ones, once no large one is left, by when they were stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from fusefs.model.ids import ChunkId

if TYPE_CHECKING:
    from fusefs.store.store import Store

SLACK = 0.05
"""Go this part of the quota below it, so that eviction comes in batches."""
_VICTIMS = 1024
_LOCKED = 32
"""Removals under one hold of the lock: about a millisecond for the writers."""


def evict(
    store: Store,
    incoming_bytes: int = 0,
    floor_bytes: int | None = None,
    spared_bytes: int = 0,
) -> int:
    """Bytes freed, with room for what comes in; less when no cache is left.

    Args: floor_bytes: to be left free on the disk, default `min_free`; spared_bytes:
    of cache, the latest, that stay even so.
    """
    if floor_bytes is None:
        floor_bytes = store.space.min_free_bytes
    goal = _excess(store, incoming_bytes, floor_bytes, spared_bytes)
    freed = 0
    while freed < goal:
        victims = store.index.oldest_large_cache(_VICTIMS)
        victims += store.index.oldest_small_cache(_VICTIMS - len(victims))
        got = drop(store, _enough(victims, goal - freed))
        if not got:
            break
        freed += got
    return freed


def _excess(store: Store, incoming_bytes: int, floor: int, spared_bytes: int) -> int:
    goal = 0
    quota = store.cache_quota_bytes
    if quota is not None:
        used = store.index.cache_bytes() + incoming_bytes
        if used > quota:
            goal = used - int(quota * (1 - SLACK))
    free = store.space.free_bytes() - incoming_bytes
    if free < floor:
        lacking = floor - free + int(floor * SLACK)
        if spared_bytes:
            lacking = min(lacking, store.index.cache_bytes() - spared_bytes)
        goal = max(goal, lacking)
    return goal


def _enough(victims: list[tuple[ChunkId, int]], goal: int) -> list[ChunkId]:
    chosen = []
    for cid, size in victims:
        chosen.append(cid)
        goal -= size
        if goal <= 0:
            break
    return chosen


def drop(store: Store, cids: Iterable[ChunkId]) -> int:
    """Remove those that have no flag; bytes freed."""
    freed = 0
    rest = iter(cids)
    while batch := list(islice(rest, _LOCKED)):
        with store.lock:
            for cid in batch:
                if store.index.flags(cid) == 0:
                    freed += store.index.size_of(cid)
                    store.remove_locked(cid)
    return freed
