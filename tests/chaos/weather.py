"""What goes wrong just now, and which errors of programs that explains."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AFTER_S = 6.0
"""So long after the end of something a program may still feel it: a silent peer is
noticed after 6 s."""

FULL_BYTES = 12 << 20
"""Left of a small disk: that is the 8 MiB that its node leaves, and what it needs."""

AGAIN = errno.ERESTART
"""Among the errors of a spell: a worker was replaced, which is asked again what the one
before had not answered."""


class _Spell:
    def __init__(self, what: str, where: str, errors: frozenset[int]) -> None:
        self.what, self.where, self.errors = what, where, errors
        self.began_s = time.monotonic()
        self.ended_s: float | None = None

    def touches(self, since_s: float) -> bool:
        return self.ended_s is None or self.ended_s + AFTER_S > since_s


class Weather:
    """One for all machines. Any thread."""

    def __init__(self) -> None:
        self.small_disks: dict[str, Path] = {}
        """By machine. They are full without our doing, too: of what was replaced, as
        long as a peer is away that would say what it is."""
        self._full_s: dict[str, float] = {}
        """When one was last seen to be."""
        self._spells: list[_Spell] = []
        self._lock = threading.Lock()  # the list; nothing is called under it

    @contextmanager
    def spell(self, what: str, where: str, *errors: int) -> Iterator[None]:
        """While the block runs, and a while after it, programs on `where` (empty:
        everywhere) may get these errors."""
        spell = _Spell(what, where, frozenset(errors))
        with self._lock:
            self._spells.append(spell)
        try:
            yield
        finally:
            spell.ended_s = time.monotonic()

    def excuses(self, where: str, code: int, since_s: float) -> bool:
        """Whether a call on a machine that began then may fail so."""
        if code == errno.ENOSPC and self._was_full(where, since_s):
            return True
        with self._lock:
            return any(
                code in s.errors and s.where in ("", where) and s.touches(since_s)
                for s in self._spells
            )

    def _was_full(self, where: str, since_s: float) -> bool:
        if (disk := self.small_disks.get(where)) is None:
            return False
        found = os.statvfs(disk)
        if found.f_bavail * found.f_frsize < FULL_BYTES:
            self._full_s[where] = time.monotonic()
        return self._full_s.get(where, -AFTER_S) + AFTER_S > since_s

    def report(self, since_s: float) -> str:
        """What went on then."""
        with self._lock:
            felt = [s for s in self._spells if s.touches(since_s)]
        return ", ".join(f"{s.what} {s.where}".strip() for s in felt) or "nothing"

    def calm(self) -> bool:
        """Nothing goes wrong, and has not for a while."""
        now_s = time.monotonic()
        with self._lock:
            return not any(s.touches(now_s) for s in self._spells)
