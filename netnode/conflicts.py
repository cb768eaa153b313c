"""Listing and settling conflicts for the command line."""

from __future__ import annotations

import datetime
import os

import msgspec

from fusefs.namespace.conflicts import KEEP, Conflict, settle
from fusefs.nodelink import paths
from netnode.link import CommandFailed
from netnode.service import Node

Report = dict[str, object]


async def report(node: Node) -> list[Report]:
    """Every open conflict: where, who wrote what lost, when, both sizes."""
    found = await node.environment.offload(node.namespace.conflicts)
    return [_line(node, path, conflict) for path, conflict in found]


def _line(node: Node, path: bytes, conflict: Conflict) -> Report:
    when = datetime.datetime.fromtimestamp(conflict.stamp_ms / 1000, datetime.UTC)
    return {
        **paths.shown("path", path),
        **paths.shown("winner", os.path.join(os.path.dirname(path), conflict.winner)),
        "node_id": f"{conflict.node:016x}",
        "node": node.membership.name(conflict.node),
        "ours": conflict.node == node.me,
        "time": when.isoformat(timespec="milliseconds"),
        "size_bytes": conflict.size,
        "winner_size_bytes": conflict.winner_size,
    }


async def resolve(node: Node, path: str, keep: str) -> list[Report]:
    """Settle the conflicts of a file, given the path of the winner or of a loser; what
    lost, with the size of what is there now.

    Raises CommandFailed when there is none or `keep` is no choice.
    """
    if keep not in KEEP:
        raise CommandFailed(f"--keep takes one of {', '.join(KEEP)}, not {keep!r}")
    try:
        wanted = paths.to_bytes(path).strip(b"/")
    except ValueError:
        raise CommandFailed("this is no path") from None
    settled = []
    for where, conflict in node.namespace.conflicts():
        winner = os.path.join(os.path.dirname(where), conflict.winner)
        if wanted in (where, winner):
            _settle(node, conflict, keep)
            settled.append((where, conflict))
    if not settled:
        name = wanted.decode(errors="backslashreplace")
        raise CommandFailed(f"there is no conflict at {name}")
    return [_line(node, where, _as_it_is(node, each)) for where, each in settled]


def _as_it_is(node: Node, settled: Conflict) -> Conflict:
    """With the size that the winner's name has now: the loser may have got it."""
    entry = node.namespace.entry(settled.directory, settled.winner)
    row = node.namespace.inode(entry.ino) if entry is not None else None
    size = row.size if row is not None else 0
    return msgspec.structs.replace(settled, winner_size=size)


def _settle(node: Node, conflict: Conflict, keep: str) -> None:
    with node.namespace.transaction() as transaction:
        settle(transaction, conflict, keep, node.me)
    if transaction.tx is not None:
        node.publish((transaction.tx,))
        node.settling.add(transaction.effects, None)
