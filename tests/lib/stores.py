"""Stores for tests: bytes of any length, and a store that is checked at the end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusefs.store import Store


def bytes_of(size: int, seed: int = 0) -> bytes:
    """Bytes that differ for each seed."""
    return random.Random(f"{size}/{seed}").randbytes(size)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now_s: float = 1_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def checked_store(directory: Path, **options: object) -> Iterator[Store]:
    """An open store that must be clean, contents included, when the block ends."""
    store = Store.open(directory, min_free_bytes=0, **options)  # type: ignore[arg-type]
    try:
        yield store
        assert list(store.check(contents=True)) == []
    finally:
        store.close()
