"""Sorted listings kept between the calls of a stateless reader."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from fusefs.model.ids import Ino
from fusefs.namespace.types import Entry

KEPT_ENTRIES = 250_000
"""Entries kept in all (~75 bytes each and the name): one very large directory and
more."""
_EACH = 16
"""What a listing costs beside its entries, in entries."""
FIRST_COOKIE = 16
_COOKIE_MASK = (1 << 62) - 1


def cookie_of(name: bytes) -> int:
    """Where the name stands in its directory: positive, 63 bits."""
    return (xxh3_64_intdigest(name) & _COOKIE_MASK) + FIRST_COOKIE


class Snapshot(NamedTuple):
    """Parallel columns in order of the cookies."""

    cookies: array[int]
    names: list[bytes]
    inos: array[int]
    kinds: bytes
    current: bool
    """Nothing changed since; otherwise good only for going on with a listing."""


def sort(entries: Iterable[Entry]) -> Snapshot:
    """`entries` in order of their names. Equal hashes get the next free number."""
    hashes, inos, kinds = array("q"), array("q"), bytearray()
    names: list[bytes] = []
    for entry in entries:  # none is kept: a large directory is large enough
        hashes.append(cookie_of(entry.name))
        names.append(entry.name)
        inos.append(entry.ino)
        kinds.append(entry.kind)
    order = sorted(range(len(names)), key=hashes.__getitem__)
    cookies = array("q")
    last = 0
    for at in order:
        last = max(hashes[at], last + 1)
        cookies.append(last)
    return Snapshot(
        cookies,
        [names[at] for at in order],
        array("q", (inos[at] for at in order)),
        bytes(kinds[at] for at in order),
        True,
    )


class Snapshots:
    """Thread-safe; bounded by entries, the oldest listing goes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # everything here; a leaf
        self._kept: dict[Ino, Snapshot] = {}
        self.generation = 0
        self.get = self._kept.get

    def keep(self, ino: Ino, shot: Snapshot, generation: int) -> None:
        """`generation` is from before the entries were read."""
        with self._lock:
            if generation != self.generation:
                shot = shot._replace(current=False)
            self._kept.pop(ino, None)
            self._kept[ino] = shot
            total = sum(len(s.cookies) + _EACH for s in self._kept.values())
            while total > KEPT_ENTRIES and len(self._kept) > 1:
                oldest = next(iter(self._kept))
                total -= len(self._kept.pop(oldest).cookies) + _EACH

    def changed(self, inos: Iterable[Ino] | None = None) -> None:
        """These directories (None: all) list something else now."""
        with self._lock:
            self.generation += 1
            for ino in list(self._kept) if inos is None else inos:
                shot = self._kept.get(ino)
                if shot is not None and shot.current:
                    self._kept[ino] = shot._replace(current=False)
