"""The server side of the link: worker, calls and command line on STORE/run/node.sock.

Messages are those of `fusefs.nodelink.messages`. A request is answered from where
it completes, without a task of its own, because the close barrier comes this way.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import trio

from fusefs.model.tx import Effects
from fusefs.nodelink.fence import NodeFence
from fusefs.nodelink.frames import FrameReader, ProtocolError, pack
from fusefs.nodelink.messages import (
    LINK_VERSION,
    Answer,
    Ask,
    AskWorker,
    Attach,
    Attached,
    Barrier,
    BarrierDone,
    Behind,
    Cancel,
    Changed,
    Fetch,
    Fetched,
    FromNode,
    HeldLocks,
    Invalidated,
    Lock,
    LockDone,
    LockTest,
    Prefetch,
    Publish,
    Reserve,
    Reserved,
    ToNode,
    WorkerAnswer,
    decode_to_node,
    encode,
)
from fusefs.nodelink.messages import Peers as PeersMessage
from fusefs.nodelink.ranges import Range
from netnode.service import Node
from netnode.transport import BrokenStream, SocketStream

log = logging.getLogger(__name__)

WORKER_ANSWER_S = 0.15
"""`dfs status` must answer in half a second whatever the worker does."""
BUFFER_BYTES = 4 << 20

Command = Callable[[str, tuple[str, ...]], Awaitable[object]]
"""Answers an Ask with something JSON can hold; raises CommandFailed."""


class CommandFailed(Exception):
    """The message is for the user."""


class LinkServer:
    """See the module. `command` answers the command line."""

    def __init__(self, node: Node, path: Path, command: Command) -> None:
        self._node = node
        self._path = path
        self._command = command
        self._worker: _Worker | None = None
        self._calls: dict[tuple[int, int], _Client] = {}
        """Connections that a worker's Barrier may name, by process and number."""
        self._asked: dict[int, trio.Event] = {}
        self._answers: dict[int, bytes] = {}
        self._number = 0

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen for ever; the socket is this user's only."""
        listener = self._listen()
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    try:
                        sock, _ = listener.accept()
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        log.warning("accepting on the link failed: %s", error)
                        await trio.sleep(0.1)
                        continue
                    nursery.start_soon(self._serve, sock)
        finally:
            listener.close()

    def _listen(self) -> socket.socket:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(mask)
        listener.listen(128)
        listener.setblocking(False)
        return listener

    async def worker_statistics(self) -> object:
        """What the worker says of itself; None without one or without an answer."""
        worker = self._worker
        if worker is None:
            return None
        self._number += 1
        number = self._number
        event = self._asked[number] = trio.Event()
        worker.client.send(AskWorker(number))
        with trio.move_on_after(WORKER_ANSWER_S):
            await event.wait()
        self._asked.pop(number, None)
        data = self._answers.pop(number, None)
        return msgspec.json.decode(data) if data is not None else None

    # -- one connection --------------------------------------------------------------

    async def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        stream = SocketStream(sock, "", None)
        client = _Client(self._node, stream)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.run)
                await self._receive(client, nursery)
                nursery.cancel_scope.cancel()
        except* (BrokenStream, ProtocolError, msgspec.DecodeError) as group:
            log.info("a local connection broke: %s", group.exceptions[0])
        except* Exception:
            log.exception("serving a local connection failed")
        finally:
            stream.close()
            client.gone()
            self._detach(client)

    async def _receive(self, client: _Client, nursery: trio.Nursery) -> None:
        reader = FrameReader()
        while count := await client.stream.receive_into(reader.buffer()):
            frames = reader.filled(count)
            for frame in frames:
                self._handle(client, decode_to_node(frame.header), nursery)

    def _handle(self, client: _Client, message: ToNode, nursery: trio.Nursery) -> None:
        match message:
            case Publish():
                if message.txs:
                    self._node.publish(message.txs, message.bodies)
            case Barrier():
                self._barrier(client, message)
            case Invalidated():
                self._node.settling.done(message.id)
            case Fetch():
                if self._node.settled:
                    client.fetch(message)
                else:
                    nursery.start_soon(self._fetch_later, client, message)
            case Cancel():
                client.cancel(message.id)
            case Prefetch():
                self._node.prefetch(message.cids, message.hint)
            case Behind():
                self._node.behind()
            case Attach():
                self._attach(client, message)
            case Lock():
                client.lock(message)
            case LockTest():
                client.test(message)
            case Reserve():
                client.reserve(message)
            case HeldLocks():
                self._node.locking.worker_holds(message.locks)
            case Ask():
                nursery.start_soon(self._answer, client, message)
            case WorkerAnswer():
                event = self._asked.get(message.id)
                if event is not None:
                    self._answers[message.id] = message.value
                    event.set()

    def _barrier(self, client: _Client, message: Barrier) -> None:
        if not message.call:
            client.barrier(message)
        elif call := self._calls.get((client.pid, message.call)):
            call.barrier(message)  # else it was of another node: who waits saw it end

    async def _fetch_later(self, client: _Client, message: Fetch) -> None:
        client.waiting.add(message.id)
        await self._node.connections_settled()
        if message.id in client.waiting:
            client.waiting.discard(message.id)
            client.fetch(message)

    async def _answer(self, client: _Client, message: Ask) -> None:
        try:
            value = await self._command(message.what, message.arguments)
            data = msgspec.json.encode(value)
            client.send(Answer(message.id, True, data))
        except CommandFailed as error:
            client.send(Answer(message.id, False, msgspec.json.encode(str(error))))
        except Exception as error:
            log.exception("%s failed", message.what)
            client.send(Answer(message.id, False, msgspec.json.encode(str(error))))

    # -- the worker ------------------------------------------------------------------

    def _attach(self, client: _Client, message: Attach) -> None:
        if message.version != LINK_VERSION:
            raise ProtocolError(f"a client of link version {message.version}")
        client.pid, client.number = message.pid, message.number
        if message.role == "call":
            self._calls[client.pid, client.number] = client
        if message.role != "worker":
            return
        log.info("worker attached pid=%d", message.pid)
        worker = self._worker = _Worker(
            client, self._node.fence, self._node.locking.list_due
        )
        self._node.locking.list_due()
        client.send(Attached(self._node.me, barriers=True, patches=True))
        self._node.on_near_changed(worker.near)
        self._node.settling.attached(worker)
        self._node.behind()

    def _detach(self, client: _Client) -> None:
        if self._calls.get((client.pid, client.number)) is client:
            del self._calls[client.pid, client.number]
        worker = self._worker
        if worker is not None and worker.client is client:
            log.info("worker detached")
            self._worker = None
            self._node.on_near_changed(lambda near, connected, members: None)
            self._node.locking.worker_gone()
            self._node.settling.detached(worker)


class _Client:
    """One local connection and its requests under way."""

    def __init__(self, node: Node, stream: SocketStream) -> None:
        self._node = node
        self.stream = stream
        self.pid = self.number = 0
        self.waiting: set[int] = set()
        """Fetches held back until the first connections are there."""
        self._fetches: dict[int, int] = {}
        self._locks: dict[int, int] = {}

    def send(self, message: FromNode) -> None:
        self.stream.send_nowait(pack(encode(message)))

    def barrier(self, message: Barrier) -> None:
        number = message.id
        self._node.barrier(
            message.seq,
            message.timeout_ms / 1000,
            lambda ok: self.send(BarrierDone(number, ok)),
        )

    def fetch(self, message: Fetch) -> None:
        number = message.id
        finished = False

        def done(error: int, reason: str) -> None:
            nonlocal finished
            finished = True
            self._fetches.pop(number, None)
            self.send(Fetched(number, error, reason))

        limit_s = message.timeout_ms / 1000
        request = self._node.fetch(message.cids, limit_s, message.hint, done)
        if not finished:
            self._fetches[number] = request
        if message.ahead:
            self._node.prefetch(message.ahead, message.hint, message.small)

    def lock(self, message: Lock) -> None:
        number = message.id
        finished = False

        def done(error: int, stands: Range | None) -> None:
            nonlocal finished
            finished = True
            self._locks.pop(number, None)
            self.send(LockDone(number, error, stands))

        request = self._node.locking.lock(
            message.key, message.range, message.wait, done
        )
        if not finished:
            self._locks[number] = request

    def test(self, message: LockTest) -> None:
        number = message.id
        self._node.locking.test(
            message.key,
            message.range,
            lambda error, stands: self.send(LockDone(number, error, stands)),
        )

    def reserve(self, message: Reserve) -> None:
        number = message.id
        if message.back:
            self._node.locking.give_back(message.parent, message.name)
            self.send(Reserved(number, True))
            return
        self._node.locking.reserve(
            message.parent,
            message.name,
            lambda granted: self.send(Reserved(number, granted)),
        )

    def cancel(self, number: int) -> None:
        self.waiting.discard(number)
        request = self._fetches.pop(number, None)
        if request is not None:
            self._node.chunks.cancel(request)
        lock = self._locks.pop(number, None)
        if lock is not None:
            self._node.locking.cancel(lock)

    def gone(self) -> None:
        """Nobody waits for its requests any more."""
        self.waiting.clear()
        for number in [*self._fetches, *self._locks]:
            self.cancel(number)


class _Worker:
    """The worker's connection, as the node speaks to it."""

    def __init__(
        self, client: _Client, fence: NodeFence | None, list_due: Callable[[], None]
    ) -> None:
        """`list_due`: told that it will send the locks it holds."""
        self.client = client
        self._fence = fence
        self._list_due = list_due
        self._members = -1

    def changed(self, number: int, effects: Effects, everything: bool) -> None:
        # What was fenced is applied when something is told: nothing runs in between.
        fence = self._fence.received if self._fence is not None else 0
        self.client.send(Changed(number, effects, everything, fence))

    def near(self, near: int, connected: int, members: int) -> None:
        if not self._members and members:  # alone it asked nobody
            self._list_due()
        self._members = members
        self.client.send(PeersMessage(near, connected, members))
