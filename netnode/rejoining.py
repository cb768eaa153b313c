"""A node that comes back after the cluster went on without it.

Its registers must not be merged: what it still holds may have been deleted and
forgotten by everybody. It joins anew: another node id, an empty namespace, the old
one set aside in the store. Once it is level with the cluster, every file whose
version nobody else has ever had is put under /lost+found/NODE-DATE/, with the path it
had, as an ordinary file. Its chunks are still in the store. Then the node it was is
removed from the cluster, if nobody has done that.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from fusefs.housekeeping import ASIDE
from fusefs.model.context import has_seen
from fusefs.model.ids import LOST_FOUND_INO, ROOT_INO, Dot, Ino, NodeId
from fusefs.model.records import S_DIR, attrs_key, content_key
from fusefs.model.register import decode_register
from fusefs.model.vector import Vector, covers
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.transaction import Transaction
from fusefs.namespace.types import Inode
from netnode.service import Node

log = logging.getLogger(__name__)

LOST_FOUND = b"lost+found"
LOOK_S = 1.0
BATCH = 200
"""Files in one transaction: a few tens of milliseconds."""


class Found(NamedTuple):
    """A file, symbolic link or special file that only the old namespace knows."""

    path: tuple[bytes, ...]
    inode: Inode
    xattrs: dict[bytes, bytes]


Seen = Callable[[bytes, Dot], bool]
"""Whether a register has seen a write."""


def only_there(
    old: Namespace, known: Vector, seen_by_others: Seen = lambda key, dot: False
) -> Iterator[Found]:
    """What the old tree shows in a version that `known` does not cover and that was not
    `seen_by_others`."""
    stack: list[tuple[tuple[bytes, ...], Ino]] = [((), ROOT_INO)]
    seen: set[int] = set()
    while stack:
        path, directory = stack.pop()
        after = b""
        while page := old.children_full(directory, after):
            after = page[-1][0].name
            for entry, row in page:
                where = (*path, entry.name)
                if stat.S_ISDIR(row.mode):
                    stack.append((where, row.ino))
                elif row.ino not in seen and _unknown(old, row, known, seen_by_others):
                    seen.add(row.ino)
                    yield Found(where, row, _xattrs(old, row.ino))


def _xattrs(old: Namespace, ino: Ino) -> dict[bytes, bytes]:
    values = {name: old.xattr(ino, name) for name in old.xattrs(ino)}
    return {name: value for name, value in values.items() if value is not None}


def _unknown(old: Namespace, row: Inode, known: Vector, seen: Seen) -> bool:
    """Whether nobody else ever had this version of the data (or the file at all)."""
    if row.node:
        return not (covers(known, row.dot) or seen(content_key(row.ino), row.dot))
    key = attrs_key(row.ino)
    states = old.states([key])
    siblings = decode_register(states[0].state).siblings if states else ()
    return not any(covers(known, s.dot) or seen(key, s.dot) for s in siblings)


def bring(t: Transaction, top: bytes, found: Sequence[Found]) -> None:
    """Make ordinary files of them under /lost+found/`top`."""
    if t.entry(ROOT_INO, LOST_FOUND) is None:
        t.new_lost_found()
        t.link(ROOT_INO, LOST_FOUND, LOST_FOUND_INO, S_DIR)
    entry = t.entry(ROOT_INO, LOST_FOUND)
    assert entry is not None
    for path, row, xattrs in found:
        parent = entry.ino
        for part in (top, *path[:-1]):
            parent = _directory(t, parent, part)
        name = path[-1]
        if t.entry(parent, name) is not None:
            continue  # brought before a crash
        ino = t.new_ino(parent, name, stat.S_IFMT(row.mode) >> 12)
        t.create(
            parent, name, ino, row.mode, row.uid, row.gid, row.rdev, bytes(row.target)
        )
        if row.root:
            t.set_content(
                ino,
                size=row.size,
                root=bytes(row.root),
                chunk_log2=row.chunk_log2,
                mtime_ns=row.mtime_ns,
            )
        elif row.mtime_ns != row.btime_ns:
            t.set_times(ino, mtime_ns=row.mtime_ns)
        for key, value in xattrs.items():
            t.set_xattr(ino, key, value)


def _directory(t: Transaction, parent: Ino, name: bytes) -> Ino:
    entry = t.entry(parent, name)
    if entry is not None and entry.kind == S_DIR:
        return entry.ino
    if entry is not None:  # a file of that name was brought: beside it
        return _directory(t, parent, name[:240] + b".directory")
    ino = t.new_ino(parent, name, S_DIR)
    above = t.inode(parent)
    assert above is not None
    t.create(parent, name, ino, stat.S_IFDIR | 0o755, above.uid, above.gid)
    return ino


async def bring_when_level(node: Node, store: Path) -> None:
    """The task of a node: once level with a peer, everything set aside is brought."""
    folders = sorted((store / ASIDE).glob("*/meta.db"))
    while folders and not node.replicator.standing.level():
        await trio.sleep(LOOK_S)
    for path in folders:
        known = dict(node.replicator.vector)
        old = Namespace.open(path.parent)
        try:
            if _is_in_use(node, old.node_id):
                # A copy: whoever it is a copy of wrote under the same numbers.
                known.pop(old.node_id, None)
            await _bring_all(node, old, os.fsencode(path.parent.name), known)
            _forget_former(node, old.node_id)
        finally:
            old.close()
        shutil.rmtree(path.parent)


def _forget_former(node: Node, former: NodeId) -> None:
    """It will not come back, and its absence would keep every delete remembered."""
    member = node.namespace.members().get(former)
    if member is None or member.forgotten or _is_in_use(node, former):
        return
    tx = node.namespace.put_member(former, member.removed())
    if tx is not None:
        node.publish((tx,))
    log.info(
        "%s (%x), which this node was before, is no member any more",
        member.name,
        former,
    )


def _is_in_use(node: Node, former: NodeId) -> bool:
    """It is connected, here or to a peer: the store was a copy of one in use."""
    return any(former in (p.id, *p.outgoing.links) for p in node.peers)


async def _bring_all(node: Node, old: Namespace, top: bytes, known: Vector) -> None:
    count = 0
    batch: list[Found] = []
    for found in only_there(old, known, partial(_has_seen, node.namespace)):
        batch.append(found)
        if len(batch) == BATCH:
            count += _bring_batch(node, top, batch)
            batch = []
            await trio.lowlevel.checkpoint()
    count += _bring_batch(node, top, batch)
    where = os.fsdecode(top)
    log.warning("%d files that only this node had are in /lost+found/%s", count, where)


def _has_seen(namespace: Namespace, key: bytes, dot: Dot) -> bool:
    states = namespace.states([key])
    return bool(states) and has_seen(decode_register(states[0].state).context, dot)


def _bring_batch(node: Node, top: bytes, batch: Sequence[Found]) -> int:
    if batch:
        with node.namespace.transaction() as t:
            bring(t, top, batch)
        if t.tx is not None:
            node.publish((t.tx,))
            node.settling.add(t.effects, None)
    return len(batch)
