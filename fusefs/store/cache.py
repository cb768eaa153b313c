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
    over, lacking = _goals(store, incoming_bytes, floor_bytes, spared_bytes)
    freed = on_disk = 0
    while freed < over or on_disk < lacking:
        victims = store.index.oldest_large_cache(_VICTIMS)
        victims += store.index.oldest_small_cache(_VICTIMS - len(victims))
        goal = max(over - freed, lacking - on_disk)
        got, given = _drop(store, _enough(victims, goal))
        if not got:
            break
        freed, on_disk = freed + got, on_disk + given
    return freed


def _goals(
    store: Store, incoming_bytes: int, floor: int, spared_bytes: int
) -> tuple[int, int]:
    """Bytes of objects for the quota, and bytes of the disk for the floor."""
    over = lacking = 0
    quota = store.cache_quota_bytes
    if quota is not None:
        used = store.index.cache_bytes() + incoming_bytes
        if used > quota:
            over = used - int(quota * (1 - SLACK))
    free = store.space.free_bytes() - incoming_bytes
    if free < floor:
        lacking = floor - free + int(floor * SLACK)
        if spared_bytes:
            lacking = min(lacking, store.index.cache_bytes() - spared_bytes)
    return over, lacking


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
    return _drop(store, cids)[0]


def _drop(store: Store, cids: Iterable[ChunkId]) -> tuple[int, int]:
    """Bytes of objects, and bytes that they took on the disk."""
    freed = on_disk = 0
    rest = iter(cids)
    while batch := list(islice(rest, _LOCKED)):
        with store.lock:
            for cid in batch:
                if store.index.flags(cid) == 0:
                    size = store.index.size_of(cid)
                    freed += size
                    on_disk += store.files.kept_bytes(cid, size)
                    store.remove_locked(cid)
    return freed, on_disk
