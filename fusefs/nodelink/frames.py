"""Frames: two lengths, a header, a body (docs/formats.md, section 7).

Sans-io and shared by the link and the wire between nodes. `FrameReader` lends a
buffer to be filled and gives back the frames that are whole, so that a large body
is received straight into the memory it is handed on in. Used by one thread or
task at a time.
"""

from __future__ import annotations

import struct

_LENGTHS = struct.Struct(">II")
PREFIX_BYTES = _LENGTHS.size

MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = (1 << 20) + (1 << 16)
"""A chunk is at most 1 MiB; the rest is room for a later encoding of it."""
BUFFER_BYTES = 64 << 10
"""Many small frames arrive in one read; four TLS records fit."""

Buffer = bytes | bytearray | memoryview


class ProtocolError(Exception):
    """The other side broke the protocol; the message says how. Drop it."""


class Frame:
    """One frame. `body` may be handed on: the reader does not touch it again."""

    __slots__ = ("body", "header")

    def __init__(self, header: bytes, body: Buffer) -> None:
        self.header = header
        self.body = body


def pack(header: bytes, body: Buffer = b"") -> bytes:
    """The frame as one string (for small bodies)."""
    return b"".join((_LENGTHS.pack(len(header), len(body)), header, body))


def prefix(header: bytes, body_bytes: int) -> bytes:
    """All of the frame but its body (the body is sent without a copy)."""
    return _LENGTHS.pack(len(header), body_bytes) + header


class FrameReader:
    """Bytes in, frames out, never holding more than the limits allow."""

    def __init__(
        self,
        max_header: int = MAX_HEADER_BYTES,
        max_body: int = MAX_BODY_BYTES,
    ) -> None:
        self.max_header = max_header
        self.max_body = max_body
        self._memory = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._memory)
        self._start = 0
        self._end = 0
        self._header = b""
        self._body: bytearray | None = None
        self._filled = 0

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._body is not None:
            return memoryview(self._body)[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._memory) - self._end < BUFFER_BYTES // 4:
            self._compact(BUFFER_BYTES)
        return self._view[self._end :]

    def filled(self, count: int) -> list[Frame]:
        """`count` bytes were put into the last `buffer()`: the frames now whole.

        Raises ProtocolError when a length is over its limit.
        """
        if self._body is not None:
            return self._body_filled(count)
        self._end += count
        frames: list[Frame] = []
        while self._end - self._start >= PREFIX_BYTES:
            header_bytes, body_bytes = _LENGTHS.unpack_from(self._memory, self._start)
            if header_bytes > self.max_header or body_bytes > self.max_body:
                raise ProtocolError(
                    f"a frame of {header_bytes} + {body_bytes} bytes is over the limit"
                )
            whole = PREFIX_BYTES + header_bytes + body_bytes
            if self._end - self._start >= whole:
                frames.append(self._take(header_bytes, body_bytes))
                continue
            if not self._begin_body(header_bytes, body_bytes):
                self._compact(PREFIX_BYTES + header_bytes)
            break
        return frames

    def feed(self, data: Buffer) -> list[Frame]:
        """The same for bytes that are already somewhere else."""
        frames: list[Frame] = []
        view = memoryview(data)
        while len(view):
            into = self.buffer()
            count = min(len(into), len(view))
            into[:count] = view[:count]
            frames += self.filled(count)
            view = view[count:]
        return frames

    @property
    def idle(self) -> bool:
        """True between frames: nothing half received."""
        return self._body is None and self._start == self._end

    def _take(self, header_bytes: int, body_bytes: int) -> Frame:
        at = self._start + PREFIX_BYTES
        header = bytes(self._view[at : at + header_bytes])
        at += header_bytes
        body = bytes(self._view[at : at + body_bytes]) if body_bytes else b""
        self._start = at + body_bytes
        return Frame(header, body)

    def _begin_body(self, header_bytes: int, body_bytes: int) -> bool:
        """Switch to filling the body in memory of its own, once the header is here."""
        at = self._start + PREFIX_BYTES
        have = self._end - at - header_bytes
        if not body_bytes or have < 0:
            return False
        self._header = bytes(self._view[at : at + header_bytes])
        self._body = bytearray(body_bytes)
        self._body[:have] = self._view[at + header_bytes : self._end]
        self._filled = have
        self._start = self._end = 0
        return True

    def _body_filled(self, count: int) -> list[Frame]:
        assert self._body is not None
        self._filled += count
        if self._filled < len(self._body):
            return []
        frame = Frame(self._header, memoryview(self._body))
        self._body = None
        return [frame]

    def _compact(self, room: int) -> None:
        """Move what is left to the front; grow only for a header that needs it."""
        left = self._end - self._start
        size = max(BUFFER_BYTES, room + BUFFER_BYTES // 4)
        if size > len(self._memory) or len(self._memory) > 2 * BUFFER_BYTES >= size:
            memory = bytearray(size)
            memory[:left] = self._view[self._start : self._end]
            self._memory, self._view = memory, memoryview(memory)
        elif self._start:
            self._view[:left] = bytes(self._view[self._start : self._end])
        self._start, self._end = 0, left
