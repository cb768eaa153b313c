"""The peers we are connected to: one control connection each, and what we know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import trio

from fusefs.model.ids import NodeId
from netnode.connection import Connection
from netnode.core.membership import Link
from netnode.core.nearness import Nearness
from netnode.core.repair import Repair
from netnode.core.replication import Outgoing
from netnode.core.timetable import Row
from netnode.wire.messages import AnyMessage, Hello

MAX_QUEUED_BYTES = 4 << 20
"""Live transactions waiting for one peer; beyond it the peer gets a delta later."""


class Parted(NamedTuple):
    """How the last connection with a peer ended."""

    wall_ms: int
    why: str


class Peer:
    """One connected peer. Lives as long as its control connection."""

    def __init__(
        self, me: NodeId, hello: Hello, connection: Connection, link: Link, address: str
    ) -> None:
        self.id = hello.node
        self.name = hello.name
        self.hello = hello
        self.connection = connection
        self.link = link
        self.address = address
        self.outgoing = Outgoing(me, hello.node)
        self.nearness = Nearness()
        self.repair = Repair()
        self.scope = trio.CancelScope()
        self.pings: dict[int, float] = {}
        self.rows: dict[NodeId, Row] = {}
        """What it was told of the disks of others."""
        self.heard = False
        """It sent a heartbeat: it takes us for a member, as we take it."""
        self.why_closed = ""
        self._behind = trio.Event()

    @property
    def dialled(self) -> bool:
        """We opened the connection."""
        return self.link.dialled_by != self.id

    def send(self, message: AnyMessage) -> None:
        self.connection.send(message)

    def close(self, why: str) -> None:
        """End the connection; its task cleans up."""
        if not self.why_closed:
            self.why_closed = why
        self.scope.cancel()

    @property
    def congested(self) -> bool:
        return self.connection.stream.queued_bytes > MAX_QUEUED_BYTES

    def waits_in_barriers(self, now: float) -> bool:
        return self.outgoing.was_level and self.nearness.near(now)

    # -- the task that sends deltas sleeps here -------------------------------------

    def wake(self) -> None:
        """There is a delta to send."""
        self._behind.set()

    async def until_behind(self) -> None:
        await self._behind.wait()
        self._behind = trio.Event()


class Peers:
    """All of them, by node id."""

    def __init__(self) -> None:
        self._peers: dict[NodeId, Peer] = {}

    def add(self, peer: Peer) -> None:
        self._peers[peer.id] = peer

    def remove(self, peer: Peer) -> bool:
        """True when it was this connection that counted."""
        if self._peers.get(peer.id) is not peer:
            return False
        del self._peers[peer.id]
        return True

    def get(self, node: NodeId) -> Peer | None:
        return self._peers.get(node)

    def send(self, node: NodeId, message: AnyMessage) -> None:
        """Nothing, where it is not connected."""
        peer = self._peers.get(node)
        if peer is not None:
            peer.send(message)

    def ids(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self._peers))

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, node: NodeId) -> bool:
        return node in self._peers
