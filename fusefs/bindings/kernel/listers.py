"""Which directories were listed with attributes a moment ago, and by which threads.

Touched by any thread: each step is one operation of a dictionary.
"""

from __future__ import annotations

from fusefs.model.ids import Ino

_SEVERAL = 0
"""Also what the kernel calls a thread that it cannot name here."""


class Listers:
    """`tick` is called every few ten milliseconds; what was told before the last but
    one the kernel has taken in."""

    __slots__ = ("_before", "_now")

    def __init__(self) -> None:
        self._now: dict[Ino, int] = {}
        self._before: dict[Ino, int] = {}

    def note(self, directory: Ino, thread: int) -> None:
        """Called before the attributes are looked at."""
        now = self._now
        if now.setdefault(directory, thread) != thread:
            now[directory] = _SEVERAL

    def others(self, directory: Ino | None, thread: int) -> bool:
        """Whether another thread than this one listed it; None: any directory. Who
        makes a change has taken in what was told before."""
        now, before = self._now, self._before
        if directory is not None:
            found = [
                t for t in (now.get(directory), before.get(directory)) if t is not None
            ]
        else:
            found = [*now.values(), *before.values()]
        return any(other != thread or other == _SEVERAL for other in found)

    def tick(self) -> None:
        self._before, self._now = self._now, {}
