"""What goes wrong just now, and which errors of programs that explains."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

AFTER_S = 6.0
"""So long after the end of something a program may still feel it: a silent peer is
noticed after 6 s."""

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
        with self._lock:
            return any(
                code in s.errors and s.where in ("", where) and s.touches(since_s)
                for s in self._spells
            )

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
