"""The worker's side of the link to the node process.

Owns three threads: a reader that (re)connects, hears what peers changed and lets
the worker's caches forget it, a teller that lets the kernel forget it, and a writer
that sends what was published within milliseconds. Every method may be called from any
thread. `fetch` and questions about locks wait for a node that is away, for a while, and
then fail; nothing else does.
"""

from __future__ import annotations

import errno
import logging
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from fusefs.errors import FsError, NoSpace, TimedOut, Unreachable
from fusefs.model.ids import ChunkId, Ino, NodeId, Seq
from fusefs.model.tx import Body, Effects, Tx
from fusefs.nodelink.calls import Calls, NodeDown, connect
from fusefs.nodelink.fence import Gate
from fusefs.nodelink.frames import FrameReader, ProtocolError, pack
from fusefs.nodelink.locking import LinkLocks
from fusefs.nodelink.messages import (
    AskWorker,
    Attached,
    Barrier,
    Changed,
    Fetch,
    Fetched,
    FromNode,
    Invalidated,
    Peers,
    Prefetch,
    WorkerAnswer,
    decode_from_node,
    encode,
)
from fusefs.nodelink.outbox import Outbox
from fusefs.nodelink.ranges import HeldLock

log = logging.getLogger(__name__)

GATHER_S = 0.001
"""Transactions published within this time travel together."""
BUSY_GATHER_S = 0.01
"""The same while one follows the other: a peer applies ten in the time of three. A
barrier, and the release of a lock, send at once."""
SEND_TIMEOUT_S = 1.0
"""A node that takes no byte for this long is given up (and connected to anew)."""
SEND_BUFFER_BYTES = 4 << 20
RECONNECT_S = (*(0.01,) * 20, 0.05, 0.1, 0.2)
"""Pauses between attempts, the last for ever: a restarted node is soon back, and
until then nobody tells us what changed."""

ToTell = tuple[socket.socket | None, Changed]
"""And the connection that it came by."""


class LinkStatistics(msgspec.Struct, frozen=True):
    """What the link has done, for `dfs status`."""

    connected: bool
    near_peers: int
    connected_peers: int
    published: int
    queued_bytes: int
    barriers: int
    barrier_timeouts: int
    barrier_p50_ms: float
    barrier_p95_ms: float
    fetches: int
    fetch_failures: int


class NodeLink:
    """See the module. `forget` runs in the reader thread and waits for nothing, then
    `tell` in the teller's, with no lock held; the node hears that it is done when it
    returns. None, to either, is everything: changes may have been missed."""

    def __init__(
        self,
        socket_path: Path,
        forget: Callable[[Effects | None], None],
        tell: Callable[[Effects | None], None],
        statistics: Callable[[], object] | None = None,
        gate: Gate | None = None,
        held: Iterable[HeldLock] = (),
    ) -> None:
        """`gate`: opened when what a Changed tells is forgotten. `held`: locks that
        the worker before left to this one."""
        self._path = socket_path
        self._gate = gate or Gate()
        self._forget = forget
        self._tell = tell
        self._to_tell: queue.SimpleQueue[ToTell | None] = queue.SimpleQueue()
        self._worker_statistics = statistics
        self._outbox = Outbox()
        self._calls = Calls(socket_path)
        self._send_lock = threading.Lock()  # order of frames on _sock; holds a send
        self._sock: socket.socket | None = None
        self._attached = self._takes_barriers = self._takes_patches = False
        self._near = self._connected_peers = 0
        self._locks = LinkLocks(self._calls, lambda: self._flush(SEND_TIMEOUT_S), held)
        self.lock = self._locks.lock
        self.test_lock = self._locks.test
        self.give_back = self._locks.give_back
        self.has_members = self._locks.has_members
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._published = self._fetches = self._fetch_failures = 0
        self._barriers = self._barrier_timeouts = 0
        self._barrier_ms: deque[float] = deque(maxlen=1000)
        self._threads = [
            threading.Thread(target=self._read_for_ever, name="link-reader"),
            threading.Thread(target=self._tell_for_ever, name="link-teller"),
            threading.Thread(target=self._write_for_ever, name="link-writer"),
        ]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    # -- what the vfs asks for -----------------------------------------------------

    def publish(self, tx: Tx, bodies: Sequence[Body] = ()) -> None:
        """Hand a committed transaction to the node, soon. Never blocks."""
        self._published += 1
        if self._outbox.put(tx, bodies):
            self._wake.set()

    def barrier(self, seq: Seq, timeout_s: float) -> bool:
        """Wait until every near connected peer applied and invalidated `seq`.

        True at once without a near peer or without a node; False at the timeout.
        """
        if not self._near or not self._attached:
            return True
        began = time.monotonic()
        try:
            ok = self._calls.barrier(
                seq, began + timeout_s, partial(self._flush, timeout_s)
            )
        except NodeDown:
            return True
        self._barriers += 1
        self._barrier_timeouts += not ok
        self._barrier_ms.append((time.monotonic() - began) * 1000)
        return bool(ok)

    def fetch(
        self,
        cids: Sequence[ChunkId],
        *,
        timeout_s: float,
        cancelled: Callable[[], bool] | None = None,
        hint: Sequence[NodeId] = (),
        ahead: Sequence[ChunkId] = (),
        small: bool = False,
    ) -> None:
        """Return when all chunks are in the store. `ahead` is prefetched, behind them.

        Raises Unreachable (no reachable peer has one), TimedOut, Interrupted,
        NoSpace.
        """
        self._fetches += 1
        deadline = time.monotonic() + timeout_s
        timeout_ms = int(timeout_s * 1000)
        message = Fetch(0, tuple(cids), timeout_ms, tuple(hint), tuple(ahead), small)
        try:
            answer = self._calls.call_patiently(message, deadline, cancelled)
            if answer is None:
                raise TimedOut("no peer sent the data in time")
            if isinstance(answer, Fetched) and answer.error:
                raise _error(answer.error, answer.reason)
        except NodeDown as error:
            self._fetch_failures += 1
            raise Unreachable("the node process is not running") from error
        except FsError:
            self._fetch_failures += 1
            raise

    def prefetch(self, cids: Iterable[ChunkId], hint: Sequence[NodeId] = ()) -> None:
        """Ask for chunks that will be wanted soon; no answer, no error."""
        if self._attached:
            self._send(encode(Prefetch(tuple(cids), tuple(hint))))

    # -- locks and exclusive creation ------------------------------------------------

    def reserve(self, parent: Ino, name: bytes) -> bool:
        """LinkLocks.reserve; True at once without a node."""
        return not self._attached or self._locks.reserve(parent, name)

    # -- state -----------------------------------------------------------------------

    def near(self) -> bool:
        """Whether any near peer is connected."""
        return self._near > 0

    def connected(self) -> bool:
        return self._attached

    def wait_connected(self, limit_s: float) -> bool:
        """Whether the node knows of us, within the time."""
        return self._locks.wait_told(limit_s)

    def statistics(self) -> LinkStatistics:
        times = sorted(self._barrier_ms)
        return LinkStatistics(
            connected=self._attached,
            near_peers=self._near,
            connected_peers=self._connected_peers,
            published=self._published,
            queued_bytes=self._outbox.queued_bytes,
            barriers=self._barriers,
            barrier_timeouts=self._barrier_timeouts,
            barrier_p50_ms=round(times[len(times) // 2], 3) if times else 0.0,
            barrier_p95_ms=round(times[len(times) * 95 // 100], 3) if times else 0.0,
            fetches=self._fetches,
            fetch_failures=self._fetch_failures,
        )

    def close(self, *, locks_stay: bool = False) -> None:
        """Send what is queued, then stop the threads. `locks_stay`: their holders go
        on with another worker; else nobody holds any more."""
        self._flush(SEND_TIMEOUT_S)
        if not locks_stay and self._locks.release_all():
            self._tell_locks()
        self._closing.set()
        self._wake.set()
        self._to_tell.put(None)
        self._drop()
        self._calls.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2.0)

    # -- sending -------------------------------------------------------------------

    def _write_for_ever(self) -> None:
        sent = 0.0
        while not self._closing.is_set():
            self._wake.wait()
            busy = time.monotonic() - sent < BUSY_GATHER_S
            self._closing.wait(BUSY_GATHER_S if busy else GATHER_S)
            self._wake.clear()
            self._flush(SEND_TIMEOUT_S)
            sent = time.monotonic()

    def _flush(self, timeout_s: float, then: Barrier | None = None) -> bool:
        """Send what is queued, in order; somebody else may be at it already. Whether
        `then` went behind it."""
        if not self._send_lock.acquire(timeout=timeout_s):
            return False
        try:
            if not self._attached:
                return False
            taken = self._outbox.take(patches=self._takes_patches)
            frames = [pack(encode(m)) for m in taken]
            goes = then is not None and self._takes_barriers
            if goes:
                frames.append(pack(encode(then)))
            return (not frames or self._send_locked(b"".join(frames))) and goes
        finally:
            self._send_lock.release()

    def _send(self, header: bytes) -> None:
        with self._send_lock:
            self._send_locked(pack(header))

    def _send_locked(self, data: bytes) -> bool:
        sock = self._sock
        if sock is None:
            return False
        try:
            sock.sendall(data)
        except OSError as error:
            log.warning("the link to the node broke while sending: %s", error)
            self._drop()
            return False
        return True

    def _drop(self) -> None:
        """Break the connection; the reader notices and connects anew."""
        self._attached = False
        self._locks.forgotten()
        self._near = self._connected_peers = 0
        sock = self._sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    # -- receiving -----------------------------------------------------------------

    def _read_for_ever(self) -> None:
        failures = 0
        while not self._closing.is_set():
            try:
                sock = connect(self._path, "worker")
            except NodeDown:
                pause = RECONNECT_S[min(failures, len(RECONNECT_S) - 1)]
                failures += 1
                self._closing.wait(pause)
                continue
            failures = 0
            try:
                self._serve(sock)
            except (OSError, ProtocolError, msgspec.DecodeError) as error:
                if not self._closing.is_set():
                    log.warning("the link to the node broke: %s", error)
            self._drop()
            self._sock = None
            sock.close()
            self._closing.wait(RECONNECT_S[0])

    def _serve(self, sock: socket.socket) -> None:
        """Read until the connection ends."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.settimeout(SEND_TIMEOUT_S)
        self._sock = sock
        reader = FrameReader()
        while not self._closing.is_set():
            try:
                count = sock.recv_into(reader.buffer())
            except TimeoutError:
                continue
            if not count:
                return
            for frame in reader.filled(count):
                self._handle(decode_from_node(frame.header))

    def _handle(self, message: FromNode) -> None:
        match message:
            case Changed():
                self._changed(message)
            case Peers():
                self._near, self._connected_peers = message.near, message.connected
                if self._locks.note_members(message.members):
                    self._tell_locks()
            case Attached():
                self._takes_barriers = message.barriers
                self._takes_patches = message.patches
                self._attached = True
                self._locks.attached()
                self._tell_locks()
                self._wake.set()
            case AskWorker():
                self._tell_statistics(message.id)
            case _:
                raise ProtocolError(f"unexpected {type(message).__name__}")

    def _changed(self, message: Changed) -> None:
        try:
            self._forget(None if message.everything else message.effects)
        except Exception:
            log.exception("forgetting what peers changed failed; forgetting all")
            message = msgspec.structs.replace(message, everything=True)
            try:
                self._forget(None)
            except Exception:
                log.exception("forgetting all failed, too")
        self._gate.reached(message.fence)
        self._to_tell.put((self._sock, message))

    def _tell_for_ever(self) -> None:
        """In the order they came: an answer stands for all before it, too."""
        while (item := self._to_tell.get()) is not None:
            sock, message = item
            try:
                self._tell(None if message.everything else message.effects)
            except Exception:
                log.exception("telling the kernel failed; telling it to forget all")
                try:
                    self._tell(None)
                except Exception:
                    log.exception("telling it all failed, too")
            if sock is self._sock:  # another node's numbers mean something else
                self._send(encode(Invalidated(message.id)))

    def _tell_locks(self) -> None:
        self._send(encode(self._locks.held()))
        self._locks.told()

    def _tell_statistics(self, number: int) -> None:
        own = self._worker_statistics
        value = {"link": self.statistics(), "worker": own() if own else None}
        data = msgspec.json.encode(value, enc_hook=str)
        self._send(encode(WorkerAnswer(number, data)))


def _error(number: int, reason: str) -> FsError:
    match number:
        case errno.ETIMEDOUT:
            return TimedOut(reason)
        case errno.ENOSPC:
            return NoSpace(reason)
        case errno.EHOSTUNREACH:
            return Unreachable(reason)
    return FsError(reason, errno=number)
