"""Locks that stay where they are used: what the holder of delegations knows.

An owner that is far delegates the locks of an inode to the node that alone asks for
them. That node decides about them itself until the owner recalls them, which it does
when another node asks.

The owner takes what is delegated for held as long as the node's lease lasts. The holder
counts the same lease from when it sent the last assertion that the owner confirmed: it
was received later than that, so the holder stops deciding first. Its `now` has to count
the time for which its machine was suspended: nobody told it then that others decide.

Source: delegations as in NFSv4, RFC 7530, 10.2; leases, Gray and Cheriton (1989).
"""

from __future__ import annotations

from collections.abc import Iterable

from fusefs.model.ids import NodeId
from fusefs.nodelink.ranges import LockKey
from netnode.core.locks import LEASE_S

MARGIN_S = 1.0
"""Two clocks count 15 s less differently than that."""
IDLE_S = 60.0
"""What was not used for so long is returned: were its node to vanish, others would
have to wait."""


class _Delegation:
    __slots__ = ("owner", "request", "shown", "used")

    def __init__(self, owner: NodeId, request: int, now: float) -> None:
        self.owner = owner
        self.request = request
        self.shown = False
        self.used = now


class Delegations:
    """See the module. Owners are told of what is returned by the caller."""

    def __init__(self) -> None:
        self._held: dict[LockKey, _Delegation] = {}
        self._until: dict[NodeId, float] = {}
        """When the lease with this owner ends."""
        self._asserted: dict[NodeId, dict[int, float]] = {}
        """Assertions that are not confirmed, and when they were sent."""

    # -- what the owner says -----------------------------------------------------------

    def granted(self, key: LockKey, owner: NodeId, request: int, now: float) -> None:
        """With the lock of that request came all of the key."""
        self._held[key] = _Delegation(owner, request, now)

    def shown(self, key: LockKey, request: int) -> None:
        """What holders before that request wrote can be seen here."""
        held = self._held.get(key)
        if held is not None and held.request == request:
            held.shown = True

    def renewed(self, owner: NodeId, number: int, lost: Iterable[LockKey]) -> None:
        """The owner counted that assertion. What is `lost` others hold by now."""
        for key in lost:
            self.drop(key)
        waiting = self._asserted.get(owner, {})
        sent = waiting.get(number)
        if sent is not None:
            self._until[owner] = sent + LEASE_S - MARGIN_S
            self._asserted[owner] = {n: at for n, at in waiting.items() if n > number}

    # -- what we do --------------------------------------------------------------------

    def decide(self, key: LockKey, now: float) -> bool:
        """Whether this node decides about a request, now."""
        held = self._held.get(key)
        if held is None or not held.shown or not self.leased(held.owner, now):
            return False
        held.used = now
        return True

    def leased(self, owner: NodeId, now: float) -> bool:
        """Whether the owner confirmed an assertion lately: what it delegates then may
        be decided about at once."""
        return self._until.get(owner, 0.0) > now

    def asserted(self, owner: NodeId, number: int, now: float) -> None:
        """An assertion that names `of(owner)` is sent."""
        late = now - LEASE_S  # an owner that knows other members confirms none
        waiting = self._asserted.get(owner, {})
        self._asserted[owner] = {n: at for n, at in waiting.items() if at > late}
        self._asserted[owner][number] = now

    def of(self, owner: NodeId) -> tuple[LockKey, ...]:
        """What this owner delegated, and counts as ours."""
        return tuple(k for k, held in self._held.items() if held.owner == owner)

    def all(self) -> list[tuple[NodeId, LockKey]]:
        """With its owner each."""
        return [(held.owner, key) for key, held in self._held.items()]

    def idle(self, now: float) -> list[tuple[NodeId, LockKey]]:
        """Owner and key of what should be returned: not used for long."""
        return [
            (held.owner, key)
            for key, held in self._held.items()
            if now - held.used > IDLE_S
        ]

    def drop(self, key: LockKey) -> None:
        """The owner decides about it again."""
        self._held.pop(key, None)

    def drop_of(self, owner: NodeId) -> None:
        """It is not connected any more."""
        for key in self.of(owner):
            self.drop(key)
        self._until.pop(owner, None)
        self._asserted.pop(owner, None)

    def drop_all(self) -> None:
        """Members changed: others may be the owners."""
        self._held.clear()

    def __len__(self) -> int:
        return len(self._held)
