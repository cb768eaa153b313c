"""What the worker asks the node about locks and names that exclude other nodes.

Keeps what this worker holds: a node that starts anew is told. Thread-safe; nothing
waits for the node under a lock.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable

from fusefs.errors import FsError, NoLocks, WouldBlock
from fusefs.model.ids import Ino
from fusefs.nodelink.calls import (
    LOOK_AGAIN_S,
    NODE_BACK_S,
    Calls,
    NodeDown,
    Request,
    check_cancelled,
)
from fusefs.nodelink.messages import (
    HeldLocks,
    Lock,
    LockDone,
    LockTest,
    Reserve,
    Reserved,
)
from fusefs.nodelink.ranges import (
    UNLOCK,
    HeldLock,
    LockKey,
    Range,
    by_key,
    changed,
    lowers,
    within,
)

LOCK_LIMIT_S = 20.0
"""For an answer about a lock: longer than the grace period of a new owner."""
RESERVE_LIMIT_S = 1.0
"""Near nodes answer within milliseconds; one that hangs holds up no creation."""
OWNER_BACK_S = 5.0
"""So long a waiting lock bears with an owner that is away: it may be restarting."""


class LinkLocks:
    """See the module. `flush`: sends what was published, before a lock is dropped.
    `held`: by the programs of this mount since an earlier worker."""

    def __init__(
        self,
        calls: Calls,
        flush: Callable[[], object],
        held: Iterable[HeldLock] = (),
    ) -> None:
        self._calls = calls
        self._flush = flush
        self._told = threading.Event()  # the node knows the locks we hold
        self._members = -1  # not known yet: as if there were some
        self._lock = threading.Lock()  # _held, and _members before it; nothing waits
        self._held = by_key(held)
        self._lists = 0
        """How often `held` was looked at to be told."""

    def attached(self) -> None:
        """`held` is sent next: with it a first member needs no list of its own, which
        changes could overtake."""
        with self._lock:
            self._members = self._members or -1

    def note_members(self, count: int) -> bool:
        """How many other members there are; True: the first one, to be told of what
        we hold."""
        with self._lock:
            alone, self._members = not self._members, count
        return alone and count > 0

    def has_members(self) -> bool:
        """Whether there are other members, as far as we know, connected or not."""
        return self._members != 0

    def told(self) -> None:
        """The node has been sent `held`."""
        self._told.set()

    def forgotten(self) -> None:
        """The node that knew is gone."""
        self._told.clear()

    def wait_told(self, limit_s: float) -> bool:
        """Whether a node knows within the time."""
        return self._told.wait(limit_s)

    def held(self) -> HeldLocks:
        """All of them, as a node is told that knows none."""
        with self._lock:
            self._lists += 1
            return HeldLocks(
                tuple(
                    HeldLock(key, range_)
                    for key, ranges in self._held.items()
                    for range_ in ranges
                )
            )

    def release_all(self) -> bool:
        """There is no mount any more, and so no holder. False: there was none."""
        with self._lock:
            some = bool(self._held)
            self._held = {}
        return some

    # -- locks -------------------------------------------------------------------------

    def lock(
        self,
        ino: Ino,
        want: Range,
        *,
        is_flock: bool,
        wait: bool,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Take, change or (kind UNLOCK) drop a lock that excludes other nodes.

        Between processes of this node the caller decides, before it asks here.
        Raises WouldBlock (another node holds it, not waiting), NoLocks (the node that
        decides cannot be reached), Interrupted. Dropping never fails, nor does keeping
        to read what is held to write.
        """
        key = LockKey(ino, is_flock)
        if self._gives_up(key, want):
            if self._note(key, want) and self._members:
                self._flush()  # the next holder waits for what we wrote
                self._say(Lock(0, key, want, False))
            return
        asked = False
        while True:
            with self._lock:
                if not self._members:  # a first one will be told of it
                    self._note_locked(key, want)
                    return
                lists = self._lists
            try:
                self._ask(key, want, wait, cancelled)
            except FsError:
                if asked:
                    self._take_back(key, want)
                raise
            with self._lock:
                if lists == self._lists:
                    self._note_locked(key, want)
                    return
            asked = True  # and a list without it was on its way: is it still ours?

    def test(
        self,
        ino: Ino,
        want: Range,
        *,
        is_flock: bool,
        cancelled: Callable[[], bool] | None = None,
    ) -> Range | None:
        """A lock of another node that stands in the way; who decides may have to ask
        that node. Raises NoLocks, Interrupted."""
        if not self._members:
            return None
        message = LockTest(0, LockKey(ino, is_flock), want)
        try:
            deadline = time.monotonic() + LOCK_LIMIT_S
            answer = self._calls.call_patiently(message, deadline, cancelled)
        except NodeDown as error:
            raise NoLocks("the node process is not running") from error
        if not isinstance(answer, LockDone) or answer.error == errno.ENOLCK:
            raise NoLocks("the node that decides about this lock is away")
        return answer.conflict

    def _ask(
        self,
        key: LockKey,
        want: Range,
        wait: bool,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        """Returns when it is ours. Raises WouldBlock, NoLocks, Interrupted."""
        failing = time.monotonic()
        deadline = None if wait else failing + LOCK_LIMIT_S
        while True:
            self._wait_until_told(cancelled)
            asked = time.monotonic()
            try:
                answer = self._calls.call_patiently(
                    Lock(0, key, want, wait),
                    deadline,
                    cancelled,
                    lambda: self._undo(key, want),
                )
            except NodeDown as error:
                raise NoLocks("the node process is not running") from error
            if isinstance(answer, LockDone) and answer.error != errno.ENOLCK:
                break
            now = time.monotonic()
            if now - asked > OWNER_BACK_S:  # it waited in a queue before
                failing = now
            if not wait or now - failing > OWNER_BACK_S:
                raise NoLocks("the node that decides about this lock is away")
            self._calls.pause(LOOK_AGAIN_S)
            check_cancelled(cancelled)
        if answer.error:
            raise WouldBlock("another node holds the lock")

    def _wait_until_told(self, cancelled: Callable[[], bool] | None) -> None:
        """A node that has just started must first hear what we hold."""
        give_up = time.monotonic() + NODE_BACK_S
        while not self._told.is_set():
            if time.monotonic() > give_up:
                raise NoLocks("the node process is not running")
            self._told.wait(LOOK_AGAIN_S)
            check_cancelled(cancelled)

    def _undo(self, key: LockKey, want: Range) -> list[Request]:
        """What the node should think after a lock that nobody waits for any more."""
        with self._lock:
            parts = within(self._held.get(key, ()), want)
        return [Lock(0, key, part, False) for part in parts]

    def _take_back(self, key: LockKey, want: Range) -> None:
        for request in self._undo(key, want):
            self._say(request)

    def _gives_up(self, key: LockKey, want: Range) -> bool:
        """It takes nothing."""
        with self._lock:
            return want.kind == UNLOCK or lowers(self._held.get(key, ()), want)

    def _say(self, request: Request) -> None:
        try:
            self._calls.call_twice(request, time.monotonic() + LOCK_LIMIT_S)
        except NodeDown:
            pass  # a new node hears from us what we hold, and that is not among it

    def _note(self, key: LockKey, want: Range) -> bool:
        """False when nothing changed."""
        with self._lock:
            return self._note_locked(key, want)

    def _note_locked(self, key: LockKey, want: Range) -> bool:
        before = self._held.get(key, [])
        after = changed(before, want)
        if after:
            self._held[key] = after
        else:
            self._held.pop(key, None)
        return before != after

    # -- exclusive creation --------------------------------------------------------

    def reserve(self, parent: Ino, name: bytes) -> bool:
        """Before an exclusive creation: False when a near node has the name or is
        creating it. True when there is no node, or nobody answers in time."""
        deadline = time.monotonic() + RESERVE_LIMIT_S
        try:
            answer = self._calls.call_twice(Reserve(0, parent, name), deadline)
        except NodeDown:
            return True
        return not isinstance(answer, Reserved) or answer.granted

    def give_back(self, parent: Ino, name: bytes) -> None:
        """What `reserve` granted is not made after all. Never fails."""
        deadline = time.monotonic() + RESERVE_LIMIT_S
        try:
            self._calls.call_twice(Reserve(0, parent, name, True), deadline)
        except NodeDown:
            pass
