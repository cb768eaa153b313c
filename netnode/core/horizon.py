"""When deletes may be forgotten: what every member has acknowledged.

Source: causal stability, Baquero, Almeida, Shoker (2014); what a node does with it
is in `fusefs.namespace.tombstones`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from fusefs.model.ids import NodeId, Seq
from fusefs.model.vector import Vector, dominates, missing
from netnode.core.timetable import Row

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
    members: Collection[NodeId], rows: Mapping[NodeId, Row], here: Vector
) -> Horizon | None:
    """From what the members have on their disks, so that no power cut takes it back
    after the others forgot the deletes in it; None while that of one is unknown, or
    one had what is not in `here`, our vector: perhaps a member nobody told us of.

    `upto` is the pointwise minimum, `after` each member's own seq when it said so.
    """
    if not members or any(node not in rows for node in members):
        return None
    if not all(dominates(here, rows[node].vector) for node in members):
        return None
    told = [rows[node].vector for node in members]
    nodes = set(told[0]).intersection(*told[1:])
    upto = {node: Seq(min(v[node] for v in told)) for node in sorted(nodes)}
    return Horizon(upto, {node: rows[node].own for node in sorted(members)})


def is_older(vector: Vector, upto: Vector, node: NodeId) -> bool:
    """Deletes were forgotten that the node had acknowledged, yet it knows nothing of
    them: its store was restored from a copy. It would bring them back."""
    return upto.get(node, 0) > 0 and not dominates(vector, upto)


def worth_writing(last: Vector, upto: Vector, since_s: float) -> bool:
    """Whether the new horizon is enough ahead of the last one written."""
    ahead = missing(last, upto)
    return ahead >= WORTH or (ahead > len(upto) and since_s >= LONGEST_S)
