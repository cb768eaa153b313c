"""Conflicts as a user sees them: what lost, where it is shown, how to settle it."""

from __future__ import annotations

import sqlite3

import msgspec

from fusefs.model.ids import LOST_FOUND_INO, ROOT_INO, Ino, NodeId
from fusefs.model.records import content_key, decode_content
from fusefs.model.register import decode_register
from fusefs.namespace.registers import ROWS, sound_rows
from fusefs.namespace.transaction import Transaction

KEEP = ("ours", "theirs", "both")


class Conflict(msgspec.Struct, frozen=True):
    """A losing version (or a file that lost its name), shown beside the winner."""

    directory: Ino
    name: bytes
    """What is shown under this name lost ..."""
    winner: bytes
    """... to what is shown under this one, in the same directory."""
    node: NodeId
    """Who wrote it; `stamp_ms` is when."""
    stamp_ms: int
    size: int
    winner_size: int


def find(db: sqlite3.Connection) -> list[Conflict]:
    """Every open conflict. A name that came back after a delete is none."""
    rows = db.execute(
        "SELECT o.parent, o.name, o.origin, o.ino, o.why, o.base, o.node, o.seq, i.size"
        " FROM odd o JOIN inode i ON i.ino = o.ino WHERE o.why IN ('version', 'twin')"
        " ORDER BY o.parent, o.name"
    ).fetchall()
    out = []
    for parent, name, origin, ino, why, base, node, seq, size in rows:
        winner = db.execute(
            "SELECT i.size FROM entry e JOIN inode i ON i.ino = e.ino"
            " WHERE e.parent = ? AND e.name = ?",
            (parent, origin),
        ).fetchone()
        stamp = _stamp(db, Ino(base if why == "version" else ino), (node, seq))
        out.append(
            Conflict(
                Ino(parent),
                name,
                origin,
                NodeId(node),
                stamp,
                size,
                winner[0] if winner else 0,
            )
        )
    return out


def _stamp(db: sqlite3.Connection, ino: Ino, dot: tuple[int, int]) -> int:
    row = db.execute(
        ROWS + "key = ?",
        (content_key(ino),),
    ).fetchone()
    for _, state, _ in sound_rows([row] if row else []):
        siblings = decode_register(state).siblings
        for sibling in siblings:
            if sibling.dot == dot:
                return sibling.hlc >> 16
        for sibling in siblings:
            return decode_content(sibling.value).mtime_ns // 1_000_000
    return 0


def path_of(db: sqlite3.Connection, directory: Ino, name: bytes) -> bytes:
    """The path below the mountpoint, without a leading slash."""
    parts = [name]
    ino: int = directory
    while ino not in (ROOT_INO, LOST_FOUND_INO) and len(parts) < 4096:
        row = db.execute(
            "SELECT parent, name FROM entry WHERE ino = ? LIMIT 1", (ino,)
        ).fetchone()
        if row is None:
            break
        ino, part = row
        parts.append(part)
    if ino == LOST_FOUND_INO:
        parts.append(b"lost+found")
    return b"/".join(reversed(parts))


def settle(t: Transaction, conflict: Conflict, keep: str, me: NodeId) -> None:
    """Settle one conflict. `both`: the loser becomes an ordinary file. `ours`: the
    version this node wrote stays, `theirs`: the other one; the rest is removed."""
    loser_is_ours = conflict.node == me
    keep_loser = keep == "both" or (keep == "ours") == loser_is_ours
    if not keep_loser:
        t.unlink(conflict.directory, conflict.name)
    elif keep == "both":
        t.touch_entry(conflict.directory, conflict.name)
    else:
        t.rename(conflict.directory, conflict.name, conflict.directory, conflict.winner)
