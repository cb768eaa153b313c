"""Requests that a thread waits for: a pool of connections, one request each.

The thread that asks reads its own answer, so no other thread has to wake up in
between: the close barrier is latency critical. It is even asked for on the worker's
connection, in one message with the transactions it waits for.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from fusefs.errors import Interrupted
from fusefs.model.ids import Seq
from fusefs.nodelink.frames import FrameReader, ProtocolError, pack
from fusefs.nodelink.messages import (
    Attach,
    Barrier,
    BarrierDone,
    Cancel,
    Fetch,
    FromNode,
    Lock,
    LockTest,
    Reserve,
    decode_from_node,
    encode,
)

CONNECT_TIMEOUT_S = 1.0
SLICE_S = 0.02
"""How often a waiting fetch looks whether its program was interrupted."""
FOREVER_S = 86_400.0
UNDO_S = 2.0
"""For the node to take notice; it answers without asking anybody."""
NODE_BACK_S = 4.0
"""A request waits this long (and never past its deadline) for a restarting node."""
LOOK_AGAIN_S = 0.05
"""Between two tries to reach a node: a start takes some 300 ms."""
KEEP_IDLE = 16
"""Idle connections kept: more threads than this seldom wait at once."""


T = TypeVar("T")
Request = Fetch | Lock | LockTest | Reserve


class NodeDown(Exception):
    """There is no node process behind the socket (any more)."""


def connect(path: Path, role: str, number: int = 0) -> socket.socket:
    """A connection that has said who it is. Raises NodeDown."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:  # no descriptor is left
        raise NodeDown(str(error)) from error
    try:
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect(str(path))
        attach = Attach(role=role, pid=os.getpid(), number=number)  # type: ignore[arg-type]
        sock.sendall(pack(encode(attach)))
    except OSError as error:
        sock.close()
        raise NodeDown(f"{path}: {error}") from error
    return sock


class CallConnection:
    """One connection with at most one request under way. Not thread-safe."""

    def __init__(self, path: Path, number: int) -> None:
        self._sock = connect(path, "call", number)
        self.number = number
        self.is_known = False
        """The node has answered on it: so it knows the number."""
        self._timeout = CONNECT_TIMEOUT_S
        self._reader = FrameReader()
        self._waiting: list[FromNode] = []

    def send(self, message: Barrier | Cancel | Request) -> None:
        """Raises NodeDown."""
        try:
            self._sock.sendall(pack(encode(message)))
        except OSError as error:
            raise NodeDown(str(error)) from error

    def answer(self, timeout_s: float) -> FromNode | None:
        """The next message, or None after the timeout. Raises NodeDown."""
        if self._waiting:
            return self._waiting.pop(0)
        deadline = time.monotonic() + timeout_s
        try:
            while not self._waiting:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                if abs(left - self._timeout) > 0.001:
                    self._sock.settimeout(left)
                    self._timeout = left
                count = self._sock.recv_into(self._reader.buffer())
                if not count:
                    raise NodeDown("the node closed the connection")
                for frame in self._reader.filled(count):
                    self._waiting.append(decode_from_node(frame.header))
        except TimeoutError:
            return None
        except (OSError, ProtocolError, msgspec.DecodeError) as error:
            raise NodeDown(str(error)) from error
        self.is_known = True
        return self._waiting.pop(0)

    def close(self) -> None:
        self._sock.close()


class Calls:
    """The pool. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # protects _idle, _next; nothing waits inside
        self._idle: list[CallConnection] = []
        self._next = 0
        self._closed = threading.Event()
        self._supervisor = os.getppid()

    def barrier(
        self, seq: Seq, deadline: float, flush: Callable[[Barrier | None], bool]
    ) -> bool | None:
        """What the node answered, or None at the deadline. Raises NodeDown.

        `flush`: sends what was published on the worker's connection, and this behind
        it; whether this went.
        """
        return _twice(lambda: self._barrier(seq, deadline, flush))

    def _barrier(
        self, seq: Seq, deadline: float, flush: Callable[[Barrier | None], bool]
    ) -> bool | None:
        with _Lease(self) as (connection, number):
            timeout_ms = max(0, int((deadline - time.monotonic()) * 1000))
            named = None
            if connection.is_known:
                named = Barrier(number, seq, timeout_ms, connection.number)
            if not flush(named):
                connection.send(Barrier(number, seq, timeout_ms))
            while True:
                answer = connection.answer(deadline - time.monotonic())
                if answer is None:
                    return None
                if isinstance(answer, BarrierDone) and answer.id == number:
                    return answer.ok

    def call(
        self,
        message: Request,
        deadline: float | None,
        cancelled: Callable[[], bool] | None,
        undo: Callable[[], Iterable[Request]] = tuple,
    ) -> FromNode | None:
        """The answer with the request's number, or None when cancelled or out of
        time (the node is told then). Raises NodeDown.

        `undo`: said after a cancellation, which may cross the answer on its way.
        """
        with _Lease(self) as (connection, number):
            connection.send(msgspec.structs.replace(message, id=number))
            while True:
                left = FOREVER_S if deadline is None else deadline - time.monotonic()
                if left <= 0 or (cancelled is not None and cancelled()):
                    connection.send(Cancel(number))
                    for message in undo():
                        _say(connection, msgspec.structs.replace(message, id=-number))
                    return None
                slice_s = left if cancelled is None else min(left, SLICE_S)
                answer = connection.answer(slice_s)
                if getattr(answer, "id", None) == number:
                    return answer

    def call_twice(self, message: Request, deadline: float) -> FromNode | None:
        """As `call`; raises NodeDown when there is no node at all."""
        return _twice(lambda: self.call(message, deadline, None))

    def call_patiently(
        self,
        message: Request,
        deadline: float | None,
        cancelled: Callable[[], bool] | None,
        undo: Callable[[], Iterable[Request]] = tuple,
    ) -> FromNode | None:
        """Asks again while the node is restarting, which it is not when nobody is there
        to start it. None at the deadline; raises Interrupted, NodeDown."""
        give_up = time.monotonic() + NODE_BACK_S
        while True:
            try:
                answer = self.call(message, deadline, cancelled, undo)
                break
            except NodeDown:
                check_cancelled(cancelled)
                now = time.monotonic()
                late = now >= give_up or (deadline is not None and now >= deadline)
                is_orphan = os.getppid() != self._supervisor
                if late or is_orphan or self._closed.is_set():
                    raise
                self.pause(LOOK_AGAIN_S)
        if answer is None:
            check_cancelled(cancelled)
        return answer

    def pause(self, seconds: float) -> None:
        """Ends early when the link does."""
        self._closed.wait(seconds)

    def close(self) -> None:
        """Drops the idle connections; nobody waits for a node any more."""
        self._closed.set()
        self._forget_idle()

    def _forget_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> tuple[CallConnection, int]:
        with self._lock:
            self._next += 1
            number = self._next
            if self._idle:
                return self._idle.pop(), number
        return CallConnection(self._path, number), number

    def _give_back(self, connection: CallConnection) -> None:
        with self._lock:
            if len(self._idle) < KEEP_IDLE and not self._closed.is_set():
                self._idle.append(connection)
                return
        connection.close()


def _twice(ask: Callable[[], T]) -> T:
    """The connections kept may be those of a node that is no more. Raises NodeDown."""
    try:
        return ask()
    except NodeDown:
        return ask()


def _say(connection: CallConnection, message: Request) -> None:
    """Send it and wait until the node has taken notice. Raises NodeDown."""
    connection.send(message)
    deadline = time.monotonic() + UNDO_S
    while True:
        answer = connection.answer(deadline - time.monotonic())
        if answer is None:
            raise NodeDown("no answer")
        if getattr(answer, "id", None) == message.id:
            return


def check_cancelled(cancelled: Callable[[], bool] | None) -> None:
    """Raises Interrupted when the program does not wait any more."""
    if cancelled is not None and cancelled():
        raise Interrupted("interrupted while waiting for the node")


class _Lease:
    """A connection for one request; thrown away when the request failed on it."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._connection: CallConnection | None = None

    def __enter__(self) -> tuple[CallConnection, int]:
        self._connection, number = self._calls._take()
        return self._connection, number

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._connection is not None
        if kind is None:
            self._calls._give_back(self._connection)
        else:
            self._connection.close()
            if kind is NodeDown:
                self._calls._forget_idle()
