"""Replication of the namespace: the stream of transactions in and out.

Carries out what `core.replication` and `core.repair` decide: broadcasts local
transactions, applies those of peers, lets the worker forget what they changed, and
acknowledges only then. Everything runs in trio tasks of the node; database work is
done in place when it is short and in a thread when it is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence

import trio

from fusefs.model.ids import ROOT_INO, Dot, NodeId, Seq
from fusefs.model.records import CONTENT, decides_placement
from fusefs.model.register import decode_register
from fusefs.model.tx import Body, Effects, State, Tx, whole
from fusefs.model.vector import MAX_NODES, Vector, advanced, dominates, merged, same
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.replicate import Applied
from fusefs.nodelink.fence import NodeFence
from fusefs.store.store import Store
from netnode.applying import Applying
from netnode.bodies import check_bodies, keep_bodies
from netnode.comparing import Comparing
from netnode.core.barrier import Barriers
from netnode.core.guard import Guard, Removals
from netnode.core.replication import Incoming, Verdict
from netnode.deltas import Deltas
from netnode.digest import Digest
from netnode.environment import Environment
from netnode.fencing import Fencing
from netnode.holding import Holding
from netnode.interest import Interest
from netnode.losses import Losses
from netnode.peers import Peer, Peers
from netnode.settling import Settling
from netnode.standing import Standing
from netnode.wire.frames import ProtocolError, pack
from netnode.wire.messages import (
    PATCHES,
    Ack,
    AnyMessage,
    AskBuckets,
    Delta,
    Live,
    OnDisk,
    Ping,
    States,
    Want,
    encode,
)

log = logging.getLogger(__name__)

IN_PLACE_TXS = 64
"""So many transactions are applied without a thread: up to some 5 ms."""

BarrierDone = Callable[[bool], None]


class Replicator:
    """See the module."""

    def __init__(
        self,
        namespace: Namespace,
        store: Store,
        peers: Peers,
        settling: Settling,
        environment: Environment,
        interest: Interest,
        guard: Guard,
        fence: NodeFence | None = None,
    ) -> None:
        self._namespace = namespace
        self._store = store
        self._peers = peers
        self._settling = settling
        self._environment = environment
        self._interest = interest
        self._fencing = Fencing(namespace, fence)
        self.me = namespace.node_id
        self.vector: dict[NodeId, Seq] = namespace.vector()
        self._apply = Applying(namespace, store)
        self._losses = Losses(namespace)
        self._comparing = Comparing(namespace, environment)
        self.holding = Holding(namespace, guard, environment, self._publish_own)
        self.incoming = Incoming()
        self.standing = Standing(
            namespace, peers, self.incoming, self.holding, lambda: self.vector
        )
        self.barriers: Barriers[BarrierDone] = Barriers()
        self._applying = trio.Lock()  # one batch at a time; held over a thread
        self._digest = Digest(namespace)
        self.deltas = Deltas(
            namespace, environment, lambda: self.vector, interest.barriers_changed
        )
        self._lost: Vector | None = None
        """What nobody had a round ago, of what a delta was to bring."""
        self.applied_count = 0
        self.early_count = 0
        """Batches acknowledged before they were applied."""
        self._sent_messages = 0

    @property
    def sent_messages(self) -> int:
        """Live, acknowledgements and parts of deltas, to all peers."""
        return self._sent_messages + self.deltas.sent_messages

    # -- local transactions --------------------------------------------------------

    def publish(self, txs: Sequence[Tx], bodies: Sequence[Body] = ()) -> None:
        """Broadcast what was committed here, in the order of seq."""
        for tx in txs:
            if self.vector.get(tx.node, 0) < tx.seq:
                self.vector[tx.node] = tx.seq
        self._digest.changed()
        self._broadcast(txs, bodies, None)
        self._look_at_keys(w.key for tx in txs for w in tx.writes)
        self._interest.committed(txs)

    def _publish_own(self, tx: Tx, effects: Effects) -> None:
        """A transaction this process made: the worker does not know of it."""
        self.publish((tx,))
        self._settling.add(effects, None)

    def reread_vector(self) -> None:
        """Transactions were committed that were not published here: deltas."""
        self.vector = merged(self.vector, self._namespace.vector())
        self._digest.changed()
        for peer in self._peers:
            self.deltas.look(peer)

    def _broadcast(
        self, txs: Sequence[Tx], bodies: Sequence[Body], source: Peer | None
    ) -> None:
        """Offer to every peer; equal messages are encoded once."""
        now = self._environment.now()
        frames: dict[tuple[bool, tuple[Dot, ...]], bytes] = {}
        for peer in self._peers:
            if peer is source:
                continue
            outgoing = peer.outgoing
            if peer.congested and outgoing.subscribed:
                outgoing.behind = True
                peer.wake()
                continue
            chosen: list[Tx] = []
            for tx in txs:
                verdict = outgoing.offer(tx)
                if verdict is Verdict.SEND:
                    chosen.append(tx)
                elif verdict is Verdict.BEHIND:
                    peer.wake()
            if not chosen:
                continue
            patches = peer.connection.version >= PATCHES
            key = patches, tuple(tx.dot for tx in chosen)
            frame = frames.get(key)
            if frame is None:
                takes = tuple(bodies) if patches else whole(bodies)
                frames[key] = frame = pack(encode(Live(tuple(chosen), takes)))
            peer.connection.send_frame(frame)
            peer.nearness.owes(now)
            self._sent_messages += 1

    # -- barriers ------------------------------------------------------------------

    def barrier(self, seq: Seq, limit_s: float, done: BarrierDone) -> None:
        """`done(True)` when every near level peer has acknowledged our `seq`."""
        now = self._environment.now()
        waiting = [
            peer.id
            for peer in self._peers
            if peer.outgoing.acked.get(self.me, 0) < seq and peer.waits_in_barriers(now)
        ]
        if self.barriers.begin(done, seq, waiting, now, limit_s):
            done(True)

    def near_peers(self) -> int:
        now = self._environment.now()
        return sum(peer.waits_in_barriers(now) for peer in self._peers)

    def expire_barriers(self) -> None:
        for done, _ in self.barriers.expire(self._environment.now()):
            done(False)

    def _acknowledged(self, peer: Peer, dots: Iterable[Dot]) -> None:
        outgoing = peer.outgoing
        before = outgoing.acked.get(self.me, 0)
        outgoing.acknowledged(dots)
        now = self._environment.now()
        acked = outgoing.acked.get(self.me, Seq(0))
        level = acked >= self.vector.get(self.me, 0)
        peer.nearness.progressed(now, level)
        if acked > before:
            for done in self.barriers.acknowledged(peer.id, acked):
                done(True)

    # -- a peer comes and goes -------------------------------------------------------

    def told(self) -> dict[NodeId, Seq]:
        """What our Hello says we have."""
        return self._losses.told(self.vector)

    def joined(self, peer: Peer, our_vector: Vector) -> None:
        """`our_vector`: the one our Hello told."""
        hello = peer.hello
        peer.outgoing.greeted(hello.vector, our_vector, hello.links)
        now = self._environment.now()
        ours = self._losses.wanting(peer.id, our_vector)
        self.incoming.joined(peer.id, hello.vector, ours, now)
        if dominates(ours, hello.vector):
            self._losses.got_back(peer.id)
        self.deltas.look(peer)
        self._catch_up()

    def gone(self, peer: Peer) -> None:
        self.incoming.gone(peer.id)
        for done in self.barriers.gone(peer.id):
            done(True)
        self._catch_up()

    def _catch_up(self) -> None:
        """Ask the next peer for what we lack, if it is time."""
        if self.holding.active:
            return
        found = self.incoming.next(self.vector, self._environment.now())
        if found is None:
            return
        peer, number = found
        wanting = self._losses.wanting(peer, self.vector)
        self._peers.send(peer, Want(number, wanting))

    def decide(self, apply: bool) -> bool:
        """What was held is applied from now on, and brought back afterwards unless
        `apply`. False when nothing is held."""
        decided = self.holding.decide(apply)
        self._catch_up()
        return decided

    def _hold(self, peer: Peer, removals: Removals) -> bool:
        """Whether the mass-delete guard keeps this from being applied; then the peer
        is asked for it again once somebody has decided."""
        if not self.holding.holds(removals, peer.name):
            self.holding.applies(removals)
            return False
        self.incoming.put_off(peer.id)
        return True

    # -- what peers send -----------------------------------------------------------

    async def live(self, peer: Peer, messages: Sequence[Live]) -> None:
        """Transactions of a peer that arrived together, applied in one commit."""
        txs = [tx for message in messages for tx in message.txs]
        if not self.incoming.live(peer.id, txs):
            peer.outgoing.knows(tx.dot for tx in txs)
            return
        removals = self.holding.removals_of_txs(txs, self.vector)
        if self._hold(peer, removals):
            return
        bodies = [body for message in messages for body in message.bodies]
        check_bodies(bodies)
        early = False
        if len(txs) <= IN_PLACE_TXS:
            try:
                self._applying.acquire_nowait()
            except trio.WouldBlock:
                await self._applying.acquire()
            try:  # nothing else runs from the acknowledgement to the commit
                early = self._acknowledge_early(peer, txs)
                keep_bodies(self._store, bodies)
                applied = self._apply.txs(txs, removals)
            except BaseException:
                if early:
                    self._fencing.take_back()
                raise
            finally:
                self._applying.release()
        else:
            keep_bodies(self._store, bodies)
            async with self._applying:
                applied = await self._environment.offload(
                    lambda: self._apply.txs(txs, removals)
                )
        self._note(applied)
        self.holding.applied(removals)
        if applied.gap:
            self.incoming.gap(peer.id)
            self._catch_up()
        done = [tx for tx in txs if self.vector.get(tx.node, 0) >= tx.seq]
        dots = tuple(advanced({}, (tx.dot for tx in done)).items())
        peer.outgoing.knows(dots)
        if early:  # whoever waits at the fence hears of it, whatever the effects
            shown = applied.effects or Effects(inodes=[ROOT_INO])
            self._settling.add(shown, None)
        else:
            self._settle(peer, dots, applied.effects)
        if len(self._peers) > 1:
            self._relay(messages, {tx.dot for tx in done}, peer)
        self._interest.received(done)
        self._look_at_keys(w.key for tx in done for w in tx.writes)
        self._interest.applied(
            [
                (tx.node, w.key, w.value)
                for tx in done
                if tx.node not in self._peers
                for w in tx.writes
                if w.key[:1] == CONTENT and w.value
            ]
        )

    def _relay(
        self, messages: Iterable[Live], done: Collection[Dot], source: Peer
    ) -> None:
        """One by one, as they came: all together might not fit into a frame."""
        for message in messages:
            txs = [tx for tx in message.txs if tx.dot in done]
            if txs:
                self._broadcast(txs, message.bodies, source)

    def _acknowledge_early(self, peer: Peer, txs: Sequence[Tx]) -> bool:
        """Acknowledge before applying, where that is allowed; True: done, and the
        fence is up."""
        if not self._fencing.put_up(txs, self.vector):
            return False
        self.early_count += 1
        dots = tuple(advanced({}, (tx.dot for tx in txs)).items())
        self._settling.add(Effects(), lambda: self._acknowledge(peer, dots))
        return True

    async def _apply_delta(self, peer: Peer, message: Delta) -> None:
        """One part of what we lack, applied in a thread."""
        now = self._environment.now()
        base, vector = message.base, self.vector
        if not self.incoming.part(peer.id, message.round, base, vector, now):
            self._catch_up()
            return
        states, advance, target = message.states, message.advance, message.target
        removals = self.holding.removals_of_states(states, vector)
        if self._hold(peer, removals):
            return
        async with self._applying:
            applied = await self._environment.offload(
                lambda: self._apply.states(states, advance, target, removals)
            )
        self._note(applied)
        self.holding.applied(removals)
        self.incoming.applied(peer.id, message.done, advance)
        if advance.get(self.me, 0) > self.vector.get(self.me, 0):
            self.vector[self.me] = advance[self.me]  # ours, lost in a power cut
        dots = tuple(advance.items())
        peer.outgoing.knows(dots)
        self._settle(peer, dots, applied.effects)
        if message.done:
            self._losses.got_back(peer.id)
            self._offer_relay(peer)
        self._look_at_keys(s.key for s in states)
        self._interest.caught_up(states)
        self._interest.applied(_contents(states))
        self._catch_up()

    async def give_up_deltas(self) -> None:
        """Every round: what a delta was to bring is awaited no more once nobody has it,
        as in the round before. Who made it was forgotten, or is connected and has lost
        it in a power cut."""
        before, self._lost = self._lost, None
        if not self._namespace.in_delta():
            return
        async with self._applying:
            awaited = self._namespace.awaited()
            if not self._namespace.in_delta() or not self.standing.nobody_has(awaited):
                return
            self._lost = awaited
            if before == awaited:
                log.info("what a delta was to bring is given up: nobody has it")
                self._note(
                    await self._environment.offload(self._namespace.await_no_more)
                )

    def _offer_relay(self, source: Peer) -> None:
        """Others may lack what a delta brought: tell them what we have now."""
        for peer in self._peers:
            if peer is not source and peer.outgoing.lacks(self.vector):
                self._interest.ping(peer)

    def _note(self, applied: Applied) -> None:
        own = self.vector.get(self.me, Seq(0))
        self.vector = merged(self.vector, applied.vector)
        self.applied_count += applied.count
        self._interest.replaced(applied.effects.contents)
        self._digest.changed()
        # Ours counts once it is published; the database may know it earlier.
        self.vector[self.me] = own

    def _look_at_keys(self, keys: Iterable[bytes]) -> None:
        deciding = [key for key in keys if decides_placement(key)]
        if deciding:
            self._interest.placement_changed(deciding)

    def _settle(self, peer: Peer, dots: tuple[Dot, ...], effects: Effects) -> None:
        """Acknowledge once no cache of ours shows the old."""
        release = (lambda: self._acknowledge(peer, dots)) if dots else None
        self._settling.add(effects, release)

    def _acknowledge(self, peer: Peer, dots: tuple[Dot, ...]) -> None:
        if self._peers.get(peer.id) is peer:
            peer.send(Ack(dots))
            self._sent_messages += 1

    # -- messages ------------------------------------------------------------------

    async def handle(self, peer: Peer, message: AnyMessage) -> None:
        """Everything of the control channel that is about the namespace."""
        match message:
            case Delta():
                await self._apply_delta(peer, message)
            case Ack():
                self._acknowledged(peer, message.dots)
                self._check_nodes(peer)
            case Want():
                peer.outgoing.wants(message.round, message.vector)
                peer.wake()
            case States():
                await self._merge_states(peer, message)
            case _:
                await self._comparing.handle(peer, message)

    # -- heartbeat and repair --------------------------------------------------------

    def ping(
        self, number: int, on_disk: tuple[OnDisk, ...] = (), room: int = 0
    ) -> Ping:
        """What a heartbeat tells of the namespace, and besides."""
        vector = self._namespace.vector()
        digest = self._digest.of(vector)
        return Ping(
            number,
            vector,
            digest,
            settled=not (self._settling.pending or self._applying.locked()),
            on_disk=on_disk,
            room=room,
        )

    def digest_corrected(self) -> None:
        """Damage was found: what is remembered of the digest is not true any more."""
        self._digest.changed()

    def digest(self) -> bytes:
        return self._namespace.digest()

    def heard(self, peer: Peer, ping: Ping) -> None:
        """A peer's heartbeat: is it level, does it agree?"""
        if self.holding.decided and self.standing.level():
            self.holding.level()
        now, connected = self._environment.now(), (*self._peers.ids(), self.me)
        self.incoming.told(peer.id, ping.vector, self.vector, connected, now)
        peer.outgoing.pinged(ping.vector, ping.settled)
        if ping.settled:
            self._acknowledged(peer, ping.vector.items())
        ours = self._namespace.vector()
        if ping.digest and same(ours, ping.vector):
            mine = self._digest.of(ours)
            if mine and peer.repair.compared(mine == ping.digest):
                log.warning("this node and %s differ; comparing registers", peer.name)
                peer.send(AskBuckets())
        self._catch_up()
        self._check_nodes(peer)

    def _check_nodes(self, peer: Peer) -> None:
        """Raises ProtocolError where what is noted of a peer would grow for ever."""
        out = peer.outgoing
        noted = max(map(len, (out.acked, out.sent, self.incoming.has(peer.id))))
        if noted > MAX_NODES:
            raise ProtocolError(f"it knows of more than {MAX_NODES} nodes")

    async def _merge_states(self, peer: Peer, message: States) -> None:
        states = message.states
        async with self._applying:
            applied = await self._environment.offload(
                lambda: self._namespace.apply_states(states, {})
            )
        self._note(applied)
        peer.repair.repaired += applied.count
        self._settle(peer, (), applied.effects)
        self._look_at_keys(s.key for s in states)
        self._interest.caught_up(states)


def _contents(states: Iterable[State]) -> list[tuple[NodeId, bytes, bytes]]:
    """(writer, key, value) of every live content version."""
    return [
        (sibling.node, state.key, sibling.value)
        for state in states
        if state.key[:1] == CONTENT
        for sibling in decode_register(state.state).live
    ]
