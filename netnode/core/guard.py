"""The mass-delete guard: when changes of other nodes are held for a person to decide.

One emptied disk must not empty all. Counted are the inodes of some age that changes of
others would take away within a window; more than a share of the tree, and not just a
few, are held: nothing of others is applied, nothing acknowledged, until somebody
decides.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import NamedTuple

from fusefs.model.ids import Ino

SHARE = 0.3
"""Of the tree as it was before: a cleanup is less, an emptied disk is more."""
LEAST = 100
"""Removed entries; what is below is looked through by hand."""
WINDOW_S = 60.0
"""Long enough for a slow `rm -rf`, short enough that a day's work is no alarm."""
YOUNG_S = 600.0
"""What is made and removed again within this time (builds, checkouts, archives that
were looked into, temporary files) is no loss of the tree."""


class State(Enum):
    OPEN = "applies what comes"
    HELD = "waits for a decision"
    PASSING = "applies what was held"
    REJECTING = "applies what was held, then brings it back"


class Removals(NamedTuple):
    """What some changes would take away."""

    inos: list[Ino]
    counted: int
    """How many of them are old enough to be missed."""


class Guard:
    """`share` 0: never holds anything. `tree`: how many inodes there are that count."""

    def __init__(
        self,
        share: float = SHARE,
        least: int = LEAST,
        window_s: float = WINDOW_S,
        young_s: float = YOUNG_S,
    ) -> None:
        self.share = share
        self.least = least
        self.window_s = window_s
        self.young_s = young_s
        self.state = State.OPEN
        self.held = 0
        """How many would go: what the changes at hand say, at least."""
        self._recent: deque[tuple[float, Removals]] = deque()
        self._counted = 0

    def resume(self, state: State, held: int, removed: list[Ino]) -> None:
        """Go on where an earlier process was; `removed` are gone already."""
        self.state = state
        self.held = held
        self._recent.append((float("-inf"), Removals(removed, 0)))

    @property
    def removed_inos(self) -> list[Ino]:
        """All that would be brought back."""
        return [ino for _, gone in self._recent for ino in gone.inos]

    @property
    def holding(self) -> bool:
        return self.state is State.HELD

    def old_ns(self, wall_ms: int) -> int:
        """What was made before this moment counts."""
        return wall_ms * 1_000_000 - int(self.young_s * 1e9)

    def near(self, count: int, now: float) -> bool:
        """Whether `count` more could be too many: only then is `tree` needed."""
        if not self.share or not count or self.state is not State.OPEN:
            return False
        self._expire(now)
        return self._counted + count >= self.least

    def judge(self, count: int, tree: int, now: float) -> bool:
        """Changes would remove so many that count; True: hold them."""
        if not self.near(count, now):
            return self.holding
        gone = self._counted + count
        if gone <= self.share * (tree + self._counted):
            return False
        self.state = State.HELD
        self.held = gone
        return True

    def removed(self, removals: Removals, now: float) -> None:
        """They were removed: that was fine, or a person wanted it applied."""
        if self.share:
            self._recent.append((now, removals))
            self._counted += removals.counted
            self._expire(now)

    def _expire(self, now: float) -> None:
        if self.state is State.OPEN:
            while self._recent and self._recent[0][0] < now - self.window_s:
                self._counted -= self._recent.popleft()[1].counted

    def decide(self, apply: bool) -> bool:
        """A person decided; False: nothing is held."""
        if not self.holding:
            return False
        self.state = State.PASSING if apply else State.REJECTING
        return True

    def level(self) -> list[Ino]:
        """All that was held is applied: the inodes to bring back. It starts anew."""
        rejected = self.state is State.REJECTING
        back = self.removed_inos if rejected else []
        self.state = State.OPEN
        self.held = self._counted = 0
        self._recent.clear()
        return back
