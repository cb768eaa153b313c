"""Hybrid logical clock: 48 bits of milliseconds, 16 bits of counter, one integer.

Source: Kulkarni et al., "Logical Physical Clocks" (2014), figure 5, with the
counter in the low bits so that stamps compare as integers.
"""

from __future__ import annotations

from typing import NewType

Hlc = NewType("Hlc", int)

COUNTER_BITS = 16
MAX_HLC = (1 << 62) - 1
"""Of a stamp from elsewhere (the year 4199): the database takes 63 bits, and what
happens after it has to have stamps, too."""
MAX_AHEAD_MS = 5 * 60 * 1000
"""A stamp further ahead of our clock than this is refused (a broken clock)."""


def tick(last: Hlc, now_ms: int) -> Hlc:
    """The next stamp for a local event: above `last`, at least `now_ms`."""
    return Hlc(max(last + 1, now_ms << COUNTER_BITS))


def physical_ms(stamp: Hlc) -> int:
    """The wall clock part, milliseconds since the epoch."""
    return stamp >> COUNTER_BITS


def latest(now_ms: int) -> Hlc:
    """The highest stamp accepted from elsewhere now."""
    return Hlc(min(MAX_HLC, (now_ms + MAX_AHEAD_MS + 1 << COUNTER_BITS) - 1))
