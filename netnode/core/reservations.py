"""Who may create a name: one of several that ask at once.

The owner of a name (the first member in placement order that is up) gives it to one
node; the reservation ends when that node's next transaction about the name is seen,
is given back, or after a while if neither comes. Until then nobody gets it again, that
node's other processes included: one of them might use it twice. Nodes that do not see
the same owner fall back to what the merge does with two entries of one name.
"""

from __future__ import annotations

from fusefs.model.ids import NodeId

LIFE_S = 3.0
"""Far longer than from the grant to the transaction's arrival."""
MAX_HELD = 100_000


class Reservations:
    """By dirent register key."""

    def __init__(self) -> None:
        self._held: dict[bytes, tuple[NodeId, int, float]] = {}

    def ask(self, node: NodeId, seq: int, key: bytes, now: float) -> bool:
        """True: the node, whose last transaction was `seq`, may create it."""
        holder = self._held.get(key)
        if holder is not None and holder[2] > now:
            return False
        if len(self._held) >= MAX_HELD:
            self._forget_late(now)
        self._held.pop(key, None)
        self._held[key] = (node, seq, now + LIFE_S)
        return True

    def seen(self, node: NodeId, seq: int, key: bytes) -> None:
        """A transaction of the node wrote this name."""
        holder = self._held.get(key)
        if holder is not None and holder[0] == node and seq > holder[1]:
            del self._held[key]

    def give_back(self, node: NodeId, key: bytes) -> None:
        """The node does not make it after all."""
        holder = self._held.get(key)
        if holder is not None and holder[0] == node:
            del self._held[key]

    def _forget_late(self, now: float) -> None:
        for key, (_, _, until) in list(self._held.items()):
            if until > now and len(self._held) < MAX_HELD:
                break
            del self._held[key]

    def __len__(self) -> int:
        return len(self._held)
