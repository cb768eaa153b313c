"""When deletes may be forgotten: what every member has acknowledged.

Source: causal stability, Baquero, Almeida, Shoker (2014); what a node does with it
is in `fusefs.namespace.tombstones`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from fusefs.model.ids import NodeId, Seq
from fusefs.model.vector import Vector, missing

EVERY_S = 60.0
"""How often it is considered: much longer than it takes until things are on disk."""
WORTH = 1000
"""Operations that make a new horizon worth a transaction at once ..."""
LONGEST_S = 120.0
"""... and the time after which fewer do: who removes files because his disk is full
waits for it."""

STEP_REGISTERS = 1000
"""Forgotten in one transaction, on each node: about 50 ms in which nobody else writes.
After a member was away for long there may be millions."""
STEP_PAUSE_S = 0.25


class Horizon(NamedTuple):
    upto: dict[NodeId, Seq]
    after: dict[NodeId, Seq]


def horizon(
    members: Collection[NodeId], vectors: Mapping[NodeId, Vector]
) -> Horizon | None:
    """From the vectors the members told last; None while one is unknown.

    `upto` is the pointwise minimum, `after` each member's own seq when it told.
    """
    if not members or any(node not in vectors for node in members):
        return None
    told = [vectors[node] for node in members]
    nodes = set(told[0]).intersection(*told[1:])
    upto = {node: Seq(min(v[node] for v in told)) for node in sorted(nodes)}
    after = {node: vectors[node].get(node, Seq(0)) for node in sorted(members)}
    return Horizon(upto, after)


class Told(NamedTuple):
    """The vector of a member's last heartbeat; `boot` is another after each start."""

    boot: int
    vector: Vector


def durable(
    before: Mapping[NodeId, Told], now: Mapping[NodeId, Told]
) -> dict[NodeId, Vector]:
    """What the members told one round ago and still have: it is on their disks since,
    so that no power cut takes it back after the others forgot the deletes in it. Of
    who started meanwhile nothing is known: perhaps a power cut took it already."""
    return {
        node: {
            n: min(seq, told.vector.get(n, Seq(0)))
            for n, seq in before[node].vector.items()
        }
        for node, told in now.items()
        if node in before and before[node].boot == told.boot
    }


def worth_writing(last: Vector, upto: Vector, since_s: float) -> bool:
    """Whether the new horizon is enough ahead of the last one written."""
    ahead = missing(last, upto)
    return ahead >= WORTH or (ahead > len(upto) and since_s >= LONGEST_S)
