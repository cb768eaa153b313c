"""flock(2) and fcntl(2) record locks, between processes here and between nodes.

This node's table decides first; who passes it claims the range while `Peers.lock`
asks the cluster, and holds it only when both agreed. So nothing has to be undone,
and no lock is ever granted by one of them alone. A claim that waits for another
node keeps local requests behind it: waiting ones queue, others would block.

What is held, and through which handles, is kept for the next worker (`lockjournal.py`):
an upgrade takes no lock from a program.

Record locks (POSIX and OFD) are ranges with an owner; flock is one whole-file lock
of another kind: the two never see each other.

Source: fcntl(2), flock(2), linux/fs/locks.c (deadlock detection).
"""

from __future__ import annotations

import errno
import fcntl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from fusefs.errors import FsError, Interrupted, Invalid, NoLocks, WouldBlock
from fusefs.model.ids import Ino
from fusefs.nodelink.ranges import HeldLock, LockKey, Range
from fusefs.vfs.lockjournal import LockJournal, Through
from fusefs.vfs.lockqueue import Key, LockQueue, Sleeper
from fusefs.vfs.ports import Alone, Peers
from fusefs.vfs.types import FileLock

OFFSET_MAX = (1 << 63) - 1
_POLL_S = 0.05
"""How soon a waiting lock notices an interrupt: below what a user notices."""
_POLLERS = 20
"""With more of them that wait it takes longer, so that they cost no more together."""
MAX_HELD = 10_000
"""Locks of one node; beyond it ENOLCK, as of a kernel whose lock table is full. All are
told in one message, to the node and to an owner (20,000, 1 MiB), and looked through at
each change of a file's."""
_RELEASE_S = 0.003
"""A refusal waits this long: nobody waits for the answer to a RELEASE, so that of the
last holder may have been read before our request and have its turn only now."""
_RELEASE_LIMIT_S = 0.05
"""The same while the holder's unlock is under way, which waits for the node only."""
_EDEADLK = 35

_F_RDLCK, _F_WRLCK, _F_UNLCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
_EVERYTHING = FileLock(_F_UNLCK, 0, OFFSET_MAX, 0)
Cancelled = Callable[[], bool] | None


class Held(NamedTuple):
    owner: int
    kind: int
    start: int
    end: int
    pid: int


class _Claim:
    """A change the cluster is being asked for. Two of one owner never overlap, so
    that the cluster hears of them in our order."""

    __slots__ = ("dropped", "held", "wait")

    def __init__(self, held: Held, wait: bool) -> None:
        self.held = held
        self.wait = wait
        self.dropped: list[FileLock] = []
        """What the owner unlocked or closed meanwhile: it goes when it is granted. Not
        from one that waits, which has nothing to lose yet; if the descriptor it waits
        through is closed, the kernel unlocks (linux/fs/locks.c, fcntl_setlk)."""


class Locks:
    """Thread-safe. Waiting gives the mutex up: for a lock in the queue, else on
    `_changed`."""

    def __init__(
        self,
        peers: Peers | None = None,
        failure: int = errno.ENOLCK,
        journal: LockJournal | None = None,
    ) -> None:
        """`failure`: the errno when the cluster cannot decide. `journal`: what the
        worker before left, and where this one leaves its own."""
        self._peers = peers if peers is not None else Alone()
        self._failure = failure
        self._journal = journal if journal is not None else LockJournal()
        # All tables; nothing is called under it but the journal, a short write.
        mutex = threading.RLock()
        self._changed = threading.Condition(mutex)
        self._held: dict[Key, list[Held]] = {
            (key.ino, key.is_flock): [_held(range_) for range_ in ranges]
            for key, ranges in self._journal.held.items()
        }
        self._count = sum(map(len, self._held.values()))
        self._through: dict[int, Through] = self._journal.through
        """Handles that were locked through."""
        self._claims: dict[Key, list[_Claim]] = {}
        self._queue = LockQueue(mutex, self._is_free, _go_together)
        self._waiting: dict[int, Sleeper] = {}
        """Record locks: owner -> what it waits for, to find deadlocks."""

    # -- requests --------------------------------------------------------------

    def test(
        self,
        ino: Ino,
        owner: int,
        want: FileLock,
        is_flock: bool,
        cancelled: Cancelled = None,
    ) -> FileLock:
        """F_GETLK: a lock that stands in the way, or F_UNLCK. One of another node
        has pid 0. Raises NoLocks, Interrupted."""
        _check(want)
        key = (ino, is_flock)
        with self._changed:
            began_s = 0.0
            while holders := self._conflicts(key, owner, want):
                began_s = began_s or time.monotonic()
                if not self._may_be_released(key, holders, began_s):
                    held = holders[0]
                    return FileLock(held.kind, held.start, held.end, held.pid)
        try:
            found = self._peers.test_lock(
                ino, _range(owner, want), is_flock=is_flock, cancelled=cancelled
            )
        except NoLocks as error:
            raise self._failed(error) from error
        if found is None:
            return FileLock(_F_UNLCK, 0, 0, 0)
        return FileLock(found.kind, found.start, found.end, 0)

    def change(
        self,
        ino: Ino,
        owner: int,
        want: FileLock,
        wait: bool,
        is_flock: bool,
        cancelled: Cancelled,
        handle: int = 0,
    ) -> None:
        """Take, change or drop a lock. It is gone when the `handle` is `closed`.

        Raises: WouldBlock when not waiting; NoLocks when nobody can tell, and of more
        than MAX_HELD; Interrupted; EDEADLK when waiting for processes of this node
        would never end.
        """
        _check(want)
        key = (ino, is_flock)
        if self._count >= MAX_HELD:
            self._check_room(key, owner, want)
        if want.kind == _F_UNLCK:
            self._unlock(key, owner, want)
            return
        with self._changed:
            if handle:
                self._through.setdefault(handle, (ino, set()))[1].add(owner)
            if self._has(key, owner, want):
                return
        if is_flock and want.kind == _F_WRLCK:
            self._unlock(key, owner, want)  # a conversion gives it up first (flock(2))
        claim = self._claim(key, owner, want, wait, cancelled)
        granted = False
        try:
            self._peers.lock(
                ino,
                _range(owner, want),
                is_flock=is_flock,
                wait=wait,
                cancelled=cancelled,
            )
            granted = True
        except NoLocks as error:
            raise self._failed(error) from error
        finally:
            self._decided(key, claim, want if granted else None, handle)
        for dropped in claim.dropped:
            self._unlock(key, owner, dropped)

    def drop(self, ino: Ino, owner: int, is_flock: bool) -> None:
        """The owner closed the file: everything it held on it is free. Costs nothing
        for files that nobody locked."""
        key = (ino, is_flock)
        if key in self._held or key in self._claims:
            self._unlock(key, owner, _EVERYTHING)

    def flushed(self, ino: Ino, owner: int, handle: int) -> None:
        """A process closed a descriptor: its record locks on the file are free. A
        RELEASE of the handle, which may come late, must not take newer ones."""
        through = self._through.get(handle)
        if through is not None:
            with self._changed:
                through[1].discard(owner)
        self.drop(ino, owner, False)

    def closed(self, handle: int) -> None:
        """The last descriptor of an open is gone, here or under an earlier worker: what
        was locked through it is free. Costs nothing when nothing was."""
        if handle not in self._through:
            return
        with self._changed:
            ino, owners = self._through.pop(handle)
        for owner in owners:
            self.drop(ino, owner, False)
            self.drop(ino, owner, True)

    def record_locked(self) -> list[Ino]:
        """Inodes with record locks, which a close(2) of any descriptor drops."""
        with self._changed:
            return [ino for ino, is_flock in self._held if not is_flock]

    def exclude_others(self, ino: Ino) -> bool:
        """Somebody here has a lock that processes of another node may wait for, or
        ask for when they are connected again."""
        return self._peers.has_members() and (
            (ino, False) in self._held or (ino, True) in self._held
        )

    def __len__(self) -> int:
        return self._count

    # -- with the cluster --------------------------------------------------------

    def _claim(
        self, key: Key, owner: int, want: FileLock, wait: bool, cancelled: Cancelled
    ) -> _Claim:
        """Wait until no process of this node is in the way, and keep it so."""
        claim = _Claim(_lock(owner, want), wait)
        began_s = 0.0
        sleeper: Sleeper | None = None
        with self._changed, ExitStack() as leaving:
            while True:
                claims = self._claims_before(key, owner, want)
                holders = self._conflicts(key, owner, want)
                if not claims and not holders:
                    break
                if not wait and any(c.wait for c in claims):
                    raise WouldBlock("another process waits for it")
                if not wait and holders:
                    if cancelled is not None and cancelled():  # others are served, too
                        raise Interrupted("interrupted while waiting for a lock")
                    began_s = began_s or time.monotonic()
                    if not self._may_be_released(key, holders, began_s):
                        raise WouldBlock("locked by another process")
                    continue
                if sleeper is None:
                    sleeper = self._queue.join(key, owner, want)
                    leaving.callback(self._leave, sleeper)
                elif sleeper.called:  # and another one came first
                    self._queue.call(key, want.start, want.end)
                self._wait(sleeper, cancelled)
            self._claims.setdefault(key, []).append(claim)
        return claim

    def _leave(self, sleeper: Sleeper) -> None:
        """Others may have been passed over for it."""
        self._queue.leave(sleeper)
        if sleeper.called:
            self._queue.call(sleeper.key, sleeper.want.start, sleeper.want.end)

    def _may_be_released(self, key: Key, holders: list[Held], began_s: float) -> bool:
        """Give holders that have closed the file the time to be heard of: True, look
        again; False: they had it."""
        claims = self._claims.get(key, ())
        leaving = {c.held.owner for c in claims if c.held.kind == _F_UNLCK}
        limit_s = _RELEASE_S
        if all(held.owner in leaving for held in holders):
            limit_s = _RELEASE_LIMIT_S
        left_s = began_s + limit_s - time.monotonic()
        if left_s <= 0:
            return False
        self._changed.wait(min(left_s, _RELEASE_S))
        return True

    def _decided(
        self, key: Key, claim: _Claim, want: FileLock | None, handle: int = 0
    ) -> None:
        with self._changed:
            claims = self._claims[key]
            claims.remove(claim)
            if not claims:
                del self._claims[key]
            self._changed.notify_all()
            if want is not None:
                self._replace(key, claim.held.owner, want)
                self._keep(key, _range(claim.held.owner, want), handle)
            self._queue.call(key, claim.held.start, claim.held.end)

    def _unlock(self, key: Key, owner: int, want: FileLock) -> None:
        """Never fails, and waits for no other process."""
        what = Held(owner, _F_UNLCK, want.start, want.end, 0)
        with self._changed:
            for other in self._claims.get(key, ()):
                if (
                    other.held.owner == owner
                    and other.held.kind != _F_UNLCK
                    and not other.wait
                ):
                    other.dropped.append(want._replace(kind=_F_UNLCK))
            if not any(
                h.owner == owner and _overlap(h, want) for h in self._held.get(key, ())
            ):
                return
            while any(  # another thread unlocks it, too: the node answers at once
                c.held.kind == _F_UNLCK for c in self._own_claims(key, owner, want)
            ):
                self._changed.wait()
            claim = _Claim(what, False)
            self._claims.setdefault(key, []).append(claim)
        try:
            self._peers.lock(
                key[0], _range(owner, what), is_flock=key[1], wait=False, cancelled=None
            )
        finally:
            self._decided(key, claim, want._replace(kind=_F_UNLCK))

    def _failed(self, error: NoLocks) -> FsError:
        return FsError(error.strerror or "", errno=self._failure)

    # -- tables, under `_changed` ------------------------------------------------

    def _wait(self, sleeper: Sleeper, cancelled: Cancelled) -> None:
        if not sleeper.is_flock:
            if self._deadlock(sleeper):
                raise FsError("waiting would never end", errno=_EDEADLK)
            self._waiting[sleeper.owner] = sleeper
        poll_s = _POLL_S * max(1.0, len(self._queue) / _POLLERS)
        try:
            sleeper.sleep(poll_s if cancelled is not None else None)
        finally:
            self._waiting.pop(sleeper.owner, None)
        if cancelled is not None and cancelled():
            raise Interrupted("interrupted while waiting for a lock")

    def _deadlock(self, sleeper: Sleeper) -> bool:
        seen: set[int] = set()
        todo = self._in_the_way(sleeper)
        while todo:
            other = todo.pop()
            if other == sleeper.owner:
                return True
            if other not in seen:
                seen.add(other)
                waiting = self._waiting.get(other)
                if waiting is not None:
                    todo |= self._in_the_way(waiting)
        return False

    def _in_the_way(self, sleeper: Sleeper) -> set[int]:
        """Owners whose locks, and claims, it waits for."""
        key, owner, want = sleeper.key, sleeper.owner, sleeper.want
        owners = {h.owner for h in self._conflicts(key, owner, want)}
        owners.update(c.held.owner for c in self._claims_before(key, owner, want))
        return owners - {owner}

    def _is_free(self, sleeper: Sleeper) -> bool:
        key, owner, want = sleeper.key, sleeper.owner, sleeper.want
        return not (
            self._claims_before(key, owner, want) or self._conflicts(key, owner, want)
        )

    def _conflicts(self, key: Key, owner: int, want: FileLock) -> list[Held]:
        return [h for h in self._held.get(key, ()) if _conflict(h, owner, want)]

    def _claims_before(self, key: Key, owner: int, want: FileLock) -> list[_Claim]:
        """Claims to be decided first: of others in the way, of the owner any that
        overlaps."""
        claims = self._claims.get(key)
        if not claims:
            return []
        return self._own_claims(key, owner, want) + [
            c
            for c in claims
            if c.held.kind != _F_UNLCK and _conflict(c.held, owner, want)
        ]

    def _own_claims(self, key: Key, owner: int, want: FileLock) -> list[_Claim]:
        return [
            c
            for c in self._claims.get(key, ())
            if c.held.owner == owner and _overlap(c.held, want)
        ]

    def _has(self, key: Key, owner: int, want: FileLock) -> bool:
        """The owner holds all of it already, and nothing of it is being changed."""
        return not self._own_claims(key, owner, want) and any(
            h.owner == owner
            and h.kind == want.kind
            and h.start <= want.start
            and want.end <= h.end
            for h in self._held.get(key, ())
        )

    def _keep(self, key: Key, change: Range, handle: int) -> None:
        """For the next worker."""
        if not self._journal.append(LockKey(*key), change, handle):
            self._journal.rewrite(
                [
                    HeldLock(LockKey(*key), _range(held.owner, held))
                    for key, all_held in self._held.items()
                    for held in all_held
                ],
                self._through,
            )

    def _check_room(self, key: Key, owner: int, want: FileLock) -> None:
        """An unlock may cut one lock in two, so it can be refused as well (fcntl(2)).
        Raises NoLocks."""
        with self._changed:
            before = self._held.get(key, [])
            more = len(_replaced(before, owner, want)) - len(before)
            if more > 0 and self._count + more > MAX_HELD:
                raise NoLocks(f"{self._count} locks are held on this node")

    def _replace(self, key: Key, owner: int, want: FileLock) -> None:
        before = self._held.get(key, [])
        after = _replaced(before, owner, want)
        self._count += len(after) - len(before)
        if after:
            self._held[key] = after
        else:
            self._held.pop(key, None)


def _replaced(before: list[Held], owner: int, want: FileLock) -> list[Held]:
    """The owner's range becomes `want`: split, cut and join what it had."""
    after = [h for h in before if h.owner != owner]
    start, end = want.start, want.end
    for h in before:
        if h.owner != owner:
            continue
        if h.kind == want.kind and h.start <= end + 1 and start <= h.end + 1:
            start, end = min(start, h.start), max(end, h.end)
            continue
        if h.start < want.start:
            after.append(h._replace(end=min(h.end, want.start - 1)))
        if h.end > want.end:
            after.append(h._replace(start=max(h.start, want.end + 1)))
    if want.kind != _F_UNLCK:
        after.append(Held(owner, want.kind, start, end, want.pid))
    return sorted(after, key=lambda h: h.start)


def _overlap(held: Held, want: FileLock) -> bool:
    return held.start <= want.end and want.start <= held.end


def _conflict(held: Held, owner: int, want: FileLock) -> bool:
    return (
        held.owner != owner
        and _overlap(held, want)
        and _F_WRLCK in (held.kind, want.kind)
    )


def _go_together(one: Sleeper, other: Sleeper) -> bool:
    """Whether they may be granted at once; of one owner, which overlap, may not."""
    if one.owner == other.owner:
        return one.want.start > other.want.end or other.want.start > one.want.end
    return not _conflict(_lock(one.owner, one.want), other.owner, other.want)


def _lock(owner: int, want: FileLock) -> Held:
    return Held(owner, want.kind, want.start, want.end, want.pid)


def _held(range_: Range) -> Held:
    return Held(range_.owner, range_.kind, range_.start, range_.end, range_.pid)


def _range(owner: int, want: FileLock | Held) -> Range:
    return Range(owner, want.kind, want.start, want.end, want.pid)


def _check(want: FileLock) -> None:
    if want.kind not in (_F_RDLCK, _F_WRLCK, _F_UNLCK):
        raise Invalid(f"lock kind {want.kind}")
    if not 0 <= want.start <= want.end:
        raise Invalid("a lock's range is backwards")
