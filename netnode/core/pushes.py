"""Background replication: what is still to be brought to whom.

Every chunk written here is owed to the other nodes that placement names. An owed
chunk is offered (Have), sent when it is lacked (Put), and settled when every one
of them has confirmed; then the writer's store may count on those copies.

What is owed to a member that is away for long may be more than is remembered. The
store knows all of it (PUSHED), so it need not be: it makes room for what members lack
that are here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice

from fusefs.model.ids import ChunkId, NodeId

MAX_OWED = 200_000
"""Chunks remembered (some 30 MB); what is beyond is found again by a scan."""
LOOKED_AT = 64
"""Chunks of a queue among which one is looked for that makes room."""
OFFER = 256
"""Chunk ids in one Have."""
FIRST_PAUSE_S = 30.0
"""For a peer that could keep nothing: its bytes have come before it can say so."""
LONGEST_PAUSE_S = 600.0
"""Then with one chunk every ten minutes: less than its heartbeats."""


class Pushes:
    """See the module. Times are when an offer may begin."""

    def __init__(self) -> None:
        self._owed: dict[ChunkId, set[NodeId]] = {}
        self._due: dict[NodeId, dict[ChunkId, float]] = {}
        self._later: dict[NodeId, dict[ChunkId, float]] = {}
        """Refused, and due again at some time: the others do not wait behind them."""
        self._offered: dict[NodeId, set[ChunkId]] = {}
        self._here: set[NodeId] = set()
        """Peers that are connected."""
        self._full_until: dict[NodeId, float] = {}
        self._pauses: dict[NodeId, float] = {}
        """Peers that could keep nothing; from then on they are offered one chunk."""
        self.left_out = 0
        """Chunks that are owed and not remembered, since the last scan."""
        self.overflowed = False
        """Some of them to peers that are here: a scan has to find them soon."""

    def owe(self, cid: ChunkId, peers: Collection[NodeId], due: float) -> bool:
        """A chunk was written here. True when it is owed to nobody: settled. Of several
        files each may name other peers."""
        if not peers:
            return cid not in self._owed
        if cid not in self._owed:
            if len(self._owed) >= MAX_OWED and not self._makes_room(peers):
                self.left_out += 1
                return False
            self._owed[cid] = set()
        for peer in peers:
            if peer not in self._owed[cid]:
                self._owed[cid].add(peer)
                self._due.setdefault(peer, {})[cid] = due
        return False

    def _makes_room(self, peers: Collection[NodeId]) -> bool:
        """For a chunk that one of these lacks who is here: another that only waits is
        not remembered any more."""
        if self._here.isdisjoint(peers):
            return False
        queues = [q for peer, q in self._due.items() if peer not in self._here]
        for queue in (*queues, *self._later.values()):
            for cid in islice(queue, LOOKED_AT):
                if all(self._waits(peer, cid) for peer in self._owed[cid]):
                    self.forget(cid)
                    self.left_out += 1
                    return True
        self.overflowed = True
        return False

    def _waits(self, peer: NodeId, cid: ChunkId) -> bool:
        waits = peer not in self._here or peer in self._full_until
        return waits or cid in self._later.get(peer, ())

    @property
    def has_room(self) -> bool:
        """For what peers lack that are here."""
        return sum(self.owed_to(peer) for peer in self._here) <= MAX_OWED // 2

    @property
    def is_behind(self) -> bool:
        """Something is owed to somebody."""
        return bool(self._owed or self.left_out)

    def scan_begins(self) -> None:
        """What was left out is owed again, one by one."""
        self.left_out = 0
        self.overflowed = False

    def offer(self, peer: NodeId, now: float) -> tuple[ChunkId, ...]:
        """What to ask the peer about now; empty while an offer is open."""
        if self._offered.get(peer) or self.is_full(peer, now):
            return ()
        most = 1 if peer in self._full_until else OFFER
        due = self._due.setdefault(peer, {})
        later = self._later.get(peer, {})
        while later and (first := next(iter(later.items())))[1] <= now:
            del later[first[0]]
            due.setdefault(*first)
        batch: list[ChunkId] = []
        for cid, at in due.items():
            if at > now or len(batch) == most:
                break
            batch.append(cid)
        if batch:
            self._offered[peer] = set(batch)
        return tuple(batch)

    def next_due(self, peer: NodeId) -> float | None:
        """When the next offer to the peer may begin."""
        if self._offered.get(peer):
            return None
        firsts = [
            next(iter(queue.get(peer, {}).values()), None)
            for queue in (self._due, self._later)
        ]
        return min((at for at in firsts if at is not None), default=None)

    def answered(
        self, peer: NodeId, offered: Iterable[ChunkId], held: Iterable[ChunkId]
    ) -> tuple[list[ChunkId], list[ChunkId]]:
        """The answer to an offer: (chunks to send, chunks now settled)."""
        has = set(held)
        settled = [cid for cid in has if self.confirmed(peer, cid)]
        return [cid for cid in offered if cid not in has], settled

    def confirmed(self, peer: NodeId, cid: ChunkId) -> bool:
        """The peer keeps it. True when that settles the chunk."""
        self._done(peer, cid)
        owed = self._owed.get(cid)
        if owed is None:
            return False
        owed.discard(peer)
        if owed:
            return False
        del self._owed[cid]
        return True

    def full(self, peer: NodeId, cid: ChunkId, now: float) -> None:
        """The peer could not keep it, and so nothing else (no space). Each time that a
        pause did not help the next one is twice as long."""
        if not self.is_full(peer, now):
            pause = min(2 * self._pauses.get(peer, FIRST_PAUSE_S / 2), LONGEST_PAUSE_S)
            self._pauses[peer], self._full_until[peer] = pause, now + pause
        self.refused(peer, cid, self._full_until[peer])

    def is_full(self, peer: NodeId, now: float) -> bool:
        """Nothing is to be sent there."""
        return now < self._full_until.get(peer, now)

    def has_space(self, peer: NodeId) -> None:
        """It kept one that was sent, or is another than it was."""
        self._full_until.pop(peer, None)
        self._pauses.pop(peer, None)

    def room_again(self, peer: NodeId, now: float) -> None:
        """It says so: what it refused is offered at once."""
        self.has_space(peer)
        due = self._due.setdefault(peer, {})
        for cid in self._later.pop(peer, {}):
            due.setdefault(cid, now)

    def refused(self, peer: NodeId, cid: ChunkId, retry_at: float) -> None:
        """The peer could not keep this one, or it could not be sent."""
        self._done(peer, cid)
        if peer in self._owed.get(cid, ()):
            later = self._later.setdefault(peer, {})
            if later and retry_at < next(reversed(later.values())):
                self._due.setdefault(peer, {})[cid] = retry_at  # now, as a rule
            else:
                later[cid] = retry_at

    def forget(self, cid: ChunkId) -> None:
        """The chunk is gone here."""
        for peer in self._owed.pop(cid, ()):
            self._done(peer, cid)

    def peer_came(self, peer: NodeId) -> None:
        """It is connected."""
        self._here.add(peer)
        self.has_space(peer)

    def peer_gone(self, peer: NodeId) -> None:
        """It is not connected any more."""
        self._here.discard(peer)
        self.interrupted(peer)

    def interrupted(self, peer: NodeId) -> None:
        """Open offers are made again."""
        self._offered.pop(peer, None)

    def keep_only(self, members: Collection[NodeId]) -> None:
        """Nothing is owed to others any more. Who keeps instead what was owed to them
        alone, a scan finds out."""
        for peer in {*self._due, *self._later}.difference(members):
            gone = {**self._due.pop(peer, {}), **self._later.pop(peer, {})}
            for cid in gone:
                self._owed[cid].discard(peer)
                if not self._owed[cid]:
                    del self._owed[cid]
            self.interrupted(peer)

    def owed(self) -> list[ChunkId]:
        """All that is remembered."""
        return list(self._owed)

    def owed_to(self, peer: NodeId) -> int:
        return len(self._due.get(peer, ())) + len(self._later.get(peer, ()))

    def __contains__(self, cid: ChunkId) -> bool:
        """It is owed to somebody."""
        return cid in self._owed

    def __len__(self) -> int:
        return len(self._owed)

    def _done(self, peer: NodeId, cid: ChunkId) -> None:
        self._due.get(peer, {}).pop(cid, None)
        self._later.get(peer, {}).pop(cid, None)
        self._offered.get(peer, set()).discard(cid)
