"""Renames of a moment ago, and names that the kernel is being told of.

A rename(2) only says the name, too. Where a peer had put something else under it, and
the kernel was not told yet, that was moved here; the kernel gives the new name to what
it had under the old one, and its notification finds nothing there any more: reads and
writes of the new name would go to the wrong file. So the kernel has to forget the new
name, whichever comes first: who renames looks whether it is being told of the old one,
and who tells looks where that was renamed to lately.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from fusefs.bindings.kernel.places import Place

KEPT_S: Final = 5.0
"""A change of a peer is told within moments of its being seen here; a rename is known
for so long, or twice."""


class Renames:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # everything here; a leaf
        self._lately: dict[Place, set[Place]] = {}
        self._before: dict[Place, set[Place]] = {}
        self._turned_s = time.monotonic()
        self._telling: dict[Place, int] = {}

    def begin_telling(self, place: Place) -> set[Place]:
        """The name, and those it was renamed to lately; until each is `told`."""
        with self._lock:
            found, todo = {place}, [place]
            while todo:
                at = todo.pop()
                self._telling[at] = self._telling.get(at, 0) + 1
                to = self._lately.get(at, set()) | self._before.get(at, set())
                todo.extend(to - found)
                found |= to
            return found

    def told(self, place: Place) -> None:
        with self._lock:
            left = self._telling[place] - 1
            if left:
                self._telling[place] = left
            else:
                del self._telling[place]

    def renamed(self, place: Place, to: Place) -> bool:
        """Whether the kernel is being told of the old name."""
        with self._lock:
            self._lately.setdefault(place, set()).add(to)
            return place in self._telling

    def tick(self) -> None:
        """Called now and then."""
        now = time.monotonic()
        if now - self._turned_s > KEPT_S:
            with self._lock:
                self._lately, self._before = {}, self._lately
            self._turned_s = now
