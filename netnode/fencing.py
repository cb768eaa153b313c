"""Acknowledging before applying, where the kernel here holds nothing that is wrong
afterwards (docs/adr/0002): `core.early` says what a change touches, the fence what the
kernel may hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusefs.model.ids import NodeId, Seq
from fusefs.model.tx import Tx
from fusefs.model.vector import Vector
from fusefs.namespace.namespace import Namespace
from fusefs.nodelink.fence import NodeFence
from netnode.core.early import Touched, touched


class Fencing:
    """Used from the trio thread. `fence` None: nothing is early."""

    def __init__(self, namespace: Namespace, fence: NodeFence | None) -> None:
        self._namespace = namespace
        self._fence = fence

    def put_up(self, txs: Sequence[Tx], ours: Vector) -> bool:
        """Whether these may be acknowledged now; then the fence is up, until they are
        applied and somebody is told, or `take_back`."""
        fence = self._fence
        if fence is None or not fence.usable or not _follow(txs, ours):
            return False
        touches = touched(txs)
        if touches is None:
            return False
        fence.put_up()
        known = True
        try:
            known = self._may_be_known(fence, touches)
        finally:
            if known:
                fence.take_back()
        return not known

    def take_back(self) -> None:
        """What it was put up for is not applied after all."""
        if self._fence is not None:
            self._fence.take_back()

    def _may_be_known(self, fence: NodeFence, touches: Touched) -> bool:
        if fence.may_know(touches.inos):
            return True
        if any(fence.may_have_listed(d) for d in touches.directories):
            return True
        for parent, name in touches.names:
            if fence.may_know_absent(parent, name):
                return True
            shown = self._namespace.shown(parent, name)
            if shown and fence.may_know((shown,)):
                return True
        return False


def _follow(txs: Sequence[Tx], vector: Vector) -> bool:
    """Whether applying them finds no gap."""
    ours: dict[NodeId, Seq] = {}
    for tx in txs:
        have = ours.get(tx.node, vector.get(tx.node, Seq(0)))
        if tx.prev > have:
            return False
        ours[tx.node] = max(have, tx.seq)
    return True
