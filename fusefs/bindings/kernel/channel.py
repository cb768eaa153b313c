"""One thread's share of serving: its buffers, the request it works on, its loop.

A channel reads a request into its buffer, gives it to the handler of its opcode
and writes the reply. Handlers are plain functions (channel, unique, nodeid) ->
reply; they find the rest of the request in `buffer` from REQUEST on. This is the
one place where errors become errnos: FsError its own, anything else is a bug: EIO
and a traceback in the log.
"""

from __future__ import annotations

import errno
import io
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final

from fusefs.bindings import damage
from fusefs.bindings.kernel import encode
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.connection import Connection
from fusefs.bindings.kernel.protocol import Op
from fusefs.errors import FsError, NotFound, Stale
from fusefs.model.ids import Ino
from fusefs.vfs.types import Caller

log = logging.getLogger("dfs.kernel")

Reply = bytes | memoryview | None
Handler = Callable[["Channel", int, Ino], Reply]

_AGAIN: Final = frozenset((errno.EINTR, errno.EAGAIN, errno.ENOENT))
"""Reading: the request was interrupted before we got it, or none is there."""
_GONE: Final = frozenset((errno.ENODEV, errno.ECONNABORTED, errno.EBADF))
"""Reading: unmounted, aborted, or closed by ourselves."""
_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_MADV_POPULATE_WRITE: Final = 23
"""madvise(2), since Linux 5.14."""
_USUAL_BYTES: Final = 64 << 10
"""Most requests are shorter: so much is resident of every reader's buffer."""
_ENTRY_REPLIES: Final = frozenset(
    (Op.LOOKUP, Op.CREATE, Op.MKNOD, Op.MKDIR, Op.SYMLINK, Op.LINK, Op.TMPFILE)
)


def even_removed(handler: Handler) -> Handler:
    """The handler, for who is in a directory that a peer removed, too: it is there,
    empty, as one that was removed here."""

    def served(ch: Channel, unique: int, nodeid: Ino) -> Reply:
        try:
            return handler(ch, unique, nodeid)
        except (Stale, NotFound):
            if not ch.fs.adopt_directory(nodeid):
                raise
            return handler(ch, unique, nodeid)

    return served


class Channel:
    """Belongs to one thread, but for what is marked."""

    def __init__(
        self,
        connection: Connection,
        handlers: Sequence[Handler],
        make_room: Callable[[], bool],
        *,
        number: int = 0,
        resident: bool = False,
    ) -> None:
        """`make_room`: called once before a request waits for somebody else; sees
        to it that another thread reads, if there is one to be had. `number`: that no
        other channel has now. `resident`: keep all pages of the buffer (see
        _make_resident); others than the usual readers come and go."""
        self.connection = connection
        self.fs = connection.fs
        self.handlers = handlers
        self.number = number
        self.buffer = mmap.mmap(-1, p.HEADER_ROOM + p.MAX_WRITE, flags=_PRIVATE)
        _make_resident(self.buffer, len(self.buffer) if resident else _USUAL_BYTES)
        self.view = memoryview(self.buffer)
        self.out = mmap.mmap(-1, p.PAGE + p.MAX_WRITE)
        """Replies with file data: the data page aligned, the header before it."""
        self.out_view = memoryview(self.out)
        self.length = 0
        self.unique = 0
        """The request being served, 0 while reading. Read by every thread."""
        self.interrupted = -1
        """A request of ours the kernel wants to end. Written by every thread."""
        self._stopping = False
        self._unanswered = False
        self.counts = [0] * p.OPCODES
        """Requests served per opcode. Read by every thread."""
        self.cancelled, self.noted = self._is_cancelled, self._note
        self._make_room = make_room
        self._made_room = self._parked = 0

    # -- for handlers ----------------------------------------------------------------

    def caller(self, umask: int = 0) -> Caller:
        """Who asks, from the header."""
        uid, gid, pid = p.IN_WHO.unpack_from(self.buffer, p.WHO)
        return Caller(uid, gid, pid, umask, self.cancelled, self.noted)

    def thread(self) -> int:
        """Who asks: a thread, not a process."""
        (number,) = p.IN_PID.unpack_from(self.buffer, p.PID)
        return int(number)

    def changed(self, *directories: Ino) -> None:
        """Names in these are others now. Called before the request is answered."""
        thread = self.thread()
        for ino in directories:
            self.connection.changed(ino, thread)

    def name_at(self, offset: int) -> bytes:
        """The last name of the request, which begins at `offset`."""
        return self.buffer[offset : self.length - 1]

    def names_at(self, offset: int) -> tuple[bytes, bytes]:
        """The two names that begin at `offset`."""
        first, _, second = self.buffer[offset : self.length - 1].partition(b"\0")
        return first, second

    def about_to_wait(self) -> None:
        """Sees to it that others are served while this request waits."""
        if self._made_room != self.unique:
            self._made_room = self.unique
            self._make_room()

    def about_to_park(self) -> bool:
        """The same of a request that may wait for ever. False: nobody else would read,
        so it must not."""
        self._parked = self._made_room = self.unique
        if self._make_room():
            return True
        self._parked = 0
        return False

    @property
    def parked(self) -> bool:
        """Its request may wait for ever. Read by every thread."""
        return self.unique != 0 and self._parked == self.unique

    @property
    def waiting(self) -> bool:
        """Its request waits for somebody else. Read by every thread."""
        return self.unique != 0 and self._made_room == self.unique

    def changing(self, *inodes: Ino) -> AbstractContextManager[None]:
        """Around the vfs call of a request that holds the kernel's lock of these."""
        if self.connection.settings.changes_wait:
            self.about_to_wait()
        return self.connection.holding(*inodes)

    def _note(self, ino: Ino) -> None:
        """Caller.noted: so that the next worker does nothing twice (recovery.py)."""
        unique = self.unique & ~p.UNIQUE_RESEND
        self.connection.gate.note(self.number, unique, ino)

    def _is_cancelled(self) -> bool:
        """Caller.cancelled: asked by whoever waits, so it also tells us of it."""
        self.about_to_wait()
        return self.interrupted == self.unique

    # -- the loop --------------------------------------------------------------------

    def leave(self, *, unanswered: bool) -> None:
        """End before reading again; `unanswered`: also without serving what was
        read by then. Called by any thread."""
        self._unanswered = unanswered
        self._stopping = True

    def run(self) -> None:
        """Serves until the mount is gone or it should leave."""
        fd = self.connection.fd
        readinto = io.FileIO(fd, "r+", closefd=False).readinto
        start = p.IN_START.unpack_from
        view, serve, write = self.view, self.serve, os.write
        while not self._stopping:
            try:
                length = readinto(view)
            except OSError as problem:
                if problem.errno in _AGAIN:
                    continue
                if problem.errno in _GONE:
                    return
                raise
            if not length:
                continue
            self.length = length
            _, opcode, unique, nodeid = start(view)
            self.unique = unique
            if self._unanswered:
                self.unique = 0
                return
            reply = serve(opcode, unique, nodeid)
            if reply is not None:
                try:
                    write(fd, reply)
                except OSError as problem:
                    self._unsent(problem, opcode, unique, reply)
            self.unique = 0

    def serve(self, opcode: int, unique: int, nodeid: Ino) -> Reply:
        """The reply to the request in the buffer."""
        try:
            self.counts[opcode] += 1
            return self.handlers[opcode](self, unique, nodeid)
        except FsError as problem:
            if problem.errno == errno.EIO:
                damage.say(log, _name(opcode), problem)
            return encode.error(unique, problem.errno or errno.EIO)
        except Exception as bug:
            if opcode >= p.OPCODES:
                return encode.error(unique, errno.ENOSYS)
            return self._report(bug, opcode, unique, nodeid)

    def _report(self, bug: Exception, opcode: int, unique: int, nodeid: Ino) -> Reply:
        log.error("bug in %s of inode %d", _name(opcode), nodeid, exc_info=bug)
        if opcode in (Op.FORGET, Op.BATCH_FORGET):
            return None
        return encode.error(unique, errno.EIO)

    def _unsent(
        self, problem: OSError, opcode: int, unique: int, reply: bytes | memoryview
    ) -> None:
        """ENOENT: the request is gone (aborted), so its lookup does not count."""
        if problem.errno not in (errno.ENOENT, *_GONE):
            log.error("reply to %s refused: %s", _name(opcode), problem)
            try:
                os.write(self.connection.fd, encode.error(unique, errno.EIO))
            except OSError:
                pass
        for ino in _told(opcode, reply):
            self.connection.lookups.forget(ino, 1)


def _told(opcode: int, reply: bytes | memoryview) -> list[Ino]:
    """The inodes whose lookup a reply counts."""
    found: list[int] = []
    at, end = p.OUT_BYTES, len(reply)
    if opcode in _ENTRY_REPLIES and end >= p.ENTRY_REPLY.size:
        found.append(int.from_bytes(reply[at : at + 8], "little"))
    elif opcode == Op.READDIRPLUS:
        while at < end:
            found.append(int.from_bytes(reply[at : at + 8], "little"))
            name = p.DIRENTPLUS.unpack_from(reply, at)[-2]
            at += p.DIRENTPLUS.size + name + -name % 8
    return [Ino(ino) for ino in found if ino]


def _make_resident(buffer: mmap.mmap, length: int) -> None:
    """The pages of its beginning. A request that the kernel copies into a page not
    there yet fails with EIO when the worker is killed at that moment; with the pages
    there it is asked again."""
    try:
        buffer.madvise(_MADV_POPULATE_WRITE, 0, length)
    except OSError:  # an older kernel
        for at in range(0, length, p.PAGE):
            buffer[at] = 0


def _name(opcode: int) -> str:
    try:
        return Op(opcode).name.lower()
    except ValueError:
        return f"opcode {opcode}"
