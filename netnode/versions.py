"""Versions of files that are looked at a moment after they were published, for their
chunks: those of this node, which others should get, and those of others, which this
node should have."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from fusefs.model.ids import ChunkId, Ino, NodeId
from fusefs.model.records import decode_content, key_ino

DELAY_S = 1.0
"""From publish to push: the foreground has gone by."""
MAX_WAITING = 100_000
"""Versions waiting to be looked at."""
SEEN_NODES = 50_000
"""Manifest nodes whose chunks were looked at: a file written in place shares most."""


class Version(msgspec.Struct, frozen=True):
    """One that has data."""

    ino: Ino
    root: bytes
    size: int
    chunk_log2: int
    writer: NodeId
    due: float
    """When it is looked at."""
    again: bool = False
    """What is here of it may be cache although this node should keep it: chunks of it
    were lost here and are here again, or more nodes should keep it than before."""


def version_of(
    writer: NodeId, key: bytes, value: bytes, due: float, *, again: bool = False
) -> Version | None:
    """What a content register says (`Content`, encoded); None when it has no data."""
    content = decode_content(value) if value else None
    if not content or not content.root:
        return None
    ino, log2 = key_ino(key), content.chunk_log2
    return Version(ino, content.root, content.size, log2, writer, due, again)


class Seen:
    """Manifest nodes, when the version was due that they were seen in last, and who was
    to keep their chunks: how many nodes, of which the writer is the first; the latest
    ones."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, tuple[float, int, NodeId]] = OrderedDict()

    def note(self, node: ChunkId, due: float, keepers: int, writer: NodeId) -> None:
        self._seen[node] = due, keepers, writer
        if len(self._seen) > SEEN_NODES:
            self._seen.popitem(last=False)

    def when(self, node: ChunkId, keepers: int, writer: NodeId) -> float | None:
        """None when it was not seen for so many, and this one."""
        due, seen_for, seen_of = self._seen.get(node, (0.0, 0, 0))
        if seen_for < keepers or seen_of != writer:
            return None
        self._seen.move_to_end(node)
        return due

    def clear(self) -> None:
        self._seen.clear()
