"""What the next holder of a lock has to have seen: release consistency.

A node that lets go of a lock says up to which transaction it has written. The owner
remembers that per lock and says it to whoever is granted the lock next, on the same
node or another; the node of that holder waits until it shows all of it. So a lock
hands over the data it guards even where the close barrier gave up.

Source: lazy release consistency, Keleher, Cox and Zwaenepoel (1992), section 3.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fusefs.model.ids import NodeId, Seq
from fusefs.model.vector import Vector, dominates
from fusefs.nodelink.ranges import LockKey

MAX_LOCKS = 10_000
"""Remembered by an owner; what is forgotten, the barrier has to have handed over."""
ASSERTED_S = 30.0
"""So long an owner that has just become one has everybody show what was written before,
whatever the lock: others knew who held it. By then it has long travelled."""
LIMIT_S = 5.0
"""A holder waits no longer for what the last one wrote: its node may be lost."""

Ready = Callable[[], None]


class Releases:
    """The owner's memory."""

    def __init__(self) -> None:
        self._last: OrderedDict[LockKey, dict[NodeId, Seq]] = OrderedDict()
        self._asserted: dict[NodeId, tuple[Seq, float]] = {}
        """Up to where it had written when we heard of it first, and until when that
        counts."""

    def asserted(self, node: NodeId, seq: Seq, now: float) -> None:
        """What it let go of before, it had written up to `seq`; we do not know what."""
        self._asserted[node] = seq, now + ASSERTED_S

    def released(self, key: LockKey, node: NodeId, seq: Seq) -> None:
        """`node` let go of (a part of) a lock, having written up to `seq`."""
        seen = self._last.setdefault(key, {})
        self._last.move_to_end(key)
        if seen.get(node, 0) < seq:
            seen[node] = seq
        if len(self._last) > MAX_LOCKS:
            self._last.popitem(last=False)

    def before(self, key: LockKey, node: NodeId, now: float) -> dict[NodeId, Seq]:
        """What `node` has to show before it holds the lock."""
        out = {n: s for n, s in self._last.get(key, {}).items() if n != node}
        for other, (seq, until) in self._asserted.items():
            if other != node and until > now and out.get(other, 0) < seq:
                out[other] = seq
        return out

    def __len__(self) -> int:
        return len(self._last)


class _Waiting(NamedTuple):
    after: Mapping[NodeId, Seq]
    deadline: float
    ready: Ready


class Handovers:
    """The holder's waiting: granted locks whose data is still on its way."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []

    def begin(
        self, after: Mapping[NodeId, Seq], vector: Vector, now: float, ready: Ready
    ) -> None:
        """Calls `ready`, now or from one of the other methods."""
        if dominates(vector, after):
            ready()
        else:
            self._waiting.append(_Waiting(after, now + LIMIT_S, ready))

    def progressed(self, vector: Vector, now: float) -> None:
        """The vector has grown, or time went by."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if each.deadline <= now or dominates(vector, each.after):
                each.ready()
            else:
                self._waiting.append(each)

    def __len__(self) -> int:
        return len(self._waiting)
