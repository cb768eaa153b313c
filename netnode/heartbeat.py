"""Heartbeats: how far a peer is, what it has, and whether it is still there."""

from __future__ import annotations

from collections.abc import Callable

import trio

from netnode.environment import Environment
from netnode.peers import Peer, Peers
from netnode.wire.messages import Ping

HEARTBEAT_S = 2.0
DEAD_S = 6.0
"""A peer that sent no byte for so long is gone."""
REMEMBERED = 4
"""Pings of one peer whose answer may still come."""


class Heartbeat:
    """For all peers; used from the trio thread."""

    def __init__(
        self,
        peers: Peers,
        environment: Environment,
        content: Callable[[int, Peer], Ping],
        dismiss: Callable[[Peer], None],
    ) -> None:
        """`content`: what a heartbeat of this number tells a peer; `dismiss`: a silent
        peer counts for nothing from now on."""
        self._peers = peers
        self._environment = environment
        self._content = content
        self._dismiss = dismiss
        self._number = 0

    def ping(self, peer: Peer) -> None:
        """Measures the distance, tells what we have."""
        self._number += 1
        ping = self._content(self._number, peer)
        peer.pings[self._number] = self._environment.now()
        while len(peer.pings) > REMEMBERED:
            del peer.pings[next(iter(peer.pings))]
        peer.send(ping)

    def answered(self, peer: Peer, number: int) -> bool:
        """A Pong; True when it measured the distance anew. Closes wait for nobody who
        is not known to be near, so a doubt does not last until the next heartbeat."""
        sent = peer.pings.pop(number, None)
        if sent is None:
            return False
        peer.nearness.measured(self._environment.now() - sent)
        if peer.nearness.unsure:
            self.ping(peer)
        return True

    async def run(self, after: Callable[[], None]) -> None:
        """For ever; `after` each round."""
        while True:
            await trio.sleep(HEARTBEAT_S)
            for peer in self._peers:
                if peer.connection.silent_s > DEAD_S:
                    peer.close(f"silent for {DEAD_S:.0f} s")
                    self._dismiss(peer)
                else:
                    self.ping(peer)
            after()
