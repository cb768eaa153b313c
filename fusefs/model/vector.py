"""Version vectors: for each node, the highest sequence number covered.

A `Vector` is a plain immutable-by-convention dict; functions return new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fusefs.model.ids import Dot, NodeId, Seq

Vector = Mapping[NodeId, Seq]

MAX_NODES = 10_000
"""Entries of a vector or member list a peer may send: far above any cluster."""


def covers(vector: Vector, dot: Dot) -> bool:
    """True when the dot is at or below the vector."""
    return vector.get(dot[0], 0) >= dot[1]


def merged(a: Vector, b: Vector) -> dict[NodeId, Seq]:
    """The pointwise maximum."""
    out = dict(a)
    for node, seq in b.items():
        if out.get(node, 0) < seq:
            out[node] = seq
    return out


def dominates(a: Vector, b: Vector) -> bool:
    """True when `a` covers everything `b` covers."""
    return all(a.get(node, 0) >= seq for node, seq in b.items())


def advanced(vector: Vector, dots: Iterable[Dot]) -> dict[NodeId, Seq]:
    """The vector raised to cover the dots."""
    out = dict(vector)
    for node, seq in dots:
        if out.get(node, 0) < seq:
            out[node] = seq
    return out


def missing(have: Vector, want: Vector) -> int:
    """How many sequence numbers of `want` are above `have` (a lag, in operations)."""
    return sum(max(0, seq - have.get(node, 0)) for node, seq in want.items())


def same(a: Vector, b: Vector) -> bool:
    """A node that is missing is at 0."""
    return all(a.get(node, 0) == b.get(node, 0) for node in {*a, *b})
