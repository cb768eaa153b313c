"""One line that tells how far long work has come; nothing unless on a terminal."""

from __future__ import annotations

import sys
import time

EVERY_S = 0.1


class Progress:
    """Overwrites its own line on standard error. Used by one thread."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._next_s = 0.0
        self._phase = ""

    def __call__(self, phase: str, done: int) -> None:
        """`done` things of this phase are looked at."""
        now_s = time.monotonic()
        if not self._shown or (phase == self._phase and now_s < self._next_s):
            return
        self._phase, self._next_s = phase, now_s + EVERY_S
        print(f"\r\033[K{phase} {done:,}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Takes the line away, before something else is printed."""
        if self._shown and self._phase:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
