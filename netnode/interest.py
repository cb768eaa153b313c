"""What the replicator tells the rest of the node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fusefs.model.ids import NodeId
from fusefs.model.tx import ContentChange, Tx
from netnode.peers import Peer


class Interest(Protocol):
    """Who else wants to know what was committed or applied."""

    def committed(self, txs: Sequence[Tx]) -> None:
        """Local transactions."""

    def received(self, txs: Sequence[Tx]) -> None:
        """Transactions of peers that came live and are applied."""

    def applied(self, writes: Sequence[tuple[NodeId, bytes, bytes]]) -> None:
        """Something of peers was applied: (writer, key, value) of the content registers
        whose writer is not connected; often none."""

    def replaced(self, changes: Sequence[ContentChange]) -> None:
        """Files show other versions than before; often none."""

    def membership_changed(self) -> None:
        """Member or setting registers changed."""

    def ping(self, peer: Peer) -> None:
        """Send it a heartbeat now."""

    def barriers_changed(self) -> None:
        """Which peers a barrier waits for may have changed."""
