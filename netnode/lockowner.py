"""The locks that this node decides about: carries out `core.locks` for the inodes it
owns, and remembers what the next holder of each has to be shown (`core.handover`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping

from fusefs.model.ids import Ino, NodeId, Seq
from fusefs.nodelink.ranges import LockKey, Range
from netnode.core.handover import Releases
from netnode.core.locks import LEASE_S, LockTable, Verdict
from netnode.core.placement import ranked, view_of
from netnode.environment import Environment
from netnode.peers import Peers
from netnode.wire.messages import (
    DELEGATIONS,
    LockAnswer,
    LockAssert,
    LockLease,
    LockRecall,
    LockReturn,
)

log = logging.getLogger(__name__)

Answer = Callable[[NodeId, LockAnswer], None]
"""To a node that asked; this one, too."""


class LockOwner:
    """See the module. Answers are given at once, or when something else is told."""

    def __init__(
        self,
        me: NodeId,
        members: Collection[NodeId],
        peers: Peers,
        environment: Environment,
        answer: Answer,
    ) -> None:
        self._me = me
        self._members = tuple(members)
        self._peers = peers
        self._environment = environment
        self._answer = answer
        self.view = view_of(self._members)
        """Of the members, by which the owners are found."""
        self._table = LockTable(environment.now(), self._may_delegate)
        self._releases = Releases()
        self._ticked = environment.now()
        """Grace is over by this: time for which we stood still does not count."""

    # -- who decides -------------------------------------------------------------------

    def of(self, key: LockKey) -> NodeId:
        """Who decides about the locks of an inode: the same on every member."""
        return ranked(lock_place(key.ino), self._members)[0]

    def is_mine(self, key: LockKey) -> bool:
        return self.of(key) == self._me

    def members_changed(self, members: Collection[NodeId]) -> bool:
        """False: they are those that we know."""
        if tuple(members) == self._members:
            return False
        self._members, self.view = tuple(members), view_of(members)
        for node, request in self._table.disown(self.is_mine):
            self._answer(node, LockAnswer(request, False, mistaken=True))
        self._table.begin_grace(self._environment.now())
        return True

    # -- requests ----------------------------------------------------------------------

    def ask(
        self, node: NodeId, number: int, key: LockKey, want: Range, wait: bool
    ) -> None:
        self._tell(self._table.ask(node, number, key, want, wait, self._grace()))

    def test(self, node: NodeId, number: int, key: LockKey, want: Range) -> None:
        self._tell(self._table.test(node, number, key, want))

    def cancel(self, node: NodeId, number: int) -> None:
        self._tell(self._table.cancel(node, number, self._grace()))

    def released(self, node: NodeId, key: LockKey, what: Range, seq: Seq) -> None:
        """`seq`: up to where it had written by then."""
        self._releases.released(key, node, seq)
        self._tell(self._table.release(node, key, what, self._grace()))

    def returned(self, node: NodeId, message: LockReturn) -> None:
        """It does not decide about that any more."""
        self._releases.released(message.key, node, message.seq)
        self._table.returned(node, message.key, message.ranges, message.asking)
        self.retry()

    # -- nodes -------------------------------------------------------------------------

    def nothing_held(self) -> None:
        """By this node: there is no mount."""
        self._table.asserted(self._me, (), self._environment.now())

    def asserted(self, node: NodeId, message: LockAssert) -> bool:
        """What it holds; whether that is all, for it knows the same members."""
        now, agrees = self._environment.now(), message.view in (0, self.view)
        before = self._table.held_by(node)
        if agrees and not self._table.heard_of(node):
            self._releases.asserted(node, message.seq, now)
        mine = [lock for lock in message.locks if self.is_mine(lock.key)]
        lost = self._table.asserted(node, mine, now, message.asking, agrees=agrees)
        if lost:
            log.warning("%x asserts %d locks that others hold", node, len(lost))
        if agrees and message.number:
            keys = [key for key in message.delegated if self.is_mine(key)]
            taken = self._table.keeps(node, keys)
            self._peers.send(node, LockLease(message.number, tuple(taken)))
        if message.seq:
            self._let_go(node, before, message.seq)
        self.retry()
        return agrees

    def _let_go(
        self, node: NodeId, before: Mapping[LockKey, list[Range] | None], seq: Seq
    ) -> None:
        """Who is granted what it held before, or decided about, has to show what it
        wrote: no release said so, or its connection broke."""
        after = self._table.held_by(node)
        for key, ranges in before.items():
            if after.get(key, []) != ranges:
                self._releases.released(key, node, seq)

    def gone(self, node: NodeId) -> None:
        """What it holds stays until its lease ends: its programs may still run."""
        self._table.disconnected(node)
        self.retry()

    # -- time --------------------------------------------------------------------------

    def stood_still(self, for_s: float) -> None:
        """This process: nobody could renew a lease."""
        self._table.prolong(for_s)

    def tick(self) -> None:
        """Every second or so."""
        now = self._ticked = self._environment.now()
        for node in self._table.expire(now):
            if node != self._me:
                log.warning("%x lost its locks: no renewal for %d s", node, LEASE_S)
        self.retry()

    def retry(self) -> None:
        """Look at who waits."""
        self._tell(self._table.retry(self._grace()))

    def _grace(self) -> bool:
        return self._table.in_grace(self._members, self._ticked)

    # -- answers -----------------------------------------------------------------------

    def _tell(self, verdicts: Iterable[Verdict]) -> None:
        now = self._environment.now()
        for node, request, granted, stands, key, delegated in verdicts:
            after = self._releases.before(key, node, now) if granted and key else {}
            self._answer(
                node, LockAnswer(request, granted, stands, False, after, delegated)
            )
        for node, key in self._table.recalls():
            self._peers.send(node, LockRecall(key))

    def _may_delegate(self, node: NodeId) -> bool:
        """To peers for which asking takes long."""
        peer = self._peers.get(node)
        return (
            peer is not None
            and peer.connection.version >= DELEGATIONS
            and peer.nearness.far
        )


def lock_place(ino: Ino) -> bytes:
    """What placement ranks the members for."""
    return b"lock" + ino.to_bytes(8, "big")
