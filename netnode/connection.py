"""A stream with a session on it: messages instead of bytes, and the greeting."""

from __future__ import annotations

import trio

from fusefs.model.ids import NodeId
from netnode.transport import BrokenStream, Buffer, Stream
from netnode.wire.frames import ProtocolError, pack, prefix
from netnode.wire.messages import AnyMessage, Bye, Hello, encode
from netnode.wire.session import Received, Session, hello_frame

GREETING_S = 5.0
"""For the Hello after the handshake."""
FAREWELL_S = 0.5
"""For the last message to leave."""
MAX_OWED_BYTES = 16 << 20
"""What may wait for the other side when it says something more. Transactions, deltas
and chunks wait elsewhere long before (4 MiB): this is answers."""


class Refused(Exception):
    """The other side said Bye; the message is its reason."""

    def __init__(self, bye: Bye) -> None:
        super().__init__(bye.reason)
        self.fatal = bye.fatal


class Connection:
    """Used by one reading task; anyone may send."""

    def __init__(self, stream: Stream, session: Session) -> None:
        self.stream = stream
        self._session = session
        self._early: list[Received] = []
        self._waits_since: float | None = None

    @property
    def silent_s(self) -> float:
        """For how long bytes have been waited for in vain; 0 while what came before is
        worked on, which may take longer than the other side may be silent."""
        since = self._waits_since
        return trio.current_time() - since if since is not None else 0.0

    @property
    def version(self) -> int:
        """What both sides speak, once greeted."""
        return self._session.version

    # -- sending ---------------------------------------------------------------

    def send(self, message: AnyMessage) -> None:
        """Now, as far as the network takes it; see Stream.send_nowait."""
        self.stream.send_nowait(pack(encode(message)))

    def send_frame(self, frame: bytes) -> None:
        """The same for a frame made once for many peers."""
        self.stream.send_nowait(frame)

    def send_with_body(self, message: AnyMessage, body: Buffer) -> None:
        """The body goes without a copy and must not change any more."""
        self.stream.send_nowait(prefix(encode(message), len(body)), body)

    async def say_bye(self, reason: str, fatal: bool = False) -> None:
        """Tell why, if the other side still listens, and close."""
        self.send(Bye(reason[:1000], fatal))
        with trio.move_on_after(FAREWELL_S) as scope:
            scope.shield = True
            try:
                await self.stream.drained(1)
            except BrokenStream:
                pass
        self.stream.close()

    def check_taken(self) -> None:
        """Raises ProtocolError where the other side asks on and takes nothing."""
        if self.stream.queued_bytes > MAX_OWED_BYTES:
            raise ProtocolError("it asks for more than it takes")

    # -- receiving -------------------------------------------------------------

    async def receive(self) -> list[Received]:
        """The messages that came; empty at the end of the stream.

        Raises BrokenStream, ProtocolError; Refused once what came before is returned.
        """
        received = self._early or await self._read()
        self._early = []
        for at, item in enumerate(received):
            if isinstance(item.message, Bye):
                if not at:
                    raise Refused(item.message)
                self._early = received[at:]
                return received[:at]
        return received

    async def _read(self) -> list[Received]:
        """As `receive`, with a Bye."""
        while True:
            self._waits_since = trio.current_time()
            try:
                count = await self.stream.receive_into(self._session.buffer())
            finally:
                self._waits_since = None
            if not count:
                return []
            received = self._session.received(count)
            if received:
                return received

    async def greet(self, ours: Hello) -> Hello:
        """The dialling side: says Hello first, then hears theirs. Raises as
        `receive`."""
        self.stream.send_nowait(hello_frame(ours))
        return await self.receive_hello()

    async def receive_hello(self) -> Hello:
        """The first message, in time. Raises as `receive`."""
        with trio.move_on_after(GREETING_S):
            received = await self.receive()
            if not received:
                raise BrokenStream("it closed the connection")
            hello = received[0].message
            assert isinstance(hello, Hello)
            self._early = received[1:] + self._early
            self._check_node(hello)
            return hello
        raise BrokenStream("it sent no Hello in time")

    def _check_node(self, hello: Hello) -> None:
        proven: NodeId | None = self.stream.node
        if proven != hello.node:
            raise ProtocolError("it is not the node its certificate names")
