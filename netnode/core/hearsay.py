"""What members told that are not connected to each other, through those between.

Only for deletes, forgotten when all members have them on disk (`horizon`): the
member that says so must know of all, and in a partial mesh is connected to some.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from fusefs.model.ids import NodeId
from netnode.core.horizon import Told

AGE_S = 30.0
"""Half of what lies between two looks at what is told: of two in a row the second was
said half a minute after the first at least."""
EVERY_S = 10.0
"""So often it is passed on."""
MOST = 32
"""Members of which is told in one message."""


class Said(NamedTuple):
    """By a member itself, `at` that time or before."""

    told: Told
    at: float


def heard_of(
    own: Mapping[NodeId, Told],
    others: Iterable[Mapping[NodeId, Said]],
    now: float,
) -> dict[NodeId, Said]:
    """The last of each member. `own`: told by connected peers, `others`: passed on."""
    out: dict[NodeId, Said] = {}
    for heard in others:
        for node, said in heard.items():
            if now - said.at <= AGE_S and (node not in out or out[node].at < said.at):
                out[node] = said
    return out | {node: Said(told, now) for node, told in own.items()}


def news_for(
    peer: NodeId,
    its_peers: Collection[NodeId],
    known: Mapping[NodeId, Said],
) -> list[tuple[NodeId, Said]]:
    """What it is not told by the members themselves, of the latest."""
    news = [(n, s) for n, s in known.items() if n != peer and n not in its_peers]
    return sorted(news, key=lambda item: -item[1].at)[:MOST]
