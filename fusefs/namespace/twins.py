"""Inodes that lost their name to one that is like them."""

from __future__ import annotations

import sqlite3
import stat

import msgspec

from fusefs.model.ids import Ino, NodeId
from fusefs.namespace.types import FLAG_CONFLICT

_SEEN = ("mode", "uid", "gid", "rdev", "size", "root", "target")
_ALIKE = (
    "SELECT o.parent, o.origin, o.name, o.ino, e.ino FROM odd o"
    " JOIN entry e ON e.parent = o.parent AND e.name = o.origin"
    " JOIN inode i ON i.ino = o.ino JOIN inode w ON w.ino = e.ino"
    " WHERE o.why = 'twin' AND o.node = ? AND (i.flags | w.flags) & ? = 0"
    f" AND i.mode & {0o170000} != {stat.S_IFDIR}"
    + "".join(f" AND i.{column} IS w.{column}" for column in _SEEN)
)
_ONLY = " AND o.parent = ? AND o.name = ?"


class Twin(msgspec.Struct, frozen=True):
    """A file, link or device that lost its name to one that is like it in all that can
    be seen but times and number, and is shown beside it for that."""

    parent: Ino
    origin: bytes
    name: bytes
    ino: Ino
    winner: Ino


def alike(db: sqlite3.Connection, node: NodeId, only: Twin | None = None) -> list[Twin]:
    """Those that this node gave the name to; `only`: of what is shown where that one
    was. Extended attributes are not compared."""
    values = (node, FLAG_CONFLICT)
    if only is None:
        rows = db.execute(_ALIKE, values).fetchall()
    else:
        rows = db.execute(_ALIKE + _ONLY, (*values, only.parent, only.name)).fetchall()
    return [
        Twin(Ino(p), origin, name, Ino(i), Ino(w)) for p, origin, name, i, w in rows
    ]
