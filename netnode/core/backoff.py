"""Pauses between attempts: growing, bounded, and different on every node."""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 0.2
"""A restarted peer is soon back."""
LONGEST_S = 15.0
"""A peer that was away for a day is noticed within this time."""
FACTOR = 1.7


class Backoff:
    """`uniform` is random.Random.uniform or a stand-in."""

    def __init__(
        self,
        uniform: Callable[[float, float], float],
        first_s: float = FIRST_S,
        longest_s: float = LONGEST_S,
    ) -> None:
        self._uniform = uniform
        self._first_s = first_s
        self._longest_s = longest_s
        self._pause_s = first_s

    def next_s(self) -> float:
        """How long to wait now; the next pause is longer."""
        pause = self._pause_s
        self._pause_s = min(self._longest_s, pause * FACTOR)
        return self._uniform(pause / 2, pause)

    def reset(self) -> None:
        """After a success."""
        self._pause_s = self._first_s
