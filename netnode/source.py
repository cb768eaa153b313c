"""What the chunk plane knows of one peer."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import trio

from fusefs.model.ids import ChunkId, NodeId
from netnode.connection import Connection
from netnode.core.basis import Basis
from netnode.wire.messages import AnyMessage, Bases

MAX_TO_SERVE = 16_384
"""Chunks a peer may have asked for: its scheduler never asks for so many."""
SERVED_REMEMBERED = 4096


MOST_AHEAD_BYTES = 1 << 20
AHEAD_S = 0.03
"""A chunk is read from the disk in less, also on a busy machine."""
LEAST_S = 0.001
SMOOTHING = 0.3


class Pace:
    """How fast a peer takes bytes, and so how many may wait for it while the next chunk
    is read. On a slow line they are few: what is urgent waits behind them."""

    def __init__(self) -> None:
        self._rate = float("inf")

    @property
    def ahead(self) -> int:
        """Bytes, at least 1."""
        return int(min(MOST_AHEAD_BYTES, max(1.0, self._rate * AHEAD_S)))

    def took(self, count: int, seconds: float) -> None:
        """So many bytes went while others waited behind them."""
        if count <= 0 or seconds < LEAST_S:  # the socket's own memory took them
            return
        rate = count / seconds
        known = self._rate if self._rate < float("inf") else rate
        self._rate = known + SMOOTHING * (rate - known)


class ToServe:
    """Chunks in the order they are sent: those first that a program waits for."""

    def __init__(self) -> None:
        self._urgent: deque[ChunkId] = deque()
        self._others: deque[ChunkId] = deque()

    def add(self, urgent: Iterable[ChunkId], others: Iterable[ChunkId]) -> None:
        self._urgent.extend(urgent)
        self._others.extend(others)

    def next(self) -> ChunkId:
        """Take it out. Raises IndexError when there is none."""
        return (self._urgent or self._others).popleft()

    def clear(self) -> None:
        self._urgent.clear()
        self._others.clear()

    def __iter__(self) -> Iterator[ChunkId]:
        return chain(self._urgent, self._others)

    def __len__(self) -> int:
        return len(self._urgent) + len(self._others)


class Source:
    """One peer as far as chunks are concerned. Lives as long as its control
    connection; `connection` comes and goes."""

    def __init__(self, peer: NodeId) -> None:
        self.peer = peer
        self.connection: Connection | None = None
        self.pings = False
        """So it is not silent for long; older nodes are."""
        self.unsent: list[AnyMessage] = []
        """Requests made before the bulk connection is there."""
        self.to_serve = ToServe()
        self.cancelled: set[ChunkId] = set()
        self.bases: dict[ChunkId, Basis] = {}
        """What it has in place of chunks in `to_serve`."""
        self.named: dict[ChunkId, Basis] = {}
        """What we said to have in place of chunks it may send."""
        self.work = trio.Event()
        self.finding: dict[int, tuple[ChunkId, ...]] = {}
        self.served: OrderedDict[ChunkId, None] = OrderedDict()
        """What it fetched lately, and was not asked about since: it has these, unless
        it found no room, or did not keep them."""
        self.served_at = float("-inf")
        self._pace = Pace()

    def note_served(self, cid: ChunkId, now: float) -> None:
        self.served_at = now
        self.served[cid] = None
        if len(self.served) > SERVED_REMEMBERED:
            self.served.popitem(last=False)

    def name(self, bases: dict[ChunkId, Basis]) -> Bases:
        """What goes into the message that says so."""
        self.named.update(bases)
        while len(self.named) > MAX_TO_SERVE:
            del self.named[next(iter(self.named))]
        return tuple((cid, *basis) for cid, basis in bases.items())

    async def room(self, connection: Connection, now: Callable[[], float]) -> None:
        """Wait until another chunk should be sent. Raises BrokenStream."""
        stream = connection.stream
        before, began = stream.queued_bytes, now()
        await stream.drained(self._pace.ahead)
        self._pace.took(before - stream.queued_bytes, now() - began)

    def lost(self) -> None:
        """What either side had asked for on a connection that is no more."""
        self.to_serve.clear()
        self.bases.clear()
        self.named.clear()
        self.finding.clear()

    def send(self, message: AnyMessage) -> None:
        if self.connection is None:
            self.unsent.append(message)
        else:
            self.connection.send(message)
