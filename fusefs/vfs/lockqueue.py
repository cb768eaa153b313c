"""Requests that wait for a lock of this node, each to be called when it may have it.

Waking all of them for each unlock is work that grows with their square, and for all
but one of them in vain. Called are those, in the order they came, whom nothing stands
in the way of, not even another one that is called with them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from fusefs.model.ids import Ino
from fusefs.vfs.types import FileLock

Key = tuple[Ino, bool]
"""Inode, and whether flock."""


class Sleeper:
    """One request. `called`: since it last slept."""

    __slots__ = ("_turn", "called", "key", "owner", "want")

    def __init__(
        self, key: Key, owner: int, want: FileLock, turn: threading.Condition
    ) -> None:
        self.key = key
        self.owner = owner
        self.want = want
        self.called = False
        self._turn = turn

    @property
    def is_flock(self) -> bool:
        return self.key[1]

    def sleep(self, limit_s: float | None) -> None:
        """Until it is called, or so long; gives the mutex up meanwhile."""
        self.called = False
        self._turn.wait(limit_s)

    def call(self) -> None:
        self.called = True
        self._turn.notify()


class LockQueue:
    """Everything happens under the mutex of the tables.

    `free`: whether no lock and no claim is in the way of a request; `apart`: whether
    two requests may be granted together.
    """

    def __init__(
        self,
        mutex: threading.RLock,
        free: Callable[[Sleeper], bool],
        apart: Callable[[Sleeper, Sleeper], bool],
    ) -> None:
        self._mutex = mutex
        self._free = free
        self._apart = apart
        self._sleepers: dict[Key, dict[Sleeper, None]] = {}
        self._count = 0

    def join(self, key: Key, owner: int, want: FileLock) -> Sleeper:
        turn = threading.Condition(self._mutex)
        sleeper = Sleeper(key, owner, want, turn)
        self._sleepers.setdefault(key, {})[sleeper] = None
        self._count += 1
        return sleeper

    def leave(self, sleeper: Sleeper) -> None:
        """It has what it waited for, or gives up. Then `call` those that were passed
        over for it."""
        waiting = self._sleepers[sleeper.key]
        del waiting[sleeper]
        self._count -= 1
        if not waiting:
            del self._sleepers[sleeper.key]

    def call(self, key: Key, start: int, end: int) -> None:
        """Something changed in that range of the file."""
        called: list[Sleeper] = []
        for sleeper in self._sleepers.get(key, ()):
            want = sleeper.want
            if want.start > end or start > want.end or not self._free(sleeper):
                continue
            if all(self._apart(other, sleeper) for other in called):
                called.append(sleeper)
                sleeper.call()

    def __len__(self) -> int:
        return self._count
