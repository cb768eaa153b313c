"""Bytes on this disk: chunk and manifest objects by id, cache accounting, GC, scrub.

`Store` is the whole interface, `gc.collect` the mark and sweep that runs over it.
"""

from fusefs.store.store import Store
from fusefs.store.types import (
    PINNED,
    PUSHED,
    RESPONSIBLE,
    Object,
    Problem,
    StoreStatistics,
)

__all__ = [
    "PINNED",
    "PUSHED",
    "RESPONSIBLE",
    "Object",
    "Problem",
    "Store",
    "StoreStatistics",
]
