"""Which peer is asked for which chunk: parallel, least busy first, hedged.

A chunk has one owner at a time: the peer it was asked of. It goes to the least
busy of the peers likely to have it (the writer, and those placement names); when
they have it not, all others are asked at once whether they do. A chunk that takes
much longer than is usual for its owner is asked of a second peer; whichever comes
first wins and the other request is cancelled. A chunk that no connected peer has
fails at once, or when no peer is expected back any more.

`pump` and the inputs return actions in order; the caller carries them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from fusefs.model.ids import ChunkId, NodeId


class Priority(IntEnum):
    """Lower goes first. A program waits for FOREGROUND."""

    FOREGROUND = 0
    PREFETCH = 1
    REPAIR = 2


WINDOW = {Priority.FOREGROUND: 8, Priority.PREFETCH: 6, Priority.REPAIR: 2}
"""Chunks in flight per peer up to which one of this priority is asked for: enough
to hide a round trip, room left for what a program waits for."""
SMALL_WINDOW = {Priority.FOREGROUND: 64, Priority.PREFETCH: 48, Priority.REPAIR: 16}
"""The same of small chunks, which take a round trip and next to nothing else; they are
counted apart."""
HEDGE_FLOOR_S = 0.15
HEDGE_FACTOR = 4.0
"""Usual latencies of a peer after which a second one is asked."""
FIRST_LATENCY_S = 0.1
BACK_S = 5.0
"""So long a peer that was lost is expected back: it may only be restarting."""
SMOOTHING = 0.2
ASK_DIRECTLY = 2
"""So many unlikely peers are just asked for the chunk, more are asked whether they
have it."""


class Ask(NamedTuple):
    peer: NodeId
    cids: tuple[ChunkId, ...]
    urgent: int = 0
    """So many of them, the first, a program waits for."""


class Find(NamedTuple):
    """Ask whether the peer has these; answer with `held`."""

    peer: NodeId
    cids: tuple[ChunkId, ...]


class CancelAsk(NamedTuple):
    peer: NodeId
    cid: ChunkId


class Outcome(IntEnum):
    OK = 0
    UNREACHABLE = 1
    TIMED_OUT = 2
    NO_SPACE = 3
    """It came, and there was no room for it."""
    NOT_STORED = 4
    """It came, and the disk failed at it."""


class Finished(NamedTuple):
    request: int
    outcome: Outcome


Action = Ask | Find | CancelAsk | Finished


class _Chunk:
    __slots__ = (
        "cid",
        "finding",
        "hint",
        "holders",
        "otherwise",
        "owners",
        "priority",
        "requests",
        "ruled_out",
        "small",
    )

    def __init__(self, cid: ChunkId, priority: Priority, small: bool) -> None:
        self.cid = cid
        self.priority = priority
        self.small = small
        self.requests: set[int] = set()
        self.hint: list[NodeId] = []
        self.owners: dict[NodeId, float] = {}
        self.ruled_out: set[NodeId] = set()
        self.finding: set[NodeId] = set()
        self.holders: set[NodeId] = set()
        self.otherwise = Outcome.UNREACHABLE


class _Request(NamedTuple):
    missing: set[ChunkId]
    deadline: float


class PeerLoad:
    """What is known of one peer as a source."""

    __slots__ = ("in_flight", "latency_s", "misses", "received", "small")

    def __init__(self) -> None:
        self.in_flight: set[ChunkId] = set()
        self.small: set[ChunkId] = set()
        """Small ones in flight."""
        self.latency_s = FIRST_LATENCY_S
        self.misses = 0.0
        """Share of its recent answers that were "not here"."""
        self.received = 0

    @property
    def cost(self) -> float:
        return len(self.in_flight) + len(self.small) / 8 + 4 * self.misses

    def like(self, small: bool) -> set[ChunkId]:
        """Those in flight that share its window."""
        return self.small if small else self.in_flight


class FetchScheduler:
    """See the module. `likely` names the nodes placement would choose."""

    def __init__(self, likely: Callable[[ChunkId], Sequence[NodeId]]) -> None:
        self._likely = likely
        self.peers: dict[NodeId, PeerLoad] = {}
        self._chunks: dict[ChunkId, _Chunk] = {}
        self._waiting: dict[tuple[Priority, bool], dict[ChunkId, None]] = {
            (priority, small): {} for priority in Priority for small in (False, True)
        }
        self._requests: dict[int, _Request] = {}
        self._overdue: dict[ChunkId, None] = {}
        """A second peer should be asked, as soon as there is one to ask."""
        self._hedged: set[ChunkId] = set()
        self._expected: dict[NodeId, float] = {}
        """Peers that were lost, and until when they are expected back."""

    # -- inputs ----------------------------------------------------------------

    def want(
        self,
        request: int,
        cids: Iterable[ChunkId],
        priority: Priority,
        hint: Sequence[NodeId],
        now: float,
        deadline: float,
        small: bool = False,
    ) -> list[Action]:
        """A new request; it is Finished once, whatever happens."""
        missing = set(cids)
        if not missing:
            return [Finished(request, Outcome.OK)]
        self._requests[request] = _Request(missing, deadline)
        for cid in dict.fromkeys(cids):
            chunk = self._chunks.get(cid)
            if chunk is None:
                chunk = self._chunks[cid] = _Chunk(cid, priority, small)
                self._queue(chunk)[cid] = None
            elif priority < chunk.priority:
                self._raise(chunk, priority)
            chunk.requests.add(request)
            chunk.hint += [n for n in hint if n not in chunk.hint]
        return self._pump(now)

    def arrived(self, cid: ChunkId, peer: NodeId, now: float) -> list[Action]:
        """The chunk is verified and in the store."""
        load = self.peers.get(peer)
        chunk = self._chunks.pop(cid, None)
        if load is not None:
            load.misses *= 1 - SMOOTHING
            load.received += 1
            if chunk is not None and peer in chunk.owners:
                took = now - chunk.owners[peer]
                load.latency_s += SMOOTHING * (took - load.latency_s)
        if chunk is None:
            self._release(cid, (peer,))
            return self._pump(now)
        self._queue(chunk).pop(cid, None)
        self._unhedge(cid)
        self._release(cid, (*chunk.owners, peer))
        actions: list[Action] = [
            CancelAsk(owner, cid) for owner in chunk.owners if owner != peer
        ]
        for number in sorted(chunk.requests):
            request = self._requests[number]
            request.missing.discard(cid)
            if not request.missing:
                del self._requests[number]
                actions.append(Finished(number, Outcome.OK))
        return actions + self._pump(now)

    def absent(self, cid: ChunkId, peer: NodeId, now: float) -> list[Action]:
        """The peer has it not, or what it sent was wrong."""
        load = self.peers.get(peer)
        if load is not None:
            load.misses += SMOOTHING * (1 - load.misses)
        self._release(cid, (peer,))
        self._rule_out(cid, peer)
        return self._pump(now)

    def not_kept(
        self, cid: ChunkId, peer: NodeId, why: Outcome, now: float
    ) -> list[Action]:
        """The peer sent it, and it could not be stored: the outcome, unless that of
        another can."""
        chunk = self._chunks.get(cid)
        if chunk is not None:
            chunk.otherwise = why
        return self.absent(cid, peer, now)

    def held(
        self, peer: NodeId, asked: Iterable[ChunkId], has: Iterable[ChunkId], now: float
    ) -> list[Action]:
        """The answer to Find."""
        yes = set(has)
        for cid in asked:
            chunk = self._chunks.get(cid)
            if chunk is None:
                continue
            chunk.finding.discard(peer)
            if cid in yes:
                chunk.holders.add(peer)
            else:
                chunk.ruled_out.add(peer)
        return self._pump(now)

    def peer_joined(self, peer: NodeId, now: float) -> list[Action]:
        """It can be asked from now on."""
        self._expected.pop(peer, None)
        self.peers.setdefault(peer, PeerLoad())
        for chunk in self._chunks.values():
            chunk.ruled_out.discard(peer)
        return self._pump(now)

    def peer_gone(self, peer: NodeId, now: float) -> list[Action]:
        """What it was asked for goes to others."""
        self._expected[peer] = now + BACK_S
        self._take_from(peer)
        return self._pump(now)

    def peer_is_back(self, peer: NodeId, now: float) -> list[Action]:
        """What it was asked for was lost on the way; it can be asked again."""
        self._take_from(peer)
        return self.peer_joined(peer, now)

    def _take_from(self, peer: NodeId) -> None:
        self.peers.pop(peer, None)
        for cid, chunk in self._chunks.items():
            chunk.finding.discard(peer)
            chunk.holders.discard(peer)
            if peer in chunk.owners:
                self._rule_out(cid, peer)

    def cancel(self, request: int, now: float) -> list[Action]:
        """Nobody waits for it any more; no Finished comes."""
        return self._drop(request) + self._pump(now)

    def tick(self, now: float) -> list[Action]:
        """Deadlines and hedges; call at `next_event`."""
        actions: list[Action] = []
        for number in [n for n, r in self._requests.items() if r.deadline <= now]:
            actions += self._drop(number)
            actions.append(Finished(number, Outcome.TIMED_OUT))
        for chunk in self._chunks.values():
            late_at = self._late_at(chunk)
            if late_at is not None and late_at <= now:
                self._overdue[chunk.cid] = None
        return actions + self._pump(now)

    def next_event(self) -> float | None:
        """When `tick` has something to do."""
        times = [r.deadline for r in self._requests.values()]
        late = (self._late_at(chunk) for chunk in self._chunks.values())
        times += [at for at in late if at is not None]
        times += self._expected.values() if self._chunks else ()
        return min(times, default=None)

    @property
    def busy(self) -> bool:
        """A program waits for a chunk."""
        return any(c.priority is Priority.FOREGROUND for c in self._chunks.values())

    def __len__(self) -> int:
        return len(self._chunks)

    # -- decisions -------------------------------------------------------------

    def _pump(self, now: float) -> list[Action]:
        """Ask for as much as the windows allow."""
        if self._expected:
            self._expected = {p: at for p, at in self._expected.items() if at > now}
        asks: dict[NodeId, list[_Chunk]] = {}
        finds: dict[NodeId, list[ChunkId]] = {}
        failed: list[ChunkId] = []
        for cid in list(self._overdue):
            chunk = self._chunks[cid]
            peer = self._choose(chunk)
            if peer is None:
                self._look_around(chunk, finds)
                continue
            del self._overdue[cid]
            self._hedged.add(cid)
            self._ask(chunk, peer, now)
            asks.setdefault(peer, []).append(chunk)
        for (priority, small), queue in self._waiting.items():
            free = self._has_room(priority, small)
            for cid in list(queue):
                if self.peers and not free:
                    break
                chunk = self._chunks[cid]
                peer = self._choose(chunk)
                if peer is not None:
                    self._ask(chunk, peer, now)
                    asks.setdefault(peer, []).append(chunk)
                    free = self._has_room(priority, small)
                elif not self._look_around(chunk, finds) and not self._expected:
                    failed.append(cid)
        actions: list[Action] = [_asked(p, chunks) for p, chunks in asks.items()]
        actions += [Find(p, tuple(c)) for p, c in finds.items()]
        for cid in failed:
            actions += self._fail(cid)
        return actions

    def _queue(self, chunk: _Chunk) -> dict[ChunkId, None]:
        return self._waiting[chunk.priority, chunk.small]

    def _has_room(self, priority: Priority, small: bool) -> bool:
        limit = _window(priority, small)
        return any(len(peer.like(small)) < limit for peer in self.peers.values())

    def _choose(self, chunk: _Chunk) -> NodeId | None:
        limit = _window(chunk.priority, chunk.small)
        best: tuple[float, float, NodeId] | None = None
        for peer in self._candidates(chunk):
            load = self.peers[peer]
            rank = (load.cost, load.latency_s, peer)
            if len(load.like(chunk.small)) < limit and (best is None or rank < best):
                best = rank
        return best[2] if best else None

    def _candidates(self, chunk: _Chunk) -> list[NodeId]:
        """Peers worth asking for it now."""
        open_ = [
            p for p in self.peers if p not in chunk.ruled_out and p not in chunk.owners
        ]
        if chunk.holders:
            return [p for p in open_ if p in chunk.holders]
        likely = {*chunk.hint, *self._likely(chunk.cid)}
        found = [p for p in open_ if p in likely]
        if found:
            return found
        unasked = [p for p in open_ if p not in chunk.finding]
        return unasked if len(unasked) <= ASK_DIRECTLY and not chunk.finding else []

    def _look_around(self, chunk: _Chunk, finds: dict[NodeId, list[ChunkId]]) -> bool:
        """With no candidate left, ask all others whether they have it; False: there
        are none."""
        if self._candidates(chunk) or chunk.finding:
            return True
        for other in self._unasked(chunk):
            finds.setdefault(other, []).append(chunk.cid)
            chunk.finding.add(other)
        return bool(chunk.finding)

    def _unasked(self, chunk: _Chunk) -> list[NodeId]:
        return [
            p for p in self.peers if p not in chunk.ruled_out and p not in chunk.owners
        ]

    def _ask(self, chunk: _Chunk, peer: NodeId, now: float) -> None:
        chunk.owners[peer] = now
        self.peers[peer].like(chunk.small).add(chunk.cid)
        self._queue(chunk).pop(chunk.cid, None)

    def _patience(self, peer: NodeId) -> float:
        load = self.peers.get(peer)
        usual = load.latency_s if load else FIRST_LATENCY_S
        return max(HEDGE_FLOOR_S, HEDGE_FACTOR * usual)

    def _late_at(self, chunk: _Chunk) -> float | None:
        """When its one owner takes too long; None once that is known."""
        cid = chunk.cid
        if len(chunk.owners) != 1 or cid in self._hedged or cid in self._overdue:
            return None
        ((peer, at),) = chunk.owners.items()
        return at + self._patience(peer)

    def _unhedge(self, cid: ChunkId) -> None:
        self._overdue.pop(cid, None)
        self._hedged.discard(cid)

    def _rule_out(self, cid: ChunkId, peer: NodeId) -> None:
        chunk = self._chunks.get(cid)
        if chunk is None:
            return
        chunk.ruled_out.add(peer)
        chunk.holders.discard(peer)
        if chunk.owners.pop(peer, None) is None:
            return
        self._unhedge(cid)  # with one owner left it can be late again
        if not chunk.owners:
            self._queue(chunk)[cid] = None

    def _raise(self, chunk: _Chunk, priority: Priority) -> None:
        waiting = chunk.cid in self._queue(chunk)
        self._queue(chunk).pop(chunk.cid, None)
        chunk.priority = priority
        if waiting:
            self._queue(chunk)[chunk.cid] = None

    def _release(self, cid: ChunkId, peers: Iterable[NodeId]) -> None:
        for peer in peers:
            load = self.peers.get(peer)
            if load is not None:
                load.in_flight.discard(cid)
                load.small.discard(cid)

    def _fail(self, cid: ChunkId) -> list[Action]:
        chunk = self._chunks.get(cid)
        if chunk is None:
            return []
        actions: list[Action] = []
        for number in sorted(chunk.requests):
            actions += self._drop(number)
            actions.append(Finished(number, chunk.otherwise))
        return actions

    def _drop(self, number: int) -> list[Action]:
        """Forget a request, and the chunks nobody else wants."""
        request = self._requests.pop(number, None)
        if request is None:
            return []
        actions: list[Action] = []
        for cid in request.missing:
            chunk = self._chunks[cid]
            chunk.requests.discard(number)
            if chunk.requests:
                continue
            del self._chunks[cid]
            self._queue(chunk).pop(cid, None)
            self._unhedge(cid)
            self._release(cid, chunk.owners)
            actions += [CancelAsk(owner, cid) for owner in chunk.owners]
        return actions


def _window(priority: Priority, small: bool) -> int:
    return (SMALL_WINDOW if small else WINDOW)[priority]


def _asked(peer: NodeId, chunks: Sequence[_Chunk]) -> Ask:
    urgent = [c.cid for c in chunks if c.priority is Priority.FOREGROUND]
    others = [c.cid for c in chunks if c.priority is not Priority.FOREGROUND]
    return Ask(peer, (*urgent, *others), len(urgent))
