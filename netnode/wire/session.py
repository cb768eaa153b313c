"""One connection's protocol state: bytes in, messages out. Sans-io.

Order of a session: Hello each way, then the messages of its channel until either
side says Bye or the bytes end. A wrong message, length or value raises
ProtocolError, after which the session is closed and the connection must go.
Timing (how long a Hello may take) is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import msgspec

from fusefs.model.hlc import MAX_HLC
from netnode.wire import validate
from netnode.wire.frames import (
    HELLO_HEADER_BYTES,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    Buffer,
    Frame,
    FrameReader,
    ProtocolError,
    pack,
)
from netnode.wire.messages import (
    OLDEST,
    VERSION,
    WITH_BODY,
    AnyMessage,
    Bye,
    Delta,
    Hello,
    Live,
    LockAnswer,
    LockAsk,
    LockAssert,
    LockLease,
    LockRecall,
    LockRelease,
    LockReturn,
    LockTest,
    Patch,
    Reserve,
    States,
    decode_bulk,
    decode_control,
    decode_hello,
    encode,
)


class Phase(Enum):
    GREETING = "waiting for Hello"
    OPEN = "open"
    CLOSED = "closed"


class Received(NamedTuple):
    message: AnyMessage
    body: Buffer


def hello_frame(hello: Hello) -> bytes:
    """What either side sends first."""
    return pack(encode(hello))


def agreed_version(mine: tuple[int, int], theirs: tuple[int, int]) -> int | None:
    """The version to speak, of (version, oldest) of both sides; None: no common."""
    version = min(mine[0], theirs[0])
    return version if version >= max(mine[1], theirs[1]) else None


class Session:
    """The receiving half of a connection.

    `channel` is None on the accepting side until the Hello says which. `latest`: the
    highest stamp accepted now.
    """

    def __init__(
        self,
        cluster: bytes,
        channel: str | None = None,
        latest: Callable[[], int] = lambda: MAX_HLC,
    ) -> None:
        self._latest = latest
        self._cluster = cluster
        self._channel = channel
        self._reader = FrameReader(HELLO_HEADER_BYTES, 0)
        self.phase = Phase.GREETING
        self.version = VERSION
        self.hello: Hello | None = None

    def buffer(self) -> memoryview:
        """Where the next received bytes belong."""
        return self._reader.buffer()

    def received(self, count: int) -> list[Received]:
        """The messages that `count` bytes in the last buffer() completed.

        The first is the Hello (or a Bye instead of it). Raises ProtocolError.
        """
        return self._messages(lambda: self._reader.filled(count))

    def feed(self, data: Buffer) -> list[Received]:
        """The same for bytes held elsewhere."""
        return self._messages(lambda: self._reader.feed(data))

    def _messages(self, read: Callable[[], list[Frame]]) -> list[Received]:
        """What follows a Bye was on its way already and counts for nothing."""
        out: list[Received] = []
        try:
            for frame in read():
                if self.phase is Phase.CLOSED:
                    break
                out.append(self._message(frame))
        except ProtocolError:
            self.phase = Phase.CLOSED
            raise
        return out

    def _message(self, frame: Frame) -> Received:
        try:
            message = self._decode(frame.header)
        except (msgspec.DecodeError, ValueError) as error:
            raise ProtocolError(f"a message does not decode: {error}") from error
        if frame.body and not isinstance(message, WITH_BODY):
            raise ProtocolError(f"{type(message).__name__} came with a body")
        if isinstance(message, Patch):
            validate.check_ranges(message.ranges, message.size, len(frame.body))
        if isinstance(message, Bye):
            self.phase = Phase.CLOSED
        elif self.phase is Phase.GREETING:
            self._greeted(message)
        elif isinstance(message, Hello):
            raise ProtocolError("a second Hello")
        return Received(message, frame.body)

    def _decode(self, header: bytes) -> AnyMessage:
        message: AnyMessage
        if self.phase is Phase.GREETING:
            message = decode_hello(header)
            return message
        if self._channel == "bulk":
            message = decode_bulk(header)
            return message
        message = decode_control(header)
        _check(message, self._latest)
        return message

    def _greeted(self, message: AnyMessage) -> None:
        assert isinstance(message, Hello)
        if message.cluster != self._cluster:
            raise ProtocolError("it is a node of another cluster")
        if self._channel is not None and message.channel != self._channel:
            raise ProtocolError(f"it opened a {message.channel} channel")
        version = agreed_version((VERSION, OLDEST), (message.version, message.oldest))
        if version is None:
            raise ProtocolError(
                f"it speaks versions {message.oldest}-{message.version}, "
                f"this node {OLDEST}-{VERSION}"
            )
        self.version = version
        self._channel = message.channel
        self.hello = message
        self.phase = Phase.OPEN
        self._reader.max_header = MAX_HEADER_BYTES
        self._reader.max_body = MAX_BODY_BYTES if message.channel == "bulk" else 0


def _check(message: AnyMessage, latest: Callable[[], int]) -> None:
    """What the types of a control message do not say. Raises ProtocolError."""
    match message:
        case Live():
            validate.check_txs(message.txs, latest())
            validate.check_bodies(message.bodies)
        case Delta() | States():
            validate.check_states(message.states, latest())
        case LockAsk():
            validate.check_lock(message.key, message.range, drops=False)
        case LockTest():
            validate.check_lock(message.key, message.range)
        case LockRelease():
            validate.check_lock(message.key, message.range, drops=True)
        case LockAssert():
            for lock in message.locks:
                validate.check_lock(lock.key, lock.range)
            validate.check_lock_keys(message.delegated)
        case LockLease():
            validate.check_lock_keys(message.lost)
        case LockRecall():
            validate.check_lock_keys((message.key,))
        case LockReturn():
            for range_ in message.ranges:
                validate.check_lock(message.key, range_, drops=False)
            validate.check_lock_keys((message.key,))
        case LockAnswer() if message.conflict is not None:
            validate.check_range(message.conflict)
        case Reserve():
            validate.check_name_key(message.key)
