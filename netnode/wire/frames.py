"""The frame codec of the wire: the same frames as on the link, other limits."""

from __future__ import annotations

from fusefs.nodelink.frames import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    Buffer,
    Frame,
    FrameReader,
    ProtocolError,
    pack,
    prefix,
)

HELLO_HEADER_BYTES = 256 << 10
"""Before the other side has said who it is: a Hello with a large vector fits."""

__all__ = [
    "HELLO_HEADER_BYTES",
    "MAX_BODY_BYTES",
    "MAX_HEADER_BYTES",
    "Buffer",
    "Frame",
    "FrameReader",
    "ProtocolError",
    "pack",
    "prefix",
]
