"""Concurrent appends, merged: the base, then every appended piece in stamp order.

A content value that only added bytes remembers the version it began from and the
pieces added since: who added each (its stamp and node name it) and where it ends.
Versions whose pieces start from one common point merge without a conflict: the
pieces of all, each once, in the order of their stamps, the same on every node.

Consecutive pieces of one node may be joined (`extended`); then the longer one of two
with the same name holds the shorter as its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fusefs.model.hlc import Hlc
from fusefs.model.ids import NodeId
from fusefs.model.records import Content

MAX_PIECES = 64
"""Kept per version (~20 bytes each); older ones become part of the base."""
JOIN_ABOVE = 32
"""With more pieces than this a node's own last piece grows instead."""

Piece = tuple[Hlc, NodeId, int]
Base = tuple[int, bytes]


class Segment(NamedTuple):
    """Bytes [start, end) of one of the merged versions."""

    version: int
    start: int
    end: int


class Merge(NamedTuple):
    """The merged version: the first `base_size` bytes of any, then the segments."""

    base_size: int
    segments: list[Segment]
    appended_to: Base
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return self.base_size + sum(s.end - s.start for s in self.segments)


def extended(
    before: Content, stamp: Hlc, node: NodeId, size: int
) -> tuple[Base, tuple[Piece, ...]]:
    """(appended_to, pieces) of `before` with bytes added up to `size`."""
    base = before.appended_to
    if base is None:
        return (before.size, before.root), ((stamp, node, size),)
    pieces = before.pieces
    if len(pieces) >= JOIN_ABOVE and pieces[-1][1] == node:
        return base, (*pieces[:-1], (pieces[-1][0], node, size))
    pieces = (*pieces, (stamp, node, size))
    if len(pieces) > MAX_PIECES:
        return (pieces[0][2], b""), pieces[1:]
    return base, pieces


class _Part(NamedTuple):
    stamp: Hlc
    node: NodeId
    start: int
    end: int
    version: int


def _parts(content: Content, version: int) -> list[_Part]:
    out = []
    start = _base(content)[0]
    for stamp, node, end in content.pieces:
        out.append(_Part(stamp, node, start, end, version))
        start = end
    return out


def _valid(content: Content) -> bool:
    """Pieces from a peer must add up: rising ends, the last one the size."""
    if content.appended_to is None or not content.pieces:
        return False
    ends = [content.appended_to[0], *(end for _, _, end in content.pieces)]
    return ends == sorted(ends) and ends[-1] == content.size


def plan(versions: Sequence[Content]) -> Merge | None:
    """How to merge these versions, or None when they are not appends to one base."""
    if len(versions) < 2 or not all(_valid(v) for v in versions):
        return None
    parts = [_parts(v, i) for i, v in enumerate(versions)]
    start = _common_start(versions, parts)
    if start is None:
        return None
    best: dict[tuple[Hlc, NodeId], _Part] = {}
    for part in (p for ps in parts for p in ps if p.start >= start):
        name = (part.stamp, part.node)
        held = best.get(name)
        if held is None or held.end - held.start < part.end - part.start:
            best[name] = part
    names = sorted(best)
    segments = [Segment(best[n].version, best[n].start, best[n].end) for n in names]
    longest = min(range(len(versions)), key=lambda i: (_base(versions[i]), i))
    kept = [(p.stamp, p.node, p.end) for p in parts[longest] if p.end <= start]
    return _merge(start, segments, names, kept, _base(versions[longest]))


def _base(content: Content) -> Base:
    assert content.appended_to is not None
    return content.appended_to


def _merge(
    start: int,
    segments: list[Segment],
    names: list[tuple[Hlc, NodeId]],
    kept: list[Piece],
    base: Base,
) -> Merge:
    pieces = list(kept)
    end = start
    for (stamp, node), segment in zip(names, segments):
        end += segment.end - segment.start
        pieces.append((stamp, node, end))
    dropped = pieces[: max(0, len(pieces) - MAX_PIECES)]
    if dropped:
        base, pieces = (dropped[-1][2], b""), pieces[len(dropped) :]
    return Merge(start, segments, base, tuple(pieces))


def _common_start(versions: Sequence[Content], parts: list[list[_Part]]) -> int | None:
    """The end of the longest beginning all versions share, at a piece's border."""
    bases = {v.appended_to for v in versions}
    same_base = len(bases) == 1 and all(b and (b[1] or not b[0]) for b in bases)
    floor = max(v.appended_to[0] for v in versions if v.appended_to)
    tails = [[p for p in ps if p.start >= floor] for ps in parts]
    firsts = {(t[0].stamp, t[0].node, t[0].start) if t else None for t in tails}
    # a piece that begins at one offset everywhere has one history before it
    same_piece = len(firsts) == 1 and None not in firsts
    shared: int | None = floor if same_base or same_piece else None
    for column in zip(*tails):
        if len({(p.stamp, p.node, p.end) for p in column}) != 1:
            break
        shared = column[0].end
    return shared
