"""The node: composition root of the network, and the life of its connections.

`Node.run` owns every task; those of one peer are in `serving`. A stream that arrives or
was dialled is greeted, checked (cluster, identity, clock, membership), and becomes the
control connection of a peer or its bulk connection.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import trio

from fusefs.model.hlc import latest
from fusefs.model.ids import ChunkId, NodeId, Seq
from fusefs.model.records import CONTENT, DIRENT, decides_placement
from fusefs.model.tx import Body, ContentChange, State, Tx
from fusefs.namespace.namespace import Namespace
from fusefs.nodelink.fence import NodeFence
from fusefs.store.store import Store
from netnode.announcing import Announcing
from netnode.chunks import ChunkPlane, Done
from netnode.connection import Connection, Refused
from netnode.copies import Copies
from netnode.core.fetch import Priority
from netnode.core.guard import YOUNG_S, Guard
from netnode.core.membership import Link, Membership, keep_new
from netnode.dialler import Dialler
from netnode.digest import verify_registers
from netnode.environment import Environment
from netnode.greeting import REJOIN, Greeter, Unwanted
from netnode.heartbeat import Heartbeat
from netnode.horizons import Horizons
from netnode.locking import Locking
from netnode.moving import Moving
from netnode.peers import Parted, Peer, Peers
from netnode.pinning import Pinning
from netnode.pulling import Pulling
from netnode.regaining import Regaining
from netnode.replicas import Replicas
from netnode.replicator import BarrierDone, Replicator
from netnode.serving import Serving
from netnode.settling import Settling
from netnode.tcp import join_address
from netnode.transport import BrokenStream, Network, Stream
from netnode.upkeep import Upkeep, sync_disk
from netnode.versions import Seen
from netnode.wire.frames import ProtocolError
from netnode.wire.messages import OLDEST, VERSION, Bye, Hello, Links
from netnode.wire.session import Session, hello_frame

log = logging.getLogger(__name__)

SETTLE_S = 3.0
"""After the start, a fetch waits this long for the first connections."""
PREFETCH_LIMIT_S = 60.0


NearChanged = Callable[[int, int, int], None]
"""Told how many peers barriers wait for, are connected, and how many other members
there are."""


class Settings(NamedTuple):
    """What a node is told about itself."""

    cluster: bytes
    name: str
    seeds: tuple[str, ...] = ()
    addresses: Callable[[int], tuple[str, ...]] = lambda port: ()
    """Where others reach this node, given the port it listens on."""
    mounted: bool = False
    """A worker will attach and say which locks it holds."""
    on_refused: Callable[[str], None] = lambda reason: None
    """A peer says that this node has to join anew, and why."""
    locks_alone: bool = False
    """Locks that a member decides about which is away are granted here, to exclude
    programs of this machine."""
    mass_delete: float = 0.0
    """The share of the tree whose removal by others is held back; 0: never."""
    mass_delete_age_s: float = YOUNG_S
    """Removals of younger entries do not count for it."""


class Node:
    """See the module. Everything is called from the trio thread."""

    def __init__(
        self,
        settings: Settings,
        namespace: Namespace,
        store: Store,
        network: Network,
        environment: Environment,
        fence: NodeFence | None = None,
    ) -> None:
        """`fence`: shared with the worker of a mount; without it every change is
        applied before it is acknowledged."""
        self.settings = settings
        self.fence = fence
        self.namespace = namespace
        self.store = store
        self.environment = environment
        self.me = namespace.node_id
        self.boot = environment.rng.getrandbits(62)
        self.port = 0
        self.started = environment.now()
        self.last_hlc = namespace.latest_hlc()
        self.peers = Peers()
        self.membership = Membership(self.me, settings.seeds)
        self.settling = Settling(environment.now, expects_worker=settings.mounted)
        self.copies = Copies(namespace)
        self.replicator = Replicator(
            namespace,
            store,
            self.peers,
            self.settling,
            environment,
            self,
            Guard(settings.mass_delete, young_s=settings.mass_delete_age_s),
            fence,
        )
        self._horizons = Horizons(
            namespace,
            self.membership,
            environment,
            self.replicator.told,
            lambda tx: self.publish((tx,)),
            self.replicator.give_up_deltas,
        )
        self._heartbeat = Heartbeat(
            self.peers,
            environment,
            lambda number, peer: self.replicator.ping(
                number, self._horizons.rows_for(peer), self.chunks.space_again.times
            ),
            self._dismiss,
        )
        self.chunks = ChunkPlane(
            store, self.membership, environment, lambda: self.copies.of_cluster
        )
        seen = Seen()
        self.keeper = Replicas(
            store,
            self.chunks,
            self.membership,
            environment,
            namespace.live_roots,
            seen,
            self.copies,
        )
        self.pulling = Pulling(
            store,
            self.chunks,
            self.membership,
            environment,
            seen,
            self.copies,
            lambda ino: self.moving.missed(ino),
        )
        self.moving = Moving(
            namespace, store, self.chunks, self.copies, self.pulling, environment
        )
        self.pinning = Pinning(namespace, store, self.chunks, environment)
        self.upkeep = Upkeep(store, self.chunks, environment)
        self._regaining = Regaining(
            namespace, store, self.chunks, self.pulling, self.membership, environment
        )
        self._greeter = Greeter(
            self.me, settings.name, self.membership, environment, namespace.horizon
        )
        self.membership.learn_members(namespace.members())
        self.copies.read()
        self._announcing = Announcing(
            namespace,
            self.membership,
            settings.name,
            lambda: self.settings.addresses(self.port),
            self.publish,
        )
        self.locking = Locking(
            namespace,
            self.membership,
            self.peers,
            self.settling,
            environment,
            settings.mounted,
            alone=settings.locks_alone,
        )
        self.dialler = Dialler(
            self.membership, environment, self._connected, self._dial
        )
        self._serving = Serving(
            settings.cluster,
            network,
            environment,
            self.replicator,
            self.chunks,
            self.keeper,
            self.locking,
            self._heartbeat,
            self._horizons,
            self.hello,
            self.barriers_changed,
        )
        self.refused = ""
        """Why peers want this node to join anew."""
        self.parted: dict[NodeId, Parted] = {}
        """Of peers that are away and were connected since this process began."""
        self._network = network
        self._near = (-1, -1, -1)
        self._on_near: NearChanged = lambda near, connected, members: None
        self._stopped = trio.Event()

    # -- for the link, the console and tests -------------------------------------------

    def publish(self, txs: Sequence[Tx], bodies: Sequence[Body] = ()) -> None:
        """Transactions committed here, by the worker or by the node itself."""
        self.last_hlc = max(self.last_hlc, *(tx.hlc for tx in txs))
        self.replicator.publish(txs, bodies)

    def behind(self) -> None:
        """Transactions were committed that nobody published here."""
        after = self.replicator.vector.get(self.me, Seq(0))
        self.replicator.reread_vector()
        self.keeper.committed_unseen()
        keys = self.namespace.written(self.me, after)
        deciding = [key for key in keys if decides_placement(key)]
        if deciding:
            self.placement_changed(deciding)
        if self.copies.trees:
            names = [key for key in keys if key[:1] == DIRENT]
            self.moving.caught_up(self.namespace.states(names))

    def barrier(self, seq: Seq, limit_s: float, done: BarrierDone) -> None:
        self.replicator.barrier(seq, limit_s, done)

    def fetch(
        self,
        cids: Sequence[ChunkId],
        limit_s: float,
        hint: Sequence[NodeId],
        done: Done,
    ) -> int:
        """Bring chunks into the store for a program that waits."""
        return self.chunks.fetch(cids, limit_s, Priority.FOREGROUND, hint, done)

    def prefetch(
        self, cids: Sequence[ChunkId], hint: Sequence[NodeId], small: bool = False
    ) -> None:
        self.chunks.fetch(
            cids,
            PREFETCH_LIMIT_S,
            Priority.PREFETCH,
            hint,
            lambda error, reason: None,
            small=small,
        )

    async def connections_settled(self) -> None:
        """Just after the start: give the first connections a moment."""
        while not self.settled:
            await trio.sleep(0.02)

    @property
    def settled(self) -> bool:
        """Whoever can be reached at once has been."""
        if self.environment.now() - self.started > SETTLE_S:
            return True
        reached = self.dialler.tried_all or not self.membership.targets(())
        return reached and all(self.chunks.has_bulk(p) for p in self.peers.ids())

    def on_near_changed(self, tell: NearChanged) -> None:
        """Tells now and whenever it changes."""
        self._on_near = tell
        self._near = (-1, -1, -1)
        self.barriers_changed()

    def stop(self) -> None:
        """End `run`."""
        self._stopped.set()

    # -- life ----------------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stop`; starts with the port it listens on."""
        async with trio.open_nursery() as nursery:
            self.port = await nursery.start(self._listen)
            self._announcing.look()
            nursery.start_soon(self.dialler.run)
            for task in (
                lambda: self._heartbeat.run(self._beat),
                self.chunks.keep_time,
                self.keeper.run,
                self.keeper.look_through,
                self.pulling.run,
                self.moving.run,
                self.pinning.run,
                self.upkeep.run,
                self._regaining.run,
                self._sync_disk,
                self._verify_registers,
                self._horizons.run,
                self.locking.keep_leases,
                self._announcing.run,
            ):
                nursery.start_soon(self.environment.for_ever, task)
            task_status.started(self.port)
            await self._stopped.wait()
            self.locking.stop()
            async with trio.open_nursery() as farewell:
                for peer in self.peers:
                    farewell.start_soon(peer.connection.say_bye, "it stops")
            nursery.cancel_scope.cancel()

    async def _listen(self, *, task_status: trio.TaskStatus[int]) -> None:
        await self._network.listen(self._accept, task_status=task_status)

    def _sync_disk(self) -> Awaitable[None]:
        return sync_disk(
            None if self.settings.mounted else self.namespace,
            self.store,
            self.environment,
            lambda: self.replicator.applied_count + self.chunks.received_bytes,
        )

    def _verify_registers(self) -> Awaitable[None]:
        return verify_registers(
            self.namespace, self.environment, self.replicator.digest_corrected
        )

    def _beat(self) -> None:
        """After each round of heartbeats."""
        if self.chunks.space_again.look(self.store.space.room_for_copies_bytes()):
            self.moving.try_again()
        self.replicator.expire_barriers()
        self.settling.tick()
        self.barriers_changed()
        self.dialler.look()

    # -- Interest (told by the replicator) --------------------------------------------

    def ping(self, peer: Peer) -> None:
        self._heartbeat.ping(peer)

    def committed(self, txs: Sequence[Tx]) -> None:
        self.keeper.committed(txs)
        self.moving.seen(txs)
        self.pinning.changed()
        self.locking.seen(txs)

    def received(self, txs: Sequence[Tx]) -> None:
        writes = (write for tx in txs for write in tx.writes)
        self.keeper.named((w.key, w.value) for w in writes if w.key[:1] == CONTENT)
        self.moving.seen(txs)
        self.pinning.changed()
        self.locking.seen(txs)

    def applied(self, writes: Sequence[tuple[NodeId, bytes, bytes]]) -> None:
        self.locking.progressed()
        self.pinning.changed()
        if writes:
            self.keeper.named((key, value) for _, key, value in writes)
            self.pulling.applied(writes)

    def replaced(self, changes: Sequence[ContentChange]) -> None:
        self.chunks.patching.replaced(changes)

    def caught_up(self, states: Sequence[State]) -> None:
        self.moving.caught_up(states)

    def placement_changed(self, keys: Sequence[bytes]) -> None:
        before = self.membership.members()
        self.membership.learn_members(self.namespace.members())
        changed = self.membership.members() != before
        if self.copies.changed(keys) or changed:
            self.keeper.members_changed()
        if changed:
            self.locking.members_changed()
            self.barriers_changed()
        for peer in self.peers:
            if self.membership.forgotten(peer.id):
                peer.close("it was removed from the cluster")
        self.dialler.look()

    def barriers_changed(self) -> None:
        others = len(self.membership.others())
        near = (self.replicator.near_peers(), len(self.peers), others)
        if near != self._near:
            self._near = near
            self._on_near(*near)

    # -- connections -----------------------------------------------------------------

    def _connected(self) -> tuple[NodeId, ...]:
        return self.peers.ids()

    def hello(self, channel: str) -> Hello:
        """Ours, as of now."""
        control = channel == "control"
        now_ms = self.environment.wall_ms()
        return Hello(
            VERSION,
            OLDEST,
            self.settings.cluster,
            self.me,
            self.settings.name,
            channel,  # type: ignore[arg-type]
            self.boot,
            self.settings.addresses(self.port) if control else (),
            self.port,
            self.replicator.told() if control else {},
            self.last_hlc,
            now_ms,
            self.peers.ids() if control else (),
            self.membership.told(self.peers.ids()) if control else {},
        )

    async def _accept(self, stream: Stream) -> None:
        """A stream that somebody dialled."""
        session = Session(self.settings.cluster, latest=self._latest)
        connection = Connection(stream, session)
        try:
            theirs = await connection.receive_hello()
            self._greeter.check(theirs)
            ours = self.hello(theirs.channel)
            stream.send_nowait(hello_frame(ours))
            await self._serve(connection, ours, theirs, None)
        except Unwanted as error:
            await connection.say_bye(str(error), fatal=True)
        except (BrokenStream, ProtocolError, Refused, OSError) as error:
            self._look_at_refusal(error)
            await self._failed(connection, error)

    async def _dial(self, address: str, node: NodeId | None) -> None:
        """Dial, then serve the control connection until it ends."""
        stream = await self._network.dial(address)
        try:
            if node is not None and stream.node != node:
                # Ourselves, too: private addresses are not the same everywhere.
                raise BrokenStream("another node answers there")
            if stream.node == self.me:
                self.membership.seed_is(address, self.me)
                return
            if stream.node is not None and stream.node in self.peers:
                self.membership.seed_is(address, stream.node)
                return
            session = Session(self.settings.cluster, "control", self._latest)
            connection = Connection(stream, session)
            ours = self.hello("control")
            try:
                theirs = await connection.greet(ours)
                self._greeter.check(theirs)
                await self._serve(connection, ours, theirs, address)
            except Unwanted as error:
                await connection.say_bye(str(error), fatal=True)
                raise Refused(Bye(str(error), fatal=True)) from error
            except Refused as error:
                self._look_at_refusal(error)
                raise
            except ProtocolError as error:
                await self._failed(connection, error)
                raise
        finally:
            stream.close()

    def _latest(self) -> int:
        return latest(self.environment.wall_ms())

    def _look_at_refusal(self, error: Exception) -> None:
        if isinstance(error, Refused):
            self._note_refusal(str(error))

    def _note_refusal(self, reason: str) -> None:
        if REJOIN in reason:
            self.refused = reason
            self.settings.on_refused(reason)

    async def _failed(self, connection: Connection, error: Exception) -> None:
        level = logging.INFO if isinstance(error, Refused) else logging.WARNING
        if not isinstance(error, BrokenStream):
            log.log(level, "dropped %s: %s", connection.stream.remote, error)
        if isinstance(error, ProtocolError):
            await connection.say_bye(str(error))
        connection.stream.close()

    async def _serve(
        self, connection: Connection, ours: Hello, theirs: Hello, address: str | None
    ) -> None:
        if theirs.channel == "bulk":
            await self.chunks.serve(theirs.node, connection)
            return
        refused = self.refused
        peer = self._admit(connection, ours, theirs, address)
        if peer is None:
            await connection.say_bye("another connection with this node is kept")
            return
        try:
            await self._serving.serve(peer)
        finally:
            self._dismiss(peer)
            if not (peer.heard or self.peers):
                self.refused = refused
            self._note_refusal(peer.why_closed)  # it had dialled: our Hello came last

    def _admit(
        self, connection: Connection, ours: Hello, theirs: Hello, address: str | None
    ) -> Peer | None:
        """The one control connection with a node, or None: another is kept."""
        dialled_by = theirs.node if address is None else self.me
        link = Link(dialled_by, theirs.boot, self.environment.now())
        before = self.peers.get(theirs.node)
        if before is not None:
            if not keep_new(before.link, link, self.me, theirs.node):
                return None
            before.close("a newer connection replaces it")
            self._dismiss(before)
        self._greeter.learn(theirs, connection.stream.remote, address)
        self.dialler.look()
        where = address or join_address(connection.stream.remote, theirs.port)
        peer = Peer(self.me, theirs, connection, link, where)
        self.peers.add(peer)
        self.parted.pop(peer.id, None)
        log.info("connected to %s (%x) at %s", peer.name, peer.id, where)
        self.chunks.peer_joined(peer.id)
        self.keeper.peer_came(peer.id)
        self.moving.try_again()
        self.pinning.changed()
        self.refused = ""
        self.replicator.joined(peer, ours.vector)
        self.locking.joined(peer)
        self.ping(peer)
        self._tell_links()
        return peer

    def _dismiss(self, peer: Peer) -> None:
        """The connection is over: it counts for nothing from this moment."""
        if not self.peers.remove(peer):
            return
        why = peer.why_closed or "it closed"
        log.info("disconnected from %s: %s", peer.name, why)
        self.parted[peer.id] = Parted(self.environment.wall_ms(), why)
        self.chunks.peer_gone(peer.id)
        self.keeper.peer_gone(peer.id)
        self.replicator.gone(peer)
        self.locking.gone(peer)
        self._tell_links()
        self.barriers_changed()
        self.dialler.look()

    def _tell_links(self) -> None:
        """Who is connected to whom decides about relay."""
        nodes = self.peers.ids()
        for peer in self.peers:
            peer.send(Links(nodes))
