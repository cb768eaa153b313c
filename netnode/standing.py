"""How far this node is behind its peers: whether it has all they have, in numbers and
in words."""

from __future__ import annotations

from collections.abc import Callable, Collection

from fusefs.model.ids import NodeId
from fusefs.model.vector import Vector
from fusefs.namespace.namespace import Namespace
from netnode.core.repair import Agreement
from netnode.core.replication import Incoming
from netnode.holding import Holding
from netnode.peers import Peers


class Standing:
    """Used from the trio thread; changes nothing."""

    def __init__(
        self,
        namespace: Namespace,
        peers: Peers,
        incoming: Incoming,
        holding: Holding,
        vector: Callable[[], Vector],
    ) -> None:
        """`vector`: ours, as of now."""
        self._me = namespace.node_id
        self._namespace = namespace
        self._peers = peers
        self._incoming = incoming
        self._holding = holding
        self._vector = vector

    def behind(self) -> tuple[int, NodeId] | None:
        """How many operations we lack, from whom."""
        worst: tuple[int, NodeId] | None = None
        vector = self._vector()
        for peer in self._peers:
            theirs = self._incoming.has(peer.id)
            lag = sum(
                max(0, seq - vector.get(node, 0))
                for node, seq in theirs.items()
                if node != self._me
            )
            if lag and (worst is None or lag > worst[0]):
                worst = (lag, peer.id)
        return worst

    def level(self) -> bool:
        """A peer is connected, and what any connected one has is applied here."""
        following = self._peers and not self._incoming.catching_up()
        return bool(following) and self.behind() is None

    def nobody_has(self, lacking: Collection[NodeId]) -> bool:
        """Whether what we lack of these was lost with them: they were forgotten, or are
        connected and have it no more, and no connected peer has it either."""
        if self._incoming.catching_up() or self.behind() is not None:
            return False
        members = self._namespace.members()
        forgotten = {node for node, member in members.items() if member.forgotten}
        return all(node in self._peers or node in forgotten for node in lacking)

    def sentence(self) -> str:
        """`in sync`, `behind by N operations from NAME`, `diverged, repairing`, ..."""
        if self._holding.active:
            return self._holding.sentence()
        behind = self.behind()
        if behind is not None:
            peer = self._peers.get(behind[1])
            name = peer.name if peer else f"{behind[1]:x}"
            return f"behind by {behind[0]} operations from {name}"
        states = {peer.repair.agreement for peer in self._peers}
        if Agreement.REPAIRING in states:
            return "diverged, repairing"
        if self._incoming.catching_up():
            return "catching up"
        return "in sync" if self._peers else "alone"
