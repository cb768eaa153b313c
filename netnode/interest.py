"""What the replicator tells the rest of the node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fusefs.model.ids import NodeId
from fusefs.model.tx import ContentChange, State, Tx
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

    def caught_up(self, states: Sequence[State]) -> None:
        """These registers changed, and nobody says by which transactions."""

    def placement_changed(self, keys: Sequence[bytes]) -> None:
        """These registers did, of those that decide it."""

    def ping(self, peer: Peer) -> None:
        """Send it a heartbeat now."""

    def barriers_changed(self) -> None:
        """Which peers a barrier waits for may have changed."""
