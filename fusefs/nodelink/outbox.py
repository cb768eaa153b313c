"""What the worker has committed and not yet handed to the node. Thread-safe."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from fusefs.model.ids import Seq
from fusefs.model.tx import Body, Tx, whole
from fusefs.nodelink.messages import Behind, Publish

MAX_QUEUED_BYTES = 8 << 20
"""Beyond this only the fact is kept; the node then reads the database."""
MAX_FRAME_BYTES = 512 << 10
"""Of transactions and bodies in one message, well under the header limit."""
MAX_TX_BYTES = 384 << 10
"""A larger transaction does not go into a frame with what it takes along: the node
reads it from the database, too."""
WRITE_OVERHEAD_BYTES = 64


def tx_bytes(tx: Tx) -> int:
    """About what the transaction takes in memory and on the wire."""
    size = WRITE_OVERHEAD_BYTES
    for write in tx.writes:
        size += len(write.key) + len(write.value) + WRITE_OVERHEAD_BYTES
    return size


class Outbox:
    """A queue bounded in bytes that never blocks and never lies."""

    def __init__(self, limit_bytes: int = MAX_QUEUED_BYTES) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()  # protects the rest; nothing waits inside
        self._queue: list[tuple[Tx, tuple[Body, ...], int]] = []
        self._bytes = 0
        self._behind = 0
        self._newest = 0

    def put(self, tx: Tx, bodies: Sequence[Body]) -> bool:
        """Queue it. True when the queue was empty (somebody should flush)."""
        own = tx_bytes(tx)
        size = own + sum(len(b.data) + 48 for b in bodies)
        with self._lock:
            empty = not self._queue and not self._behind
            self._newest = max(self._newest, tx.seq)
            too_much = own > MAX_TX_BYTES or self._bytes + size > self._limit
            if self._behind or too_much:
                self._queue.clear()
                self._bytes = 0
                self._behind = max(self._behind, self._newest)
            else:
                self._queue.append((tx, tuple(bodies), size))
                self._bytes += size
            return empty

    def take(self, *, patches: bool = True) -> list[Publish | Behind]:
        """Everything queued, as messages in order, each small enough for a frame;
        unless the node takes `patches`, only chunks that are whole."""
        with self._lock:
            queue, self._queue = self._queue, []
            behind, self._behind = self._behind, 0
            self._bytes = 0
        messages: list[Publish | Behind] = [Behind(Seq(behind))] if behind else []
        # Two threads may publish their transactions in the other order.
        queue.sort(key=lambda item: item[0].seq)
        at = 0
        while at < len(queue):
            end, size = at, 0
            while end < len(queue) and (end == at or size < MAX_FRAME_BYTES):
                size += queue[end][2]
                end += 1
                if end < len(queue) and size + queue[end][2] > MAX_FRAME_BYTES:
                    break
            part = queue[at:end]
            bodies = tuple(body for _, taken, _ in part for body in taken)
            txs = tuple(tx for tx, _, _ in part)
            messages.append(Publish(txs, bodies if patches else whole(bodies)))
            at = end
        return messages

    @property
    def queued_bytes(self) -> int:
        return self._bytes
