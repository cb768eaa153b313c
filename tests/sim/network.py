"""A network in memory behind `netnode.transport`: delays, partitions, broken links.

As TCP would have it: bytes of one connection arrive in order or not at all; a
partition holds them back and keeps new connections from being made; a broken
connection ends for both sides.
"""

from __future__ import annotations

import random
from collections import deque

import trio

from fusefs.model.ids import NodeId
from netnode.transport import Accept, BrokenStream, Buffer, Stream

BLOCKED_LOOK_S = 0.05
CONNECT_LIMIT_S = 4.0


class MemoryStream:
    """One end of a connection; `other` is the other end."""

    def __init__(self, fabric: Fabric, here: str, there: str, node: NodeId) -> None:
        self.remote = there
        self.node: NodeId | None = node
        self._fabric = fabric
        self.here = here
        self.there = there
        self.other: MemoryStream
        self._inbox: deque[tuple[float, memoryview]] = deque()
        self._inbox_bytes = 0
        self._sent = self._last = 0.0
        self._closed = False
        self._ended_at: float | None = None
        self._arrived = trio.Event()
        self._drained = trio.Event()

    @property
    def queued_bytes(self) -> int:
        return self.other._inbox_bytes

    def send_nowait(self, *parts: Buffer) -> None:
        if self._closed or self.other._closed:
            return
        data = memoryview(b"".join(bytes(part) for part in parts))
        now = trio.current_time()
        self._sent = max(self._sent, now) + len(data) / self._fabric.bytes_per_s
        at = self._sent + self._fabric.delay(self.here, self.there)
        self._last = max(self._last, at)
        self._fabric.messages += 1
        self._fabric.bytes += len(data)
        self.other._put(self._last, data)

    def _put(self, at: float, data: memoryview) -> None:
        self._inbox.append((at, data))
        self._inbox_bytes += len(data)
        self._arrived.set()

    async def drained(self, below: int) -> None:
        while self.queued_bytes >= below:
            if self._closed or self.other._closed:
                break
            other = self.other
            other._drained = trio.Event()
            with trio.move_on_after(1.0):
                await other._drained.wait()
        if self._closed:
            raise BrokenStream("closed while sending")
        await trio.lowlevel.checkpoint()

    async def receive_into(self, buffer: memoryview) -> int:
        while True:
            if self._closed:
                raise BrokenStream("closed here")
            now = trio.current_time()
            if self._fabric.blocked(self.there, self.here):
                await trio.sleep(BLOCKED_LOOK_S)
                continue
            if self._inbox and self._inbox[0][0] <= now:
                await trio.lowlevel.checkpoint()
                return self._take(buffer)
            if not self._inbox and self._ended_at is not None:
                if now >= self._ended_at:
                    return 0
                await trio.sleep_until(self._ended_at)
                continue
            self._arrived = trio.Event()
            until = self._inbox[0][0] if self._inbox else float("inf")
            with trio.move_on_at(until):
                await self._arrived.wait()

    def _take(self, buffer: memoryview) -> int:
        """As much as has arrived and fits."""
        now, got = trio.current_time(), 0
        while self._inbox and self._inbox[0][0] <= now and got < len(buffer):
            at, data = self._inbox[0]
            count = min(len(data), len(buffer) - got)
            buffer[got : got + count] = data[:count]
            got += count
            if count == len(data):
                self._inbox.popleft()
            else:
                self._inbox[0] = (at, data[count:])
        self._inbox_bytes -= got
        self._drained.set()
        return got

    async def run(self) -> None:
        await trio.sleep_forever()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._arrived.set()
        self._drained.set()
        other = self.other
        delay = self._fabric.delay(self.here, self.there)
        other._ended_at = max(self._last, trio.current_time() + delay)
        other._arrived.set()
        other._drained.set()
        self._fabric.streams.pop(self, None)


class Fabric:
    """All of the network: who listens where, what is blocked, how slow it is."""

    def __init__(
        self,
        rng: random.Random,
        latency_s: tuple[float, float] = (0.0001, 0.0005),
        bytes_per_s: float = 1e9,
    ) -> None:
        self._rng = rng
        self.latency_s = latency_s
        self.bytes_per_s = bytes_per_s
        self._listening: dict[str, tuple[Accept, trio.Nursery, NodeId]] = {}
        self._blocked: set[tuple[str, str]] = set()
        self._far: dict[frozenset[str], float] = {}
        self.streams: dict[MemoryStream, None] = {}  # in the order they were made
        self.messages = 0
        self.bytes = 0

    def delay(self, here: str, there: str) -> float:
        extra = self._far.get(frozenset((here, there)), 0.0)
        return self._rng.uniform(*self.latency_s) + extra

    def blocked(self, source: str, target: str) -> bool:
        return (source, target) in self._blocked

    # -- what a test does to it --------------------------------------------------------

    def far(self, a: str, b: str, one_way_s: float) -> None:
        self._far[frozenset((a, b))] = one_way_s

    def block(self, source: str, target: str) -> None:
        """One way only; both for a full partition."""
        self._blocked.add((source, target))

    def partition(self, *sides: set[str]) -> None:
        """Hosts of different sides do not reach each other."""
        for side in sides:
            for other in sides:
                if side is not other:
                    self._blocked |= {(a, b) for a in side for b in other}

    def heal(self) -> None:
        self._blocked.clear()

    def sever(self, a: str, b: str) -> None:
        """Break every connection between two hosts."""
        for stream in list(self.streams):
            if {stream.here, stream.there} == {a, b}:
                stream.close()
                stream.other.close()

    # -- for the nodes -----------------------------------------------------------------

    def host(self, name: str, node: NodeId) -> Host:
        return Host(self, name, node)

    async def connect(self, here: Host, there: str) -> MemoryStream:
        delay = self.delay(here.name, there)
        await trio.sleep(2 * delay)
        deadline = trio.current_time() + CONNECT_LIMIT_S
        while self.blocked(here.name, there) or self.blocked(there, here.name):
            if trio.current_time() > deadline:
                raise OSError(f"{there} does not answer")
            await trio.sleep(BLOCKED_LOOK_S)
        found = self._listening.get(there)
        if found is None:
            raise ConnectionRefusedError(f"{there} refuses")
        accept, nursery, node = found
        near = MemoryStream(self, here.name, there, node)
        far = MemoryStream(self, there, here.name, here.node)
        near.other, far.other = far, near
        self.streams |= {near: None, far: None}
        nursery.start_soon(_serve, accept, far)
        return near

    def listen(self, host: Host, accept: Accept, nursery: trio.Nursery) -> None:
        self._listening[host.name] = (accept, nursery, host.node)

    def close_host(self, name: str) -> None:
        """Its process died: the kernel closes its connections."""
        self._listening.pop(name, None)
        for stream in list(self.streams):
            if stream.here == name:
                stream.close()


async def _serve(accept: Accept, stream: MemoryStream) -> None:
    try:
        await accept(stream)
    finally:
        stream.close()


class Host:
    """The Network of one node. Its address is "name:1"."""

    def __init__(self, fabric: Fabric, name: str, node: NodeId) -> None:
        self._fabric = fabric
        self.name = name
        self.node = node

    async def dial(self, address: str) -> Stream:
        return await self._fabric.connect(self, address.rpartition(":")[0])

    async def listen(
        self, accept: Accept, *, task_status: trio.TaskStatus[int]
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._fabric.listen(self, accept, nursery)
            try:
                task_status.started(1)
                await trio.sleep_forever()
            finally:
                self._fabric.close_host(self.name)
