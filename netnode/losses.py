"""What a power cut took from this node, and who may have it: it is asked back."""

from __future__ import annotations

from fusefs.model.ids import NodeId, Seq
from fusefs.model.vector import Vector
from fusefs.namespace.namespace import Namespace


class Losses:
    """Nothing to do unless the namespace says that something was lost."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._me = namespace.node_id
        self._lost_after = namespace.life.lost_after()
        self._asked: set[NodeId] = set()

    def wanting(self, peer: NodeId, vector: Vector) -> dict[NodeId, Seq]:
        """From where this peer shall send, given what we have."""
        wanting = dict(vector)
        if self._lost_after is not None and peer not in self._asked:
            wanting[self._me] = min(wanting.get(self._me, Seq(0)), self._lost_after)
        return wanting

    def told(self, vector: Vector) -> dict[NodeId, Seq]:
        """What a Hello says we have: of our own no more than what is surely here. Who
        has forgotten deletes that were lost here must not take us for one that knows
        of them."""
        telling = dict(vector)
        if self._lost_after is not None:
            own = telling.get(self._me, Seq(0))
            telling[self._me] = min(own, self._lost_after)
        return telling

    def got_back(self, peer: NodeId) -> None:
        """All that the peer has of what was lost here is here again."""
        if self._lost_after is None:
            return
        self._asked.add(peer)
        members = self._namespace.members()
        if all(
            n in self._asked or members[n].forgotten or n == self._me for n in members
        ):
            self._lost_after = None
            self._namespace.life.found_again()
