"""Replication of the namespace: the stream of transactions in and out.

Carries out what `core.replication` and `core.repair` decide: broadcasts local
transactions, applies those of peers, lets the worker forget what they changed, and
acknowledges only then. Everything runs in trio tasks of the node; database work is
done in place when it is short and in a thread when it is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Protocol

import trio

from fusefs.errors import FsError
from fusefs.model.ids import ROOT_INO, Dot, Ino, NodeId, Seq, chunk_id
from fusefs.model.records import CONTENT, MEMBER, SETTING
from fusefs.model.register import decode_register
from fusefs.model.tx import Body, Effects, State, Tx
from fusefs.model.vector import Vector, dominates, merged
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.replicate import Applied, DeltaBatch
from fusefs.nodelink.fence import NodeFence
from fusefs.store.store import Store
from netnode.comparing import Comparing, pieces
from netnode.core.barrier import Barriers
from netnode.core.early import Touched, touched
from netnode.core.guard import Guard
from netnode.core.repair import Agreement
from netnode.core.replication import Incoming, Verdict
from netnode.environment import Environment
from netnode.holding import Holding
from netnode.peers import Peer, Peers
from netnode.settling import Settling
from netnode.wire.frames import ProtocolError, pack
from netnode.wire.messages import (
    Ack,
    AnyMessage,
    AskBuckets,
    Delta,
    Live,
    Ping,
    States,
    Want,
    encode,
)

log = logging.getLogger(__name__)

DELTA_BYTES = 64 << 10
"""Registers in one part: applied in some 10 ms, while which nobody else writes."""
DELTA_AHEAD_BYTES = 512 << 10
"""Parts that may wait in the connection: enough to keep the peer busy."""
IN_PLACE_TXS = 64
"""So many transactions are applied without a thread: up to some 5 ms."""

BarrierDone = Callable[[bool], None]


class Interest(Protocol):
    """Who else wants to know what was committed or applied."""

    def committed(self, txs: Sequence[Tx]) -> None:
        """Local transactions."""

    def received(self, txs: Sequence[Tx]) -> None:
        """Transactions of peers that came live and are applied."""

    def applied(self, writes: Sequence[tuple[NodeId, bytes, bytes]]) -> None:
        """(writer, key, value) of content registers that came by a delta."""

    def membership_changed(self) -> None:
        """Member or setting registers changed."""

    def ping(self, peer: Peer) -> None:
        """Send it a heartbeat now."""

    def barriers_changed(self) -> None:
        """Which peers a barrier waits for may have changed."""


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
        self._fence = fence
        self.me = namespace.node_id
        self.vector: dict[NodeId, Seq] = namespace.vector()
        self._lost_after = namespace.lost_after()
        self._asked_back: set[NodeId] = set()
        self._comparing = Comparing(namespace, environment)
        self.holding = Holding(namespace, guard, environment, self._publish_own)
        self.incoming = Incoming()
        self.barriers: Barriers[BarrierDone] = Barriers()
        self._applying = trio.Lock()  # one batch at a time; held over a thread
        self._changes = 0
        self._digest: tuple[tuple[object, int], bytes] | None = None
        self.applied_count = 0
        self.early_count = 0
        """Batches acknowledged before they were applied."""
        self.sent_messages = 0

    # -- local transactions --------------------------------------------------------

    def publish(self, txs: Sequence[Tx], bodies: Sequence[Body] = ()) -> None:
        """Broadcast what was committed here, in the order of seq."""
        for tx in txs:
            if self.vector.get(tx.node, 0) < tx.seq:
                self.vector[tx.node] = tx.seq
        self._changes += 1
        self._broadcast(txs, bodies, None)
        if any(w.key[:1] in (MEMBER, SETTING) for tx in txs for w in tx.writes):
            self._interest.membership_changed()
        self._interest.committed(txs)

    def _publish_own(self, tx: Tx, effects: Effects) -> None:
        """A transaction this process made: the worker does not know of it."""
        self.publish((tx,))
        self._settling.add(effects, None)

    def reread_vector(self) -> None:
        """Transactions were committed that were not published here: deltas."""
        self.vector = merged(self.vector, self._namespace.vector())
        self._changes += 1
        self._send_deltas()

    def _broadcast(
        self, txs: Sequence[Tx], bodies: Sequence[Body], source: Peer | None
    ) -> None:
        """Offer to every peer; equal messages are encoded once."""
        now = self._environment.now()
        frames: dict[tuple[Dot, ...], bytes] = {}
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
            dots = tuple(tx.dot for tx in chosen)
            frame = frames.get(dots)
            if frame is None:
                frame = pack(encode(Live(tuple(chosen), tuple(bodies))))
                frames[dots] = frame
            peer.connection.send_frame(frame)
            peer.nearness.owes(now)
            self.sent_messages += 1

    def _send_deltas(self) -> None:
        for peer in self._peers:
            outgoing = peer.outgoing
            if outgoing.subscribed and outgoing.lacks(self.vector):
                outgoing.behind = True
                peer.wake()

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

    def joined(self, peer: Peer, our_vector: Vector) -> None:
        """`our_vector`: the one our Hello told."""
        hello = peer.hello
        peer.outgoing.greeted(hello.vector, our_vector, hello.links)
        now = self._environment.now()
        ours = self._wanting(peer.id, our_vector)
        self.incoming.joined(peer.id, hello.vector, ours, now)
        if dominates(ours, hello.vector):
            self._got_back(peer.id)
        if peer.outgoing.subscribed and peer.outgoing.lacks(self.vector):
            peer.outgoing.behind = True
            peer.wake()
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
        peer = self._peers.get(found[0])
        if peer is not None:
            peer.send(Want(found[1], self._wanting(peer.id, self.vector)))

    def _wanting(self, peer: NodeId, vector: Vector) -> dict[NodeId, Seq]:
        """From where a peer shall send. What a power cut took from us it may have."""
        wanting = dict(vector)
        if self._lost_after is not None and peer not in self._asked_back:
            wanting[self.me] = min(wanting.get(self.me, Seq(0)), self._lost_after)
        return wanting

    def _got_back(self, peer: NodeId) -> None:
        """All that the peer has of what was lost here is here again."""
        if self._lost_after is None:
            return
        self._asked_back.add(peer)
        members = self._namespace.members()
        if all(
            n in self._asked_back or members[n].forgotten or n == self.me
            for n in members
        ):
            self._lost_after = None
            self._namespace.found_again()

    def decide(self, apply: bool) -> bool:
        """What was held is applied from now on, and brought back afterwards unless
        `apply`. False when nothing is held."""
        decided = self.holding.guard.decide(apply)
        self._catch_up()
        return decided

    def _hold(self, peer: Peer, removals: list[Ino]) -> bool:
        """Whether the mass-delete guard keeps this from being applied; then the peer
        is asked for it again once somebody has decided."""
        if not self.holding.holds(removals, peer.name):
            return False
        self.incoming.put_off(peer.id)
        return True

    async def send_deltas(self, peer: Peer) -> None:
        """The task of one peer: a delta whenever it is behind."""
        while True:
            await peer.until_behind()
            while peer.outgoing.behind:
                await self._send_delta(peer)

    async def _send_delta(self, peer: Peer) -> None:
        outgoing = peer.outgoing
        base: Vector | None = outgoing.delta_begins()
        round_ = outgoing.round
        parts = self._namespace.delta(base or {}, DELTA_BYTES)
        try:
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
        finally:
            if isinstance(parts, Generator):
                parts.close()
        if outgoing.round == round_:
            outgoing.delta_ends(self.vector)
            self._interest.barriers_changed()
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
        _check_bodies(bodies)
        early = False
        if len(txs) <= IN_PLACE_TXS:
            try:
                self._applying.acquire_nowait()
            except trio.WouldBlock:
                await self._applying.acquire()
            try:  # nothing else runs from the acknowledgement to the commit
                early = self._acknowledge_early(peer, txs)
                self._store_bodies(bodies)
                applied = self._namespace.apply(txs)
            except BaseException:
                if early and self._fence is not None:
                    self._fence.take_back()
                raise
            finally:
                self._applying.release()
        else:
            self._store_bodies(bodies)
            async with self._applying:
                applied = await self._environment.offload(
                    lambda: self._namespace.apply(txs)
                )
        self._note(applied)
        self.holding.applied(removals)
        if applied.gap:
            self.incoming.gap(peer.id)
            self._catch_up()
        done = [tx for tx in txs if self.vector.get(tx.node, 0) >= tx.seq]
        dots = tuple(_highest(tx.dot for tx in done))
        peer.outgoing.knows(dots)
        if early:  # whoever waits at the fence hears of it, whatever the effects
            shown = applied.effects or Effects(inodes=[ROOT_INO])
            self._settling.add(shown, None)
        else:
            self._settle(peer, dots, applied.effects)
        if len(self._peers) > 1:
            self._broadcast(done, bodies, peer)
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

    def _acknowledge_early(self, peer: Peer, txs: Sequence[Tx]) -> bool:
        """Acknowledge before applying, if the kernel here may hold nothing that these
        make wrong (docs/adr/0002). The fence is up then."""
        fence = self._fence
        if fence is None or not fence.usable or not self._follow_ours(txs):
            return False
        touches = touched(txs)
        if touches is None:
            return False
        fence.put_up()
        if self._may_be_known(fence, touches):
            fence.take_back()
            return False
        self.early_count += 1
        dots = tuple(_highest(tx.dot for tx in txs))
        self._settling.add(Effects(), lambda: self._acknowledge(peer, dots))
        return True

    def _follow_ours(self, txs: Sequence[Tx]) -> bool:
        """Whether applying them finds no gap."""
        ours: dict[NodeId, Seq] = {}
        for tx in txs:
            have = ours.get(tx.node, self.vector.get(tx.node, Seq(0)))
            if tx.prev > have:
                return False
            ours[tx.node] = max(have, tx.seq)
        return True

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

    def _store_bodies(self, bodies: Sequence[Body]) -> None:
        """Before the transactions are applied: what they name is here then."""
        if not bodies:
            return
        try:
            self._store.put_many([(b.id, b.data) for b in bodies], pushed=False)
        except FsError as error:
            # They can be fetched when they are read; the transactions still count.
            log.warning("attached chunks were not stored: %s", error)

    async def delta(self, peer: Peer, message: Delta) -> None:
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
                lambda: self._namespace.apply_states(states, advance, target)
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
            self._got_back(peer.id)
            self._offer_relay(peer)
        self._look_at_keys(s.key for s in states)
        self._interest.applied(_contents(states))
        self._catch_up()

    def _offer_relay(self, source: Peer) -> None:
        """Others may lack what a delta brought: tell them what we have now."""
        for peer in self._peers:
            if peer is not source and peer.outgoing.lacks(self.vector):
                self._interest.ping(peer)

    def _note(self, applied: Applied) -> None:
        own = self.vector.get(self.me, Seq(0))
        self.vector = merged(self.vector, applied.vector)
        self.applied_count += applied.count
        self._changes += 1
        # Ours counts once it is published; the database may know it earlier.
        self.vector[self.me] = own

    def _look_at_keys(self, keys: Iterable[bytes]) -> None:
        if any(key[:1] in (MEMBER, SETTING) for key in keys):
            self._interest.membership_changed()

    def _settle(self, peer: Peer, dots: tuple[Dot, ...], effects: Effects) -> None:
        """Acknowledge once no cache of ours shows the old."""
        release = (lambda: self._acknowledge(peer, dots)) if dots else None
        self._settling.add(effects, release)

    def _acknowledge(self, peer: Peer, dots: tuple[Dot, ...]) -> None:
        if self._peers.get(peer.id) is peer:
            peer.send(Ack(dots))
            self.sent_messages += 1

    # -- messages ------------------------------------------------------------------

    async def handle(self, peer: Peer, message: AnyMessage) -> None:
        """Everything of the control channel that is about the namespace."""
        match message:
            case Delta():
                await self.delta(peer, message)
            case Ack():
                self._acknowledged(peer, message.dots)
            case Want():
                peer.outgoing.wants(message.round, message.vector)
                peer.wake()
            case States():
                await self._merge_states(peer, message)
            case _:
                await self._comparing.handle(peer, message)

    # -- heartbeat and repair --------------------------------------------------------

    def ping(self, number: int) -> Ping:
        """What a heartbeat tells of the namespace."""
        vector = self._namespace.vector()
        digest = self._digest_of(vector)
        return Ping(
            number,
            vector,
            digest,
            settled=not self._settling.pending,
        )

    def _digest_of(self, vector: Vector) -> bytes:
        """Of exactly this vector; empty when something came in between."""
        key = (tuple(sorted(vector.items())), self._changes)
        if self._digest is None or self._digest[0] != key:
            digest = self._namespace.digest()
            if self._namespace.vector() != vector:
                return b""
            self._digest = (key, digest)
        return self._digest[1]

    def digest_corrected(self) -> None:
        """Damage was found: what is remembered of the digest is not true any more."""
        self._changes += 1

    def digest(self) -> bytes:
        return self._namespace.digest()

    def heard(self, peer: Peer, ping: Ping) -> None:
        """A peer's heartbeat: is it level, does it agree?"""
        if self.holding.decided and self.level():
            self.holding.level()
        now, connected = self._environment.now(), (*self._peers.ids(), self.me)
        self.incoming.told(peer.id, ping.vector, self.vector, connected, now)
        peer.outgoing.pinged(ping.vector, ping.settled)
        if ping.settled:
            self._acknowledged(peer, ping.vector.items())
        ours = self._namespace.vector()
        if ping.digest and _same(ours, ping.vector):
            mine = self._digest_of(ours)
            if mine and peer.repair.compared(mine == ping.digest):
                log.warning("this node and %s differ; comparing registers", peer.name)
                peer.send(AskBuckets())
        self._catch_up()

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

    # -- for people --------------------------------------------------------------------

    def behind(self) -> tuple[int, NodeId] | None:
        """How many operations we lack, from whom."""
        worst: tuple[int, NodeId] | None = None
        for peer in self._peers:
            theirs = self.incoming.has(peer.id)
            lag = sum(
                max(0, seq - self.vector.get(node, 0))
                for node, seq in theirs.items()
                if node != self.me
            )
            if lag and (worst is None or lag > worst[0]):
                worst = (lag, peer.id)
        return worst

    def level(self) -> bool:
        """A peer is connected, and what any connected one has is applied here."""
        following = self._peers and not self.incoming.catching_up()
        return bool(following) and self.behind() is None

    def sync_state(self) -> str:
        """`in sync`, `behind by N operations from NAME`, `diverged, repairing`, ..."""
        if self.holding.active:
            return self.holding.sentence()
        behind = self.behind()
        if behind is not None:
            peer = self._peers.get(behind[1])
            name = peer.name if peer else f"{behind[1]:x}"
            return f"behind by {behind[0]} operations from {name}"
        states = {peer.repair.agreement for peer in self._peers}
        if Agreement.REPAIRING in states:
            return "diverged, repairing"
        if self.incoming.catching_up():
            return "catching up"
        return "in sync" if self._peers else "alone"


def _check_bodies(bodies: Sequence[Body]) -> None:
    """Raises ProtocolError."""
    for body in bodies:
        if chunk_id(body.data) != body.id:
            raise ProtocolError("an attached chunk is not the one it claims to be")


def _highest(dots: Iterable[Dot]) -> Iterable[Dot]:
    top: dict[NodeId, Seq] = {}
    for node, seq in dots:
        if top.get(node, 0) < seq:
            top[node] = seq
    return top.items()


def _contents(states: Iterable[State]) -> list[tuple[NodeId, bytes, bytes]]:
    """(writer, key, value) of every live content version."""
    return [
        (sibling.node, state.key, sibling.value)
        for state in states
        if state.key[:1] == CONTENT
        for sibling in decode_register(state.state).live
    ]


def _same(a: Vector, b: Vector) -> bool:
    nodes = {*a, *b}
    return all(a.get(n, 0) == b.get(n, 0) for n in nodes)
