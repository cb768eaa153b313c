"""How far a peer is, and whether a close waits for it."""

from __future__ import annotations

from collections import deque

NEAR_S = 0.010
"""Round trip of a near peer: a building or a city, not a continent."""
SAMPLES = 10
"""Heartbeats remembered. The least of them counts: load delays an answer, nothing
hastens one."""
SURE_SAMPLES = 6
"""So many before a peer is taken for far: a busy machine answers the first ones, while
it still sets the connection up, in 12 to 24 ms."""
SLOW_S = 1.0
"""A peer that owes an acknowledgement for this long is not waited for until it
has caught up: it must not slow the others down."""


class Nearness:
    """One peer's measured distance and promptness."""

    def __init__(self, near_s: float = NEAR_S) -> None:
        self._near_s = near_s
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._owes_since: float | None = None

    def measured(self, rtt_s: float) -> None:
        self._samples.append(rtt_s)

    def owes(self, now: float) -> None:
        """Something was sent that it has to acknowledge."""
        if self._owes_since is None:
            self._owes_since = now

    def progressed(self, now: float, level: bool) -> None:
        """It acknowledged something; `level`: all there was."""
        self._owes_since = None if level else now

    @property
    def rtt_s(self) -> float | None:
        return min(self._samples) if self._samples else None

    @property
    def unsure(self) -> bool:
        """It seems to be far, and more measurements may say otherwise."""
        return self._seems_far and len(self._samples) < SURE_SAMPLES

    @property
    def far(self) -> bool:
        """Asking it takes long, whatever it is busy with; False while `unsure`."""
        return self._seems_far and len(self._samples) >= SURE_SAMPLES

    @property
    def _seems_far(self) -> bool:
        rtt = self.rtt_s
        return rtt is not None and rtt > self._near_s

    def near(self, now: float) -> bool:
        """Whether a barrier waits for this peer."""
        rtt = self.rtt_s
        if rtt is None or rtt > self._near_s:
            return False
        return self._owes_since is None or now - self._owes_since < SLOW_S
