"""Locks and exclusive creation between nodes: what this one holds and asks for.

What it decides about itself is in `lockowner`, names are in `reserving`. What the
worker holds is kept here, asserted to the owners every few seconds, on every new
connection, and when the members change; the worker tells it all again when it attaches.
That list comes on another connection than the worker's changes, which are newer where
they are read first: they wait for it.

An owner that is far may delegate a lock (`core.delegations`): it is decided about here
then, without a message.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import trio

from fusefs.model.ids import NodeId
from fusefs.model.tx import Effects, Tx
from fusefs.namespace.namespace import Namespace
from fusefs.nodelink.ranges import (
    UNLOCK,
    HeldLock,
    LockKey,
    Range,
    by_key,
    changed,
    lowers,
)
from netnode.core.delegations import Delegations
from netnode.core.handover import Handovers
from netnode.core.locks import LEASE_S, RENEW_S
from netnode.core.membership import Membership
from netnode.environment import Environment
from netnode.lockowner import LockOwner
from netnode.peers import Peer, Peers
from netnode.reserving import Reserving
from netnode.settling import Settling
from netnode.wire.messages import (
    AnyMessage,
    LockAnswer,
    LockAsk,
    LockAssert,
    LockCancel,
    LockLease,
    LockRecall,
    LockRelease,
    LockReturn,
    LockTest,
)

TICK_S = 1.0
"""A task that sleeps twice as long was in a process that stood still."""

LockDone = Callable[[int, Range | None], None]
"""Told (errno or 0, what stands in the way) once."""


class _Early(NamedTuple):
    key: LockKey
    want: Range
    wait: bool
    done: LockDone


class _Asked(NamedTuple):
    owner: NodeId
    key: LockKey
    want: Range
    done: LockDone
    test: bool


class Locking:
    """See the module. `expects_worker`: there is a mount, whose worker will say
    what it holds; `alone`: what a member decides about is granted here once it was away
    for as long as a lease (ADR 7)."""

    def __init__(
        self,
        namespace: Namespace,
        membership: Membership,
        peers: Peers,
        settling: Settling,
        environment: Environment,
        expects_worker: bool,
        *,
        alone: bool = False,
    ) -> None:
        self._namespace = namespace
        self._membership = membership
        self._peers = peers
        self._settling = settling
        self._environment = environment
        self._me = namespace.node_id
        self._owner = LockOwner(
            self._me, membership.members(), peers, environment, self._answer
        )
        self._alone = alone
        self._gone_at = dict.fromkeys(membership.members(), environment.now())
        """When a member was connected last, or became one, or this node started."""
        self._delegations = Delegations()
        self._reserving = Reserving(namespace, membership, peers, environment)
        self.reserve = self._reserving.reserve
        self.give_back = self._reserving.give_back
        self._handovers = Handovers()
        self._mine: dict[LockKey, list[Range]] = {}
        self._list_due = expects_worker
        """A list of the worker is on its way, and says what was before `_early`."""
        self._early: dict[int, _Early] = {}
        self._asked: dict[int, _Asked] = {}
        self._showing: set[int] = set()
        """Granted requests whose data is on its way to the worker."""
        self._numbers = 0
        self._unsure: set[NodeId] = set()
        """Peers that have not asserted since they and we know the same members."""
        self._told = not expects_worker
        self._worker_left = environment.now() if expects_worker else None
        if not expects_worker:
            self._owner.nothing_held()

    # -- for the link ----------------------------------------------------------------

    def lock(self, key: LockKey, want: Range, wait: bool, done: LockDone) -> int:
        """Take or drop a lock; a number for `cancel`."""
        self._numbers += 1
        number = self._numbers
        if self._list_due:
            self._early[number] = _Early(key, want, wait, done)
        else:
            self._lock(number, key, want, wait, done)
        return number

    def _lock(
        self, number: int, key: LockKey, want: Range, wait: bool, done: LockDone
    ) -> None:
        owner = self._owner.of(key)
        if self._delegations.decide(key, self._environment.passed()):
            self._note(key, want)
            done(0, None)
            return
        if want.kind == UNLOCK:
            self._unlock(owner, key, want)
            done(0, None)
            return
        if lowers(self._mine.get(key, ()), want):
            self._lower(owner, key, want)
            done(0, None)
            return
        if owner != self._me and owner not in self._peers:
            granted = self._grants_alone(owner)
            if granted:
                self._note(key, want)
            done(0 if granted else errno.ENOLCK, None)
            return
        self._asked[number] = _Asked(owner, key, want, done, False)
        if owner == self._me:
            self._owner.ask(self._me, number, key, want, wait)
        else:
            self._peers.send(owner, LockAsk(number, key, want, wait))

    def test(self, key: LockKey, want: Range, done: LockDone) -> None:
        """`done(0, None)` when nothing stands in the way."""
        owner = self._owner.of(key)
        if self._delegations.decide(key, self._environment.passed()):
            done(0, None)
            return
        if owner != self._me and owner not in self._peers:
            done(0 if self._grants_alone(owner) else errno.ENOLCK, None)
            return
        self._numbers += 1
        number = self._numbers
        self._asked[number] = _Asked(owner, key, want, done, True)
        if owner == self._me:
            self._owner.test(self._me, number, key, want)
        else:
            self._peers.send(owner, LockTest(number, key, want))

    def _grants_alone(self, owner: NodeId) -> bool:
        """It hears of it when it is back. By now others may have what we held."""
        now = self._environment.now()
        return self._alone and now - self._gone_at.get(owner, now) > LEASE_S

    def cancel(self, number: int) -> None:
        """Nobody waits for it any more; `done` is not called."""
        early = self._early.get(number)
        if early is not None and early.want.kind != UNLOCK:  # what is dropped, is
            del self._early[number]
        self._showing.discard(number)
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        if asked.owner == self._me:
            self._owner.cancel(self._me, number)
        else:
            self._peers.send(asked.owner, LockCancel(number))

    def list_due(self) -> None:
        """A worker attached, or is told of the first other member: it sends what it
        holds. What it asks for from now on is newer."""
        self._list_due = True

    def worker_holds(self, locks: Sequence[HeldLock]) -> None:
        """This is everything it holds."""
        self._told = True
        self._worker_left = None
        self._list_due = False
        self._mine = by_key(locks)
        self.assert_all()
        early, self._early = self._early, {}
        for number, (key, want, wait, done) in early.items():
            self._lock(number, key, want, wait, done)

    def worker_gone(self) -> None:
        """Its programs may still run; a new worker has a lease's time to come."""
        self._worker_left = self._environment.now()

    # -- events ------------------------------------------------------------------------

    def seen(self, txs: Iterable[Tx]) -> None:
        """Transactions committed here or applied from peers."""
        self.progressed()
        self._reserving.seen(txs)

    def progressed(self) -> None:
        """More is applied here than before."""
        if len(self._handovers):
            now = self._environment.now()
            self._handovers.progressed(self._namespace.vector(), now)

    def members_changed(self) -> None:
        for node in self._membership.members():
            self._gone_at.setdefault(node, self._environment.now())
        if self._owner.members_changed(self._membership.members()):
            self._unsure.update(self._peers.ids())
            self._delegations.drop_all()
            self.assert_all()

    def joined(self, peer: Peer) -> None:
        """Its tables may have been lost, and ours need what it holds."""
        self._unsure.add(peer.id)
        self._assert_to(peer)

    def gone(self, peer: Peer) -> None:
        """What it holds stays until its lease ends: its programs may still run."""
        self._gone_at[peer.id] = self._environment.now()
        self._delegations.drop_of(peer.id)
        self._unsure.discard(peer.id)
        for number, asked in list(self._asked.items()):
            if asked.owner == peer.id:
                del self._asked[number]
                asked.done(errno.ENOLCK, None)
        self._reserving.gone(peer.id)
        self._owner.gone(peer.id)

    def stop(self) -> None:
        """This node ends: nobody should have to wait for the end of its lease. What the
        worker holds stays, which may outlive it."""
        for owner, key in self._delegations.all():
            self._return(owner, key)

    async def keep_leases(self) -> None:
        """The task that renews ours and ends those of others."""
        while True:
            for _ in range(int(RENEW_S / TICK_S)):
                before = self._environment.now()
                await trio.sleep(TICK_S)
                late_s = self._environment.now() - before - TICK_S
                if late_s > TICK_S:
                    self._owner.stood_still(late_s)
                self._tick()
            self.assert_all()

    def _tick(self) -> None:
        now = self._environment.now()
        if self._worker_left is not None and now - self._worker_left > LEASE_S:
            self.worker_holds(())
        for owner, key in self._delegations.idle(self._environment.passed()):
            self._return(owner, key)
        self._reserving.expire(now)
        self.progressed()
        self._owner.tick()

    def assert_all(self) -> None:
        """Tell every owner, ourselves included, what we hold: once we know."""
        for peer in self._peers:
            self._assert_to(peer)
        if self._told:
            self._owner.asserted(self._me, self._assertion_to(self._me))

    def _assert_to(self, peer: Peer) -> None:
        if self._told:
            peer.send(self._assertion_to(peer.id))

    def _assertion_to(self, owner: NodeId) -> LockAssert:
        held, asking = self._held_of(owner), self._asking_of(owner)
        delegated, number = self._delegations.of(owner), 0
        if delegated:
            self._numbers += 1
            number = self._numbers
            self._delegations.asserted(owner, number, self._environment.passed())
        return LockAssert(
            tuple(held),
            tuple(asking),
            self._owner.view,
            number,
            delegated,
            self._namespace.last_seq(),
        )

    # -- messages ----------------------------------------------------------------------

    def handle(self, peer: Peer, message: AnyMessage) -> bool:
        """True when it was about locks, or reservations."""
        match message:
            case LockAsk():
                self._asked_by(peer, message)
            case LockAnswer():
                told = self._answered(message)
                leased = self._delegations.leased(peer.id, self._environment.passed())
                if message.granted and (not told or (message.delegated and not leased)):
                    # It was cancelled meanwhile: the owner must not think we hold it.
                    # Or it is delegated, and may be used once an assertion counted.
                    self._assert_to(peer)
            case LockCancel():
                self._owner.cancel(peer.id, message.number)
            case LockRelease():
                self._owner.released(peer.id, message.key, message.range, message.seq)
            case LockAssert():
                self._asserted_by(peer, message)
            case LockTest():
                self._owner.test(peer.id, message.number, message.key, message.range)
            case LockLease():
                self._delegations.renewed(peer.id, message.number, message.lost)
            case LockRecall():
                self._return(peer.id, message.key)
            case LockReturn():
                self._owner.returned(peer.id, message)
            case _:
                return self._reserving.handle(peer, message)
        return True

    def _asked_by(self, peer: Peer, ask: LockAsk) -> None:
        if self._owner.is_mine(ask.key):
            self._owner.ask(peer.id, ask.number, ask.key, ask.range, ask.wait)
        else:
            peer.send(LockAnswer(ask.number, False, mistaken=True))

    def _answered(self, answer: LockAnswer) -> bool:
        """False when nobody waits for it, or another owner decides by now."""
        asked = self._asked.pop(answer.number, None)
        if asked is None:
            return False
        moved = self._owner.of(asked.key) != asked.owner
        if answer.mistaken or moved:
            asked.done(errno.ENOLCK, None)
        elif not answer.granted:  # by nothing: too many wait there
            error = errno.EAGAIN if answer.conflict else errno.ENOLCK
            asked.done(error, answer.conflict)
        else:
            if asked.test:
                asked.done(0, None)
            else:
                self._granted(answer.number, asked, answer)
        return not moved

    def _granted(self, number: int, asked: _Asked, answer: LockAnswer) -> None:
        """It is ours, and counts when the worker shows what the last holder wrote."""
        now, after = self._environment.now(), answer.after
        self._note(asked.key, asked.want)
        self._showing.add(number)
        if answer.delegated:
            passed = self._environment.passed()
            self._delegations.granted(asked.key, asked.owner, number, passed)

        def done() -> None:
            self._delegations.shown(asked.key, number)
            if number in self._showing:
                self._showing.discard(number)
                asked.done(0, None)

        def shown() -> None:
            self._settling.add(Effects(), done)

        vector = self._namespace.vector() if after else {}
        self._handovers.begin(after, vector, now, shown)

    def _asserted_by(self, peer: Peer, message: LockAssert) -> None:
        agrees = self._owner.asserted(peer.id, message)
        if agrees and peer.id in self._unsure:  # ours may have come too early for it
            self._unsure.discard(peer.id)
            self._assert_to(peer)

    # -- what is told ------------------------------------------------------------------

    def _answer(self, node: NodeId, answer: LockAnswer) -> None:
        if node == self._me:
            self._answered(answer)
        else:
            self._peers.send(node, answer)

    def _unlock(self, owner: NodeId, key: LockKey, what: Range) -> None:
        self._note(key, what)
        seq = self._namespace.last_seq()
        if owner == self._me:
            self._owner.released(self._me, key, what, seq)
        else:
            self._peers.send(owner, LockRelease(key, what, seq))

    def _lower(self, owner: NodeId, key: LockKey, want: Range) -> None:
        """The owner need not agree, and hears up to where we had written, too."""
        self._note(key, want)
        peer = self._peers.get(owner)
        if peer is not None:
            self._assert_to(peer)
        elif owner == self._me and self._told:
            self._owner.asserted(self._me, self._assertion_to(self._me))

    def _return(self, owner: NodeId, key: LockKey) -> None:
        """What we decided about, the owner decides about from now on."""
        if not self._told:  # lent to the process before: our first assertion says more
            return
        self._delegations.drop(key)
        held, asking = self._mine.get(key, ()), self._asking_of(owner)
        seq = self._namespace.last_seq()
        self._peers.send(owner, LockReturn(key, tuple(held), tuple(asking), seq))

    def _note(self, key: LockKey, want: Range) -> None:
        ranges = changed(self._mine.get(key, ()), want)
        if ranges:
            self._mine[key] = ranges
        else:
            self._mine.pop(key, None)

    def _held_of(self, owner: NodeId) -> list[HeldLock]:
        return [
            HeldLock(key, range_)
            for key, ranges in self._mine.items()
            if self._owner.of(key) == owner
            for range_ in ranges
        ]

    def _asking_of(self, owner: NodeId) -> list[int]:
        return [n for n, asked in self._asked.items() if asked.owner == owner]

    def __len__(self) -> int:
        return sum(len(ranges) for ranges in self._mine.values())

    @property
    def delegated(self) -> int:
        """Inodes whose locks are decided about here, for an owner that is far."""
        return len(self._delegations)
