"""Which nodes keep a chunk: rendezvous hashing.

Every node computes the same answer from the member list alone, and a member that
comes or goes moves only the chunks it wins or held.

Source: Thaler, Ravishankar, "Using Name-Based Mappings to Increase Hit Rates"
(1998), with xxh3-64 as the hash.
"""

from __future__ import annotations

from collections.abc import Iterable

from xxhash import xxh3_64_intdigest

from fusefs.model.ids import ChunkId, NodeId


def score(node: NodeId, cid: bytes) -> int:
    """The weight of a node for a chunk (or any name): the same everywhere."""
    return xxh3_64_intdigest(cid, seed=node)


def ranked(cid: bytes, nodes: Iterable[NodeId]) -> list[NodeId]:
    """The nodes from most to least responsible."""
    return sorted(nodes, key=lambda n: (score(n, cid), n), reverse=True)


def holders(
    cid: ChunkId, nodes: Iterable[NodeId], replicas: int, writer: NodeId | None = None
) -> list[NodeId]:
    """The nodes that keep a copy for good. The writer's own counts as one of them,
    and comes first."""
    order = ranked(cid, nodes)
    if writer is not None and writer in order:
        order.remove(writer)
        order.insert(0, writer)
    return order[: max(1, replicas)]


def view_of(nodes: Iterable[NodeId]) -> int:
    """Equal where the same members are known; never 0."""
    ids = b"".join(node.to_bytes(8, "big") for node in sorted(nodes))
    return (xxh3_64_intdigest(ids) >> 1) or 1
