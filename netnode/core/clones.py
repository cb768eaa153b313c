"""Which processes run on a copy of a store that is in use: a machine was cloned.

Each process of a node says another random number (`boot` of Hello), and one that ended
never comes back. So where two take turns both are there. The one that was seen first
goes on, the other is told, and may come back as a new node.
"""

from __future__ import annotations

from collections import deque

from fusefs.model.ids import NodeId

TURNS = 8
"""That prove it. What a process had sent may be read once it has ended, and after its
successor was met, by who was suspended meanwhile: but not between one dialling of the
successor and the next."""
BOOTS = 16
"""Remembered of a node."""


class _Boots:
    def __init__(self) -> None:
        self.seen: deque[int] = deque(maxlen=BOOTS)
        self.copies: deque[int] = deque(maxlen=BOOTS)
        self.current = 0
        self.turns: list[int] = []
        """Boots that were met again after another one was."""

    def meet(self, boot: int) -> None:
        if boot not in self.seen:
            self.seen.append(boot)
            self.turns.clear()
        elif boot != self.current:
            self.turns.append(boot)
        self.current = boot
        if len(self.turns) >= TURNS:
            first = min(self.turns, key=self.seen.index)
            self.copies.extend({*self.turns} - {first})
            self.turns.clear()


class Clones:
    """See the module; of all nodes that are met."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, _Boots] = {}

    def meet(self, node: NodeId, boot: int) -> None:
        """It wants to be a peer."""
        if not self.is_copy(node, boot):
            self._nodes.setdefault(node, _Boots()).meet(boot)

    def is_copy(self, node: NodeId, boot: int) -> bool:
        """Known to be, by now."""
        known = self._nodes.get(node)
        return known is not None and boot in known.copies
