"""A channel of the kernel binding over a fake vfs, whose requests are given by hand."""

from __future__ import annotations

from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel import server
from fusefs.bindings.kernel.channel import Channel
from fusefs.bindings.kernel.connection import Connection, Settings
from fusefs.bindings.kernel.session import Session
from fusefs.model.ids import Ino
from fusefs.vfs.types import Caller
from tests.lib.memory_vfs import MemoryVfs

WHO = Caller(uid=7, gid=8, pid=9)


class Desk:
    """A channel whose requests are given by hand."""

    def __init__(self, adopted: bool = False, settings: Settings | None = None) -> None:
        self.fs = MemoryVfs()
        session = Session(flags=p.SETXATTR_EXT) if adopted else None
        self.connection = Connection(self.fs, -1, settings or Settings(), session)
        if not adopted:
            self.connection.begin(Session(flags=p.SETXATTR_EXT))
        table = server.handlers(adopted=adopted)
        self.rooms = 0
        self.channel = Channel(self.connection, table, self._make_room)
        self.connection.channels = (self.channel,)

    def _make_room(self) -> None:
        self.rooms += 1

    def ask(
        self,
        op: int,
        node: int = 1,
        body: bytes = b"",
        unique: int = 2,
        thread: int = 9,
    ) -> tuple[int, bytes] | None:
        """(errno, payload) of the reply; None without one."""
        length = p.HEADER_BYTES + len(body)
        head = p.IN_HEADER.pack(length, op, unique, node, 7, 8, thread, 0, 0)
        self.channel.buffer[:length] = head + body
        self.channel.length = length
        self.channel.unique = unique
        reply = self.channel.serve(op, unique, Ino(node))
        self.channel.unique = 0
        if reply is None:
            return None
        size, problem, echoed = p.OUT_HEADER.unpack_from(reply)
        assert (size, echoed) == (len(reply), unique)
        return -problem, bytes(reply[16:])
