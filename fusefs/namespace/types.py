"""The values of the derived tree as the namespace hands them out."""

from __future__ import annotations

from typing import NamedTuple

from fusefs.model.ids import Dot, Ino, NodeId, Seq

FLAG_DERIVED = 1
"""An entry or inode shown by a merge rule (conflict version, revived name,
lost+found), not by a register of its own; a change of it materialises it first."""
FLAG_CONFLICT = 2
"""An inode with concurrent versions of its data; the losers are shown beside it."""
FLAG_APPENDS = 4
"""With FLAG_CONFLICT: every version only appended, so they wait to be merged."""
FLAG_LINKABLE = 8
"""O_TMPFILE without O_EXCL: link(2) may give it a name. Never in the table."""


class Inode(NamedTuple):
    """One row of the table `inode`. For directories `parent` is where it is;
    `atime_ns` 0 means never set: show mtime."""

    ino: Ino
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    btime_ns: int
    root: bytes
    chunk_log2: int
    node: int
    seq: int
    target: bytes
    parent: int
    flags: int

    @property
    def dot(self) -> Dot:
        """The version of the data that it shows."""
        return NodeId(self.node), Seq(self.seq)


class Entry(NamedTuple):
    """One row of the table `entry`."""

    parent: Ino
    name: bytes
    ino: Ino
    kind: int
    flags: int
