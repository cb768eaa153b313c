"""What each peer was sent and has acknowledged, and from whom to catch up.

Sending: a peer *subscribes* (Want, or equal Hellos). Then it gets what it lacks
above `sent` as a delta, and from there on live transactions. A live transaction
that does not fit (the peer's queue is full, or it would leave a gap) makes the
peer `behind`: a delta from `sent` follows. `sent` only ever covers what went into
the connection in order, so base and advance of a delta are always true.

Receiving: one catch-up at a time, from whoever has most. Until a peer's delta
ends, what it sends live is ignored.

Relay: a peer is not sent what it gets from its origin itself, that is, from an
origin it is connected to; when that connection ends it says so (Links), and is told
our vector (Ping). A receiver that sees in a heartbeat that a peer has something it
will not get otherwise, or has not got since the last heartbeat, asks for it (Want).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum

from fusefs.model.ids import Dot, NodeId, Seq
from fusefs.model.tx import Tx
from fusefs.model.vector import Vector, advanced, dominates, merged, missing


class Verdict(Enum):
    SEND = "send it live"
    SKIP = "it has it, gets it elsewhere, or a delta will bring it"
    BEHIND = "it needs a delta first"


class Outgoing:
    """What one peer has been sent."""

    def __init__(self, me: NodeId, peer: NodeId) -> None:
        self._me = me
        self._peer = peer
        self.sent: dict[NodeId, Seq] = {}
        self.acked: dict[NodeId, Seq] = {}
        self.links: frozenset[NodeId] = frozenset()
        self.round = 0
        self.subscribed = False
        self.streaming = False
        """A delta is on its way; live transactions wait for its end."""
        self.behind = False
        self.was_level = False
        """It has had everything once: barriers count on it."""

    def greeted(self, theirs: Vector, ours: Vector, links: Iterable[NodeId]) -> None:
        """The Hellos, as they were sent: whoever had all follows from there."""
        self.links = frozenset(links)
        self.sent = dict(theirs)
        self.acked = dict(theirs)
        if dominates(theirs, ours):
            self.subscribed = self.was_level = True

    def wants(self, round_: int, vector: Vector) -> None:
        """It asks to be brought level from `vector` and to follow from there."""
        self.subscribed = True
        self.round = round_
        self.sent = dict(vector)
        self.behind = True

    def offer(self, tx: Tx) -> Verdict:
        """Decide on one live transaction; SEND counts it as sent."""
        if not self.subscribed or self._elsewhere(tx.node):
            return Verdict.SKIP
        have = self.sent.get(tx.node, 0)
        if have >= tx.seq:
            return Verdict.SKIP
        if self.streaming or self.behind:
            return Verdict.SKIP
        if have < tx.prev:
            self.behind = True
            return Verdict.BEHIND
        self.sent[tx.node] = tx.seq
        return Verdict.SEND

    def lacks(self, vector: Vector) -> bool:
        """Whether there is something for it that it was not sent."""
        return any(
            self.sent.get(node, 0) < seq and not self._elsewhere(node)
            for node, seq in vector.items()
        )

    def lag(self, vector: Vector) -> int:
        """How many operations it has not acknowledged."""
        return missing(self.acked, vector)

    def delta_begins(self) -> dict[NodeId, Seq]:
        """The base of a delta to it. Then `delta_part` for each, `delta_ends`."""
        self.streaming = True
        self.behind = False
        return dict(self.sent)

    def delta_part(self, advance: Vector) -> None:
        self.sent = merged(self.sent, advance)

    def delta_ends(self, vector: Vector) -> bool:
        """True when it is level; False: another delta has to follow."""
        self.streaming = False
        if self.behind or self.lacks(vector):
            self.behind = True
            return False
        self.was_level = True
        return True

    def acknowledged(self, dots: Iterable[Dot]) -> None:
        """Applied and invalidated there."""
        for node, seq in dots:
            if self.acked.get(node, 0) < seq:
                self.acked[node] = seq
            if self.sent.get(node, 0) < seq:
                self.sent[node] = seq

    def knows(self, dots: Iterable[Dot]) -> None:
        """It sent us these, so it has them."""
        self.sent = advanced(self.sent, dots)

    def linked(self, links: Iterable[NodeId]) -> None:
        self.links = frozenset(links)

    def pinged(self, theirs: Vector, settled: bool) -> None:
        """A heartbeat: what it has applied; `settled`: and invalidated."""
        if settled:
            self.acked = merged(self.acked, theirs)
        self.sent = merged(self.sent, theirs)

    def _elsewhere(self, node: NodeId) -> bool:
        return node == self._peer or (node != self._me and node in self.links)


class Following(Enum):
    NOT = "has something we lack, not asked yet"
    ASKED = "asked, its delta has not ended"
    LIVE = "we follow its live stream"


class _Source:
    __slots__ = ("has", "heard", "late", "round", "state")

    def __init__(self, has: dict[NodeId, Seq], state: Following, now: float) -> None:
        self.has = has
        self.state = state
        self.round = 0
        self.heard = now
        """When the last part of a delta came, or it was asked for."""
        self.late: dict[NodeId, Seq] = {}
        """What we lacked at its last heartbeat: origin to our seq then."""


QUIET_S = 1.0
"""A delta that is under way sends a part more often than this."""
STALLED_S = 10.0
"""A catch-up without a single part for so long does not keep us from another."""


class Incoming:
    """From whom we catch up. `ours` is always the vector as it is now."""

    def __init__(self) -> None:
        self._sources: dict[NodeId, _Source] = {}

    def joined(self, peer: NodeId, theirs: Vector, ours: Vector, now: float) -> None:
        """The Hellos, as they were sent."""
        level = dominates(ours, theirs)
        state = Following.LIVE if level else Following.NOT
        self._sources[peer] = _Source(dict(theirs), state, now)

    def gone(self, peer: NodeId) -> None:
        self._sources.pop(peer, None)

    def next(self, ours: Vector, now: float) -> tuple[NodeId, int] | None:
        """The (peer, round) to send a Want to, if it is time for one."""
        waiting: list[tuple[int, NodeId]] = []
        for peer, source in self._sources.items():
            if source.state is Following.ASKED and now - source.heard < STALLED_S:
                return None
            if source.state is Following.NOT:
                waiting.append((missing(ours, source.has), peer))
        if not waiting:
            return None
        peer = max(waiting)[1]
        source = self._sources[peer]
        source.state = Following.ASKED
        source.round += 1
        source.heard = now
        return peer, source.round

    def live(self, peer: NodeId, txs: Iterable[Tx]) -> bool:
        """Whether to apply what a peer sent live; notes that it has it."""
        source = self._sources.get(peer)
        if source is None:
            return False
        source.has = advanced(source.has, (tx.dot for tx in txs))
        return source.state is Following.LIVE

    def gap(self, peer: NodeId) -> None:
        """Its live stream had a gap: it will be asked for a delta."""
        source = self._sources.get(peer)
        if source is not None and source.state is Following.LIVE:
            source.state = Following.NOT

    def put_off(self, peer: NodeId) -> None:
        """What it sends is not wanted now; `next` names it again later."""
        source = self._sources.get(peer)
        if source is not None:
            source.state = Following.NOT

    def part(
        self, peer: NodeId, round_: int, base: Vector | None, ours: Vector, now: float
    ) -> bool:
        """Whether to apply a part of a delta."""
        source = self._sources.get(peer)
        if source is None or round_ != source.round:
            return False
        if source.state is Following.NOT:
            return False
        if base is not None and not dominates(ours, base):
            source.state = Following.NOT
            return False
        source.heard = now
        return True

    def applied(self, peer: NodeId, done: bool, advance: Vector) -> None:
        """A part was applied."""
        source = self._sources.get(peer)
        if source is None:
            return
        source.has = merged(source.has, advance)
        if done and source.state is Following.ASKED:
            source.state = Following.LIVE

    def told(
        self,
        peer: NodeId,
        theirs: Vector,
        ours: Vector,
        connected: Collection[NodeId],
        now: float,
    ) -> None:
        """Its vector, from a heartbeat. The connection keeps order, so what it has
        and we follow live is here by now: what is not, it does not mean to send."""
        source = self._sources.get(peer)
        if source is None:
            return
        source.has = merged(source.has, theirs)
        before, source.late = source.late, {}
        if source.state is not Following.LIVE or now - source.heard < QUIET_S:
            return
        for node, seq in theirs.items():
            have = ours.get(node, Seq(0))
            if have >= seq:
                continue
            source.late[node] = have
            if node not in connected or before.get(node) == have:
                source.state = Following.NOT

    def has(self, peer: NodeId) -> Mapping[NodeId, Seq]:
        source = self._sources.get(peer)
        return source.has if source is not None else {}

    def following(self, peer: NodeId) -> Following | None:
        source = self._sources.get(peer)
        return source.state if source is not None else None

    def catching_up(self) -> Collection[NodeId]:
        return [p for p, s in self._sources.items() if s.state is not Following.LIVE]
