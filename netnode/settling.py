"""Acknowledgements that wait until the worker has forgotten what peers changed.

In order: what is added later is never released earlier. Without a mount there is
nothing to forget and everything is released at once. While the worker of a mount is
away (it crashed and a new one is coming, or this node has just started) its kernel
caches live on, so what is added waits for it, for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from fusefs.model.tx import Effects

AWAY_S = 10.0
"""A worker away for longer has left a mount that answers nothing anyway."""
MAX_PENDING_BYTES = 4 << 20
"""Of effects under way to the worker; beyond it it is told to forget everything."""
ENTRY_BYTES = 100

Release = Callable[[], None]


class Worker(Protocol):
    """The connection to the worker."""

    def changed(self, number: int, effects: Effects, everything: bool) -> None:
        """Send it; `Settling.done(number)` follows."""


class Settling:
    """See the module. One user at a time; nothing here waits."""

    def __init__(
        self, now: Callable[[], float], *, expects_worker: bool = False
    ) -> None:
        """`expects_worker`: there is a mount, whose worker is on its way."""
        self._now = now
        self._worker: Worker | None = None
        self._away_since = now() if expects_worker else None
        self._pending: deque[tuple[int, int, Release | None]] = deque()
        self._number = 0
        self._bytes = 0
        self._forgetting = 0
        """The number of the "forget everything" under way."""
        self._again = False

    @property
    def pending(self) -> bool:
        """Something is not forgotten yet."""
        return bool(self._pending)

    def attached(self, worker: Worker) -> None:
        """A worker is there: it forgets everything, then what waits is released."""
        self._worker = worker
        self._away_since = None
        self._forget_everything()

    def detached(self, worker: Worker) -> None:
        if self._worker is worker:
            self._worker = None
            self._away_since = self._now()

    def left(self) -> None:
        """The mount is gone for good: nothing to wait for."""
        self._away_since = None
        self._release_up_to(self._number)

    def add(self, effects: Effects, release: Release | None) -> None:
        """Call `release` once the worker has forgotten what these touch."""
        if not effects and not self._pending:
            if release is not None:
                release()
            return
        if self._worker is None:
            self._add_without_worker(release)
            return
        if not effects:
            self._pending.append((self._number, 0, release))
            return
        size = ENTRY_BYTES * (
            1 + len(effects.entries) + len(effects.inodes) + len(effects.contents)
        )
        self._number += 1
        self._pending.append((self._number, size, release))
        self._bytes += size
        if self._forgetting:
            self._again = True
        elif self._bytes > MAX_PENDING_BYTES:
            self._forget_everything()
        else:
            self._worker.changed(self._number, effects, False)

    def _add_without_worker(self, release: Release | None) -> None:
        if self._away_since is None:
            if release is not None:
                release()
            return
        self._pending.append((self._number, 0, release))

    def _forget_everything(self) -> None:
        """Bounded: at most one is under way; what comes meanwhile asks for another."""
        assert self._worker is not None
        self._number += 1
        self._forgetting = self._number
        self._again = False
        self._pending.append((self._number, 0, None))
        self._worker.changed(self._number, Effects(), True)

    def done(self, number: int) -> None:
        """The worker has forgotten everything up to this number."""
        if self._forgetting and number >= self._forgetting:
            self._forgetting = 0
            self._release_up_to(number)
            if self._again and self._worker is not None:
                self._forget_everything()
        else:
            self._release_up_to(number)

    def tick(self) -> None:
        """Now and then: a worker that stays away is not waited for."""
        away = self._away_since
        if away is not None and self._now() - away > AWAY_S:
            self.left()

    def _release_up_to(self, number: int) -> None:
        while self._pending and self._pending[0][0] <= number:
            _, size, release = self._pending.popleft()
            self._bytes -= size
            if release is not None:
                release()
