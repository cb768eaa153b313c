"""Anti-entropy of last resort: equal vectors, different digests.

Two heartbeats in a row that say so start a comparison with that peer: digests of
256 buckets, then keys and hashes of the buckets that differ, then the registers
that differ. Both sides do it and merge what they get.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

SUSPICIONS = 2
"""Heartbeats in a row: one may fall between a vector and its digest."""
PATIENCE = 8
"""Heartbeats after which a comparison that got no answer is begun anew."""


class Agreement(Enum):
    UNKNOWN = "not compared yet"
    SAME = "in sync"
    SUSPECT = "different once"
    REPAIRING = "diverged, repairing"


class Repair:
    """The comparison with one peer."""

    def __init__(self) -> None:
        self.agreement = Agreement.UNKNOWN
        self.repaired = 0
        """Registers that were brought over."""
        self._strikes = 0
        self._buckets: list[int] = []

    def compared(self, same: bool) -> bool:
        """A heartbeat with equal vectors; True: ask for the buckets now."""
        if same:
            self.agreement = Agreement.SAME
            self._strikes = 0
            self._buckets = []
            return False
        self._strikes += 1
        if self._strikes < SUSPICIONS:
            self.agreement = Agreement.SUSPECT
            return False
        begin = (
            self.agreement is not Agreement.REPAIRING or not self._strikes % PATIENCE
        )
        self.agreement = Agreement.REPAIRING
        return begin

    def buckets(self, ours: Sequence[bytes], theirs: Sequence[bytes]) -> int | None:
        """Their bucket digests came: the first bucket to ask for."""
        self._buckets = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
        return self.next_bucket()

    def next_bucket(self) -> int | None:
        """The next bucket to ask for; None: all are done."""
        if self._buckets:
            return self._buckets.pop()
        self._strikes = 0
        self.agreement = Agreement.UNKNOWN
        return None


def differing(
    ours: Mapping[bytes, bytes], theirs: Iterable[tuple[bytes, bytes]]
) -> list[bytes]:
    """The keys whose registers they have and we have not, or not the same."""
    return [key for key, digest in theirs if ours.get(key) != digest]
