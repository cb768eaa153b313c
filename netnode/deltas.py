"""Deltas out: what a peer lacks, read from the database in parts and sent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from fusefs.model.vector import Vector
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.replicate import DeltaBatch
from netnode.comparing import pieces
from netnode.environment import Environment
from netnode.peers import Peer
from netnode.wire.messages import Delta

DELTA_BYTES = 64 << 10
"""Registers in one part: applied in some 10 ms, while which nobody else writes."""
DELTA_AHEAD_BYTES = 512 << 10
"""Parts that may wait in the connection: enough to keep the peer busy."""


class Deltas:
    """For all peers; `run` is a task of each. `vector`: ours, as of now."""

    def __init__(
        self,
        namespace: Namespace,
        environment: Environment,
        vector: Callable[[], Vector],
        level: Callable[[], None],
    ) -> None:
        """`level`: told when a peer has got all, so that barriers may wait for it."""
        self._namespace = namespace
        self._environment = environment
        self._vector = vector
        self._level = level
        self.sent_messages = 0

    def look(self, peer: Peer) -> None:
        """Wake its task if it lacks anything."""
        outgoing = peer.outgoing
        if outgoing.subscribed and outgoing.lacks(self._vector()):
            outgoing.behind = True
            peer.wake()

    async def run(self, peer: Peer) -> None:
        """A delta whenever it is behind."""
        while True:
            await peer.until_behind()
            while peer.outgoing.behind:
                await self._send(peer)

    async def _send(self, peer: Peer) -> None:
        outgoing = peer.outgoing
        base: Vector | None = outgoing.delta_begins()
        round_ = outgoing.round
        with closing(self._namespace.delta(base or {}, DELTA_BYTES)) as parts:
            while True:
                part = await self._environment.offload(lambda: next(parts, None))
                if part is None or outgoing.round != round_:
                    break
                await peer.connection.stream.drained(DELTA_AHEAD_BYTES)
                if outgoing.round != round_:
                    break
                self._send_part(peer, round_, base, part)
                base = None
                outgoing.delta_part(part.advance)
        if outgoing.round == round_:
            if outgoing.delta_ends(self._vector()):
                self._level()
        else:
            outgoing.streaming = False

    def _send_part(
        self, peer: Peer, round_: int, base: Vector | None, part: DeltaBatch
    ) -> None:
        first = dict(base) if base is not None else None
        parts = list(pieces(part.states))
        for piece in parts[:-1]:
            peer.send(Delta(round_, first, piece, {}, False, part.target))
            first = None
        peer.send(Delta(round_, first, parts[-1], part.advance, part.done, part.target))
        peer.nearness.owes(self._environment.now())
        self.sent_messages += len(parts)
