"""Versions of files that are looked at a moment after they were published, for their
chunks: those of this node, which others should get, and those of others, which this
node should have."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from fusefs.model.ids import ChunkId, NodeId
from fusefs.model.records import decode_content

DELAY_S = 1.0
"""From publish to push: the foreground has gone by."""
MAX_WAITING = 100_000
"""Versions waiting to be looked at."""
SEEN_NODES = 50_000
"""Manifest nodes whose chunks were looked at: a file written in place shares most."""


class Version(msgspec.Struct, frozen=True):
    """One that has data."""

    root: bytes
    size: int
    chunk_log2: int
    writer: NodeId
    due: float
    """When it is looked at."""
    lost: bool = False
    """Chunks of it were lost here: what is here again became cache."""


def version_of(
    writer: NodeId, value: bytes, due: float, *, lost: bool = False
) -> Version | None:
    """What a content register says (`Content`, encoded); None when it has no data."""
    content = decode_content(value) if value else None
    if not content or not content.root:
        return None
    return Version(content.root, content.size, content.chunk_log2, writer, due, lost)


class Seen:
    """Manifest nodes, and when the version was due that they were seen in; the latest
    ones."""

    def __init__(self) -> None:
        self._due: OrderedDict[bytes, float] = OrderedDict()

    def note(self, node: ChunkId, due: float) -> None:
        self._due[node] = due
        if len(self._due) > SEEN_NODES:
            self._due.popitem(last=False)

    def when(self, node: ChunkId) -> float | None:
        """None when it was not seen."""
        due = self._due.get(node)
        if due is not None:
            self._due.move_to_end(node)
        return due

    def __contains__(self, node: ChunkId) -> bool:
        return node in self._due

    def clear(self) -> None:
        self._due.clear()
