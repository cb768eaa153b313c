"""The lock table of one owner: which node holds which ranges, and who waits.

The owner of an inode's locks is the member that placement ranks first; only it
grants. What a node holds is leased: it asserts its whole list every few seconds, and
what it has not asserted for LEASE_S is free. An owner that has just become one
grants nothing until every other member has asserted what it holds, or LEASE_S
later (grace). Such an assertion counts only from who knows the same members: others
assert the same locks to another owner, or grant them.

A lock may be delegated to the node that alone asks for it: all of it counts as held
there, whatever it is that the node holds, until it is returned. Who asks meanwhile
waits for that; `recalls` says what should be returned.

Source: leases, Gray and Cheriton (1989); grace period as in NFSv4, RFC 7530, 9.6;
delegations as there, 10.2.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from fusefs.model.ids import NodeId
from fusefs.nodelink.ranges import (
    UNLOCK,
    WRITE,
    HeldLock,
    Holding,
    LockKey,
    Range,
    by_key,
    changed,
    conflict,
)

LEASE_S = 15.0
RENEW_S = 5.0
MAX_WAITING = 10_000
"""Requests a table lets wait; beyond it they are refused."""
DELEGATE_AFTER = 3
"""Grants in a row to one node. SQLite takes as many locks in each transaction."""
MAX_DELEGATED = 1000
"""To one node."""
MAX_STREAKS = 10_000
"""Locks of which is remembered who was granted them last."""


class Verdict(NamedTuple):
    """The answer to a request: granted, or what stands in the way."""

    node: NodeId
    request: int
    granted: bool
    conflict: Range | None = None
    key: LockKey | None = None
    """Which lock was granted."""
    delegated: bool = False
    """And all of it, from now on."""


class _Waiter(NamedTuple):
    node: NodeId
    request: int
    key: LockKey
    want: Range
    wait: bool
    test: bool = False
    """It takes nothing."""


_Kind = tuple[NodeId, int]
"""Of requests: whose, and what for. There are few, however many wait."""


def _may_keep_back(kind: _Kind, later: _Waiter) -> bool:
    """Not those of the same node, and readers no readers."""
    node, wants = kind
    return node != later.node and WRITE in (wants, later.want.kind)


class _Grant(NamedTuple):
    key: LockKey
    want: Range
    delegated: bool


class LockTable:
    """See the module. Requests are numbered by their node. `may_delegate`: whether it
    makes sense to a node, and it knows of that."""

    def __init__(
        self,
        now: float,
        may_delegate: Callable[[NodeId], bool] = lambda node: False,
    ) -> None:
        self._may_delegate = may_delegate
        self._held: dict[LockKey, dict[NodeId, list[Range]]] = {}
        self._waiting: list[_Waiter] = []
        self._granted: dict[NodeId, dict[int, _Grant]] = {}
        """Since the last assertion: the node may not have heard of it."""
        self._delegated: dict[LockKey, NodeId] = {}
        self._recalled: set[LockKey] = set()
        """Of those delegated."""
        self._streaks: OrderedDict[LockKey, tuple[NodeId, int]] = OrderedDict()
        """To whom a lock was granted last, and how often in a row."""
        self._leases: dict[NodeId, float] = {}
        self._asserted: set[NodeId] = set()
        self._began = now

    # -- grace -----------------------------------------------------------------

    def begin_grace(self, now: float) -> None:
        """Members changed: some inodes have a new owner."""
        self._asserted.clear()
        self._began = now

    def in_grace(self, members: Collection[NodeId], now: float) -> bool:
        """Somebody may hold what we do not know of yet."""
        if now - self._began >= LEASE_S:
            return False
        return any(node not in self._asserted for node in members)

    def heard_of(self, node: NodeId) -> bool:
        """It has asserted what it holds."""
        return node in self._asserted

    # -- requests ----------------------------------------------------------------

    def ask(
        self,
        node: NodeId,
        request: int,
        key: LockKey,
        want: Range,
        wait: bool,
        grace: bool,
    ) -> list[Verdict]:
        """The verdicts this leads to; none while the request waits."""
        waiter = _Waiter(node, request, key, want, wait)
        if not grace and not self._stands_behind(waiter):
            verdict = self._verdict(waiter)
            if verdict is not None:
                return [verdict]
        return self._queue(waiter)

    def _verdict(self, waiter: _Waiter) -> Verdict | None:
        """None: it has to wait."""
        node, request, key, want, wait, test = waiter
        if self._delegated.get(key, node) != node:
            return None
        found = conflict(self._holdings(key), node, want)
        if found is not None:
            return None if wait else Verdict(node, request, False, found.range)
        if test:
            return Verdict(node, request, True)
        return Verdict(node, request, True, None, key, self._grant(waiter))

    def _queue(self, waiter: _Waiter) -> list[Verdict]:
        if len(self._waiting) >= MAX_WAITING:
            return [Verdict(waiter.node, waiter.request, False)]
        self._waiting.append(waiter)
        return []

    def _stands_behind(self, new: _Waiter) -> bool:
        return new.wait and any(self._keeps_back(w, new) for w in self._waiting)

    def _keeps_back(self, first: _Waiter, later: _Waiter) -> bool:
        """A writer that waits is not overtaken for ever by readers. But who it waits
        for may go on: else both would wait for ever."""
        if first.key != later.key or first.node == later.node:
            return False
        if first.test or later.test:
            return False
        node, want = later.node, later.want
        if not conflict([Holding(first.node, first.want)], node, want):
            return False
        ranges = self._held.get(later.key, {}).get(node, ())
        held = [Holding(node, r) for r in ranges if r.owner == want.owner]
        return not conflict(held, first.node, first.want)

    def test(
        self, node: NodeId, request: int, key: LockKey, want: Range
    ) -> list[Verdict]:
        """What stands in the way of a lock, without taking it; as `ask`."""
        waiter = _Waiter(node, request, key, want, wait=False, test=True)
        verdict = self._verdict(waiter)
        return self._queue(waiter) if verdict is None else [verdict]

    def cancel(self, node: NodeId, request: int, grace: bool) -> list[Verdict]:
        self._waiting = [
            w for w in self._waiting if (w.node, w.request) != (node, request)
        ]
        return self.retry(grace)

    def release(
        self, node: NodeId, key: LockKey, what: Range, grace: bool
    ) -> list[Verdict]:
        """`what.kind` is UNLOCK."""
        self._set(node, key, what)
        return self.retry(grace)

    def retry(self, grace: bool) -> list[Verdict]:
        """Look at everyone who waits, in the order they came."""
        if grace:
            return []
        verdicts: list[Verdict] = []
        left: list[_Waiter] = []
        ahead: dict[LockKey, dict[_Kind, list[_Waiter]]] = {}
        for waiter in self._waiting:
            kinds = ahead.get(waiter.key, {})
            blocked = waiter.wait and any(
                self._keeps_back(first, waiter)
                for kind, waiters in kinds.items()
                if _may_keep_back(kind, waiter)
                for first in waiters
            )
            verdict = None if blocked else self._verdict(waiter)
            if verdict is None:
                left.append(waiter)
                kinds = ahead.setdefault(waiter.key, {})
                kinds.setdefault((waiter.node, waiter.want.kind), []).append(waiter)
            else:
                verdicts.append(verdict)
        self._waiting = left
        return verdicts

    # -- delegations -------------------------------------------------------------

    def recalls(self) -> list[tuple[NodeId, LockKey]]:
        """Who should be told to return what others wait for, until it asserts anew."""
        if not self._delegated:
            return []
        out: list[tuple[NodeId, LockKey]] = []
        for waiter in self._waiting:
            key = waiter.key
            holder = self._delegated.get(key, waiter.node)
            if holder != waiter.node and key not in self._recalled:
                self._recalled.add(key)
                out.append((holder, key))
        return out

    def keeps(self, node: NodeId, keys: Iterable[LockKey]) -> list[LockKey]:
        """The node asserts that it decides about these. Of which others hold something
        by now."""
        return [key for key in keys if not self._delegate(node, key)]

    def returned(
        self,
        node: NodeId,
        key: LockKey,
        ranges: Sequence[Range],
        asking: Collection[int] = (),
    ) -> None:
        """It decides no more about the lock, and holds these and what was granted to
        requests it has no answer to. Call `retry` after."""
        if self._delegated.get(key) != node:
            return
        granted = self._granted.get(node, {}).items()
        unheard = [g for r, g in granted if r in asking and g.key == key]
        if any(grant.delegated for grant in unheard):
            self._recalled.discard(key)  # it answers one of before, and will decide
            return
        self._undelegate(key)
        self._streaks.pop(key, None)
        self._held.pop(key, None)
        if ranges:
            self._held[key] = {node: list(ranges)}
        for grant in unheard:
            self._set(node, key, grant.want)

    # -- nodes -------------------------------------------------------------------

    def asserted(
        self,
        node: NodeId,
        locks: Iterable[HeldLock],
        now: float,
        asking: Collection[int] = (),
        *,
        agrees: bool = True,
    ) -> list[HeldLock]:
        """All that the node holds here, and which requests it had no answer to. What
        others hold by now is lost to it and returned. Call `keeps` and `retry` after.
        Unless it `agrees` about who owns what, it may hold more."""
        self._leases[node] = now + LEASE_S
        if agrees:
            self._asserted.add(node)
            self._drop(node)
        lost: list[HeldLock] = []
        for key, ranges in by_key(locks).items():
            others = self._holdings(key)  # of other nodes, all of them
            lent = self._delegated.get(key, node) != node
            kept: list[Range] = []
            for range_ in ranges:
                if lent or conflict(others, node, range_):
                    lost.append(HeldLock(key, range_))
                else:
                    kept.append(range_)
            if kept:
                self._held.setdefault(key, {})[node] = kept
        for request, grant in list(self._granted.get(node, {}).items()):
            if request in asking:  # granted while the assertion was on its way
                self._set(node, grant.key, grant.want)
                if grant.delegated:
                    self._delegate(node, grant.key)
            else:
                del self._granted[node][request]
        return lost

    def held_by(self, node: NodeId) -> dict[LockKey, list[Range] | None]:
        """What of each lock is the node's; None: it decides about it."""
        out: dict[LockKey, list[Range] | None] = {
            key: nodes[node] for key, nodes in self._held.items() if node in nodes
        }
        return out | {k: None for k, n in self._delegated.items() if n == node}

    def disown(self, owns: Callable[[LockKey], bool]) -> list[tuple[NodeId, int]]:
        """Members changed: the others are for new owners to decide about. Who waits for
        one of them and by which number, to be told so."""
        for key in [key for key in self._held if not owns(key)]:
            del self._held[key]
        for key in [key for key in self._delegated if not owns(key)]:
            self._undelegate(key)
        moved = [w for w in self._waiting if not owns(w.key)]
        self._waiting = [w for w in self._waiting if owns(w.key)]
        for granted in self._granted.values():
            for request in [r for r, g in granted.items() if not owns(g.key)]:
                del granted[request]
        return [(w.node, w.request) for w in moved]

    def left(self, node: NodeId) -> None:
        """It said good-bye: nothing of it is held any more. Call `retry` after."""
        self._drop(node)
        self._leases.pop(node, None)
        self.disconnected(node)

    def disconnected(self, node: NodeId) -> None:
        """Its requests are void; what it holds stays until its lease ends."""
        self._waiting = [w for w in self._waiting if w.node != node]
        self._granted.pop(node, None)

    def prolong(self, by_s: float) -> None:
        """So long this node stood still and heard of no renewal, and no assertion."""
        self._began += by_s
        for node in self._leases:
            self._leases[node] += by_s

    def expire(self, now: float) -> list[NodeId]:
        """Who held something when its lease ended. Call `retry` after."""
        late = [node for node, at in self._leases.items() if at <= now]
        lost = [node for node in late if self.held_by(node)]
        for node in late:
            self.left(node)
        return lost

    def __len__(self) -> int:
        return sum(len(r) for nodes in self._held.values() for r in nodes.values())

    # -- tables ------------------------------------------------------------------

    def _holdings(self, key: LockKey) -> list[Holding]:
        return [
            Holding(node, range_)
            for node, ranges in self._held.get(key, {}).items()
            for range_ in ranges
        ]

    def _grant(self, waiter: _Waiter) -> bool:
        """Whether the lock is delegated with that."""
        node, request, key, want = waiter[:4]
        self._set(node, key, want)
        delegated = self._streak(key, node) >= DELEGATE_AFTER and self._lend(key, node)
        granted = self._granted.setdefault(node, {})
        granted[request] = _Grant(key, want, delegated)
        return delegated

    def _streak(self, key: LockKey, node: NodeId) -> int:
        last, count = self._streaks.get(key, (node, 0))
        count = count + 1 if last == node else 1
        self._streaks[key] = node, count
        self._streaks.move_to_end(key)
        if len(self._streaks) > MAX_STREAKS:
            self._streaks.popitem(last=False)
        return count

    def _lend(self, key: LockKey, node: NodeId) -> bool:
        """Delegate it, if that makes sense."""
        return (
            self._may_delegate(node)
            and not any(w.key == key and w.node != node for w in self._waiting)
            and sum(n == node for n in self._delegated.values()) < MAX_DELEGATED
            and self._delegate(node, key)
        )

    def _delegate(self, node: NodeId, key: LockKey) -> bool:
        """False: another node holds some of it, or all."""
        others = self._held.get(key, {}).keys() - {node}
        if others or self._delegated.get(key, node) != node:
            return False
        self._delegated[key] = node
        return True

    def _undelegate(self, key: LockKey) -> None:
        del self._delegated[key]
        self._recalled.discard(key)

    def _set(self, node: NodeId, key: LockKey, want: Range) -> None:
        nodes = self._held.get(key)
        if nodes is None:
            if want.kind == UNLOCK:
                return
            nodes = self._held[key] = {}
        ranges = changed(nodes.get(node, ()), want)
        if ranges:
            nodes[node] = ranges
        else:
            nodes.pop(node, None)
            if not nodes:
                del self._held[key]

    def _drop(self, node: NodeId) -> None:
        for key in [k for k, n in self._delegated.items() if n == node]:
            self._undelegate(key)
        for key in [k for k, nodes in self._held.items() if node in nodes]:
            del self._held[key][node]
            if not self._held[key]:
                del self._held[key]
