"""A bounded cache of derived rows that never keeps a row read before a change.

A reader notes the generation, reads the database, and offers what it read; the
offer is dropped when anything was forgotten meanwhile. So a row that another
process changed between the read and the offer cannot stay.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class RowCache(Generic[K, V]):
    """Reads need no lock (one dict lookup); changes hold a short one."""

    def __init__(self, limit: int) -> None:
        self._rows: dict[K, V] = {}
        self._limit = limit
        self._lock = threading.Lock()  # orders offers against forgets; nothing inside
        self.generation = 0
        self.get = self._rows.get

    def offer(self, key: K, row: V, generation: int) -> None:
        """Keep the row unless something was forgotten since `generation`."""
        with self._lock:
            if generation != self.generation:
                return
            if len(self._rows) >= self._limit:
                self._shrink()
            self._rows[key] = row

    def _shrink(self) -> None:
        """Drop the oldest quarter (dicts keep insertion order)."""
        for key in list(self._rows)[: self._limit // 4]:
            del self._rows[key]

    def forget(self, keys: Iterable[K]) -> None:
        with self._lock:
            self.generation += 1
            for key in keys:
                self._rows.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self.generation += 1
            self._rows.clear()

    def __len__(self) -> int:
        return len(self._rows)
