"""The tasks of one connected peer: its streams, and what its messages are for.

Whatever goes wrong in one of them ends this peer only.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from fusefs.errors import DiskFailed, NoSpace, Unacceptable
from netnode.chunks import ChunkPlane
from netnode.connection import Connection, Refused
from netnode.environment import Environment
from netnode.heartbeat import Heartbeat
from netnode.horizons import Horizons
from netnode.locking import Locking
from netnode.peers import Peer
from netnode.replicas import Replicas
from netnode.replicator import Replicator
from netnode.transport import BrokenStream, Network
from netnode.wire.frames import ProtocolError
from netnode.wire.messages import Hello, Links, Live, Ping, Pong, Want
from netnode.wire.session import Received, Session

log = logging.getLogger(__name__)

FAIR_MESSAGES = 64
"""After so many that came together other peers get their turn."""
BULK_RETRY_S = 0.5
"""Fetches wait meanwhile; the control connection says when the peer is gone."""


class Serving:
    """For all peers; `serve` is a task of each."""

    def __init__(
        self,
        cluster: bytes,
        network: Network,
        environment: Environment,
        replicator: Replicator,
        chunks: ChunkPlane,
        keeper: Replicas,
        locking: Locking,
        heartbeat: Heartbeat,
        horizons: Horizons,
        hello: Callable[[str], Hello],
        measured: Callable[[], None],
    ) -> None:
        """`hello`: ours, for a channel; `measured`: told of a round trip."""
        self._cluster = cluster
        self._network = network
        self._environment = environment
        self._replicator = replicator
        self._chunks = chunks
        self._keeper = keeper
        self._locking = locking
        self._heartbeat = heartbeat
        self._horizons = horizons
        self._hello = hello
        self._measured = measured

    async def serve(self, peer: Peer) -> None:
        """All tasks of a peer, until its control connection ends."""
        with peer.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.connection.stream.run)
                nursery.start_soon(self._guard, peer, self._replicator.deltas.run)
                nursery.start_soon(self._guard, peer, self._keeper.push)
                if peer.dialled:
                    nursery.start_soon(self._guard, peer, self._keep_bulk)
                await self._guard(peer, self._receive)
                nursery.cancel_scope.cancel()

    async def _guard(self, peer: Peer, task: Callable[[Peer], Awaitable[None]]) -> None:
        """One task of a peer: whatever goes wrong in it ends this peer only."""
        try:
            await task(peer)
        except (BrokenStream, Refused) as error:
            peer.close(str(error))
        except (ProtocolError, Unacceptable) as error:
            log.warning("dropped %s: %s", peer.name, error)
            await peer.connection.say_bye(str(error))
            peer.close(str(error))
        except NoSpace as error:
            log.warning("changes of %s wait: %s", peer.name, error)
            await peer.connection.say_bye("its disk is full")
            peer.close("the disk is full")
        except DiskFailed as error:
            log.warning("changes of %s wait: %s", peer.name, error)
            await peer.connection.say_bye("its disk fails")
            peer.close("the disk here fails")
        except Exception:
            self._environment.bug(f"serving {peer.name}")
            peer.close("an error here")

    async def _receive(self, peer: Peer) -> None:
        while received := await peer.connection.receive():
            if len(received) == 1:
                await self._handle(peer, received[0])
            else:
                await self._handle_many(peer, received)

    async def _handle_many(self, peer: Peer, received: list[Received]) -> None:
        """Transactions that arrived together are applied together."""
        live: list[Live] = []
        for at, item in enumerate(received, 1):
            if not at % FAIR_MESSAGES:
                await trio.lowlevel.checkpoint()
            if isinstance(item.message, Live):
                live.append(item.message)
                continue
            if live:
                await self._replicator.live(peer, live)
                live = []
            await self._handle(peer, item)
        if live:
            await self._replicator.live(peer, live)

    async def _handle(self, peer: Peer, item: Received) -> None:
        if peer.why_closed:  # it was read before; the next connection has told newer
            return
        peer.connection.check_taken()
        message = item.message
        match message:
            case Live():
                await self._replicator.live(peer, (message,))
            case Ping():
                peer.send(Pong(message.number))
                peer.heard = True
                self._horizons.told(peer, message)
                self._keeper.room_told(peer.id, message.room)
                self._replicator.heard(peer, message)
            case Pong():
                if self._heartbeat.answered(peer, message.number):
                    self._measured()
            case Want():
                if self._horizons.admits(peer, message.vector):
                    await self._replicator.handle(peer, message)
            case Links():
                peer.outgoing.linked(message.nodes)
                if peer.outgoing.lacks(self._replicator.vector):
                    self._heartbeat.ping(peer)
            case _:
                if not self._locking.handle(peer, message):
                    await self._replicator.handle(peer, message)

    # -- bulk ------------------------------------------------------------------------

    async def _keep_bulk(self, peer: Peer) -> None:
        """The side that dialled the control connection dials the bulk one, too."""
        said = ""
        while True:
            try:
                await self._serve_bulk(peer)
            except (OSError, BrokenStream, ProtocolError, Refused) as error:
                if said != (said := str(error)):
                    log.info("bulk connection with %s: %s", peer.name, error)
            await trio.sleep(BULK_RETRY_S)

    async def _serve_bulk(self, peer: Peer) -> None:
        stream = await self._network.dial(peer.address)
        try:
            if stream.node != peer.id:
                raise BrokenStream("another node answers there")
            connection = Connection(stream, Session(self._cluster, "bulk"))
            await connection.greet(self._hello("bulk"))
            await self._chunks.serve(peer.id, connection)
        finally:
            stream.close()
