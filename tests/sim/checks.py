"""What must hold on all nodes once everything has healed."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusefs.errors import FsError
from fusefs.model.ids import ROOT_INO, ChunkId, Ino, chunk_id
from fusefs.model.records import decode_content
from fusefs.namespace.types import FLAG_APPENDS
from tests.sim.cluster import SimNode

if TYPE_CHECKING:
    from tests.sim.scenario import Run

MESSAGES_PER_OP_AND_NODE = 12
"""Of a run with partitions and crashes; without them it is two per peer."""


async def all_checks(nodes: Sequence[SimNode], run: Run) -> list[str]:
    """Every promise that does not hold."""
    found = equal_registers(nodes)
    found += equal_trees(nodes)
    for node in nodes:
        found += [f"{node.name}: {p}" for p in node.namespace.problems()]
    files = [(ino, root) for ino, root, _ in walk(nodes[0])]
    found += run.promises.broken(files)
    found += [f"appends to inode {ino} were not merged" for ino in unmerged(nodes, run)]
    roots = {root for _, root in files if root and not run.promises.may_be_lost(root)}
    found += await readable(nodes, sorted(roots), run)
    if not (run.horizons or run.power_cuts or run.far_behind):
        found += unneeded_repairs(nodes, run)
    found += few_messages(nodes, run)
    return found


def equal_registers(nodes: Sequence[SimNode]) -> list[str]:
    """Digests, and the registers themselves: the digest may lie."""
    out = []
    digests = {n.namespace.digest() for n in nodes}
    if len(digests) > 1:
        out.append(f"{len(digests)} different digests")
    first = _states(nodes[0])
    for node in nodes[1:]:
        other = _states(node)
        out += [
            f"register {key!r} differs on {nodes[0].name} and {node.name}"
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
    return out


def _states(node: SimNode) -> dict[bytes, bytes]:
    return {key: state for key, state, _ in node.namespace._all_states()}


def equal_trees(nodes: Sequence[SimNode]) -> list[str]:
    first = nodes[0].namespace.snapshot()
    return [
        f"the tree of {node.name} is not that of {nodes[0].name}"
        for node in nodes[1:]
        if node.namespace.snapshot() != first
    ]


def walk(node: SimNode) -> list[tuple[Ino, bytes, int]]:
    """(inode, root, flags) of every regular file, by the tree."""
    out: list[tuple[Ino, bytes, int]] = []
    stack = [ROOT_INO]
    while stack:
        for entry, row in node.namespace.children_full(stack.pop()):
            if stat.S_ISDIR(row.mode):
                stack.append(entry.ino)
            elif stat.S_ISREG(row.mode):
                out.append((row.ino, row.root, row.flags))
    return out


def unmerged(nodes: Sequence[SimNode], run: Run) -> list[Ino]:
    """Files with appends beside each other whose bytes are still to be had: those of a
    node that lost power may be nowhere any more."""
    waiting = [ino for ino, _, flags in walk(nodes[0]) if flags & FLAG_APPENDS]
    return [
        ino
        for ino in waiting
        if not any(
            run.promises.may_be_lost(decode_content(version.value).root)
            for version in nodes[0].namespace.content_versions(ino).live
        )
    ]


async def readable(
    nodes: Sequence[SimNode], roots: Sequence[bytes], run: Run
) -> list[str]:
    """One node fetches everything, as programs would; the bytes are the promised."""
    node = run.rng.choice(nodes)
    wanted = [ChunkId(root) for root in roots]
    error = await node.fetch(wanted, 30.0)
    out = []
    for cid in wanted:
        try:
            data = node.store.get(cid)
        except FsError as problem:
            out.append(f"{cid.hex()[:12]} cannot be read: {problem} ({error})")
            continue
        if chunk_id(data) != cid or run.promises.contents.get(cid) != data:
            out.append(f"{cid.hex()[:12]} has wrong bytes")
    return out


def unneeded_repairs(nodes: Sequence[SimNode], run: Run) -> list[str]:
    """Without forgotten deletes and power cuts equal vectors are equal registers: the
    comparison of last resort must have found nothing. (After a power cut it brings
    back what was lost here and is known to peers, if new writes were faster. And a node
    in the middle of a delta, with registers ahead of its vector, may meet one that was
    left out for a while and stands where it stood.)"""
    repaired = run.repaired + sum(
        peer.repair.repaired
        for node in nodes
        if node.node is not None
        for peer in node.node.peers
    )
    return [f"{repaired} registers had to be repaired"] if repaired else []


def few_messages(nodes: Sequence[SimNode], run: Run) -> list[str]:
    sent = run.sent + sum(
        node.node.replicator.sent_messages for node in nodes if node.node is not None
    )
    limit = MESSAGES_PER_OP_AND_NODE * len(nodes) * (run.done + len(nodes))
    if sent > limit:
        return [f"{sent} messages for {run.done} operations, more than {limit}"]
    return []
