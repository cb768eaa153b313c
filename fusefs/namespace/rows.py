"""Rows of the table `inode` from the values of its registers."""

from __future__ import annotations

import stat

from fusefs.model.ids import Ino
from fusefs.model.records import Attrs, Content
from fusefs.model.register import Sibling
from fusefs.model.tx import ContentChange
from fusefs.namespace.types import Inode


def content_change(before: Inode | None, after: Inode | None) -> ContentChange | None:
    if before is None or after is None or stat.S_ISDIR(after.mode):
        return None
    if (before.size, before.root) == (after.size, after.root):
        return None
    return ContentChange(
        after.ino, before.size, before.root, after.size, after.root, after.chunk_log2
    )


def inode_row(
    ino: Ino,
    attrs: Attrs,
    sibling: Sibling | None,
    content: Content | None,
    nlink: int,
    parent: int,
    flags: int,
) -> Inode:
    if content is None:
        content = Content(attrs.btime_ns, attrs.ctime_ns)
    size = len(attrs.target) if stat.S_ISLNK(attrs.mode) else content.size
    return Inode(
        ino,
        attrs.mode,
        attrs.uid,
        attrs.gid,
        attrs.rdev,
        nlink,
        size,
        content.mtime_ns,
        max(attrs.ctime_ns, content.ctime_ns),
        attrs.atime_ns,
        attrs.btime_ns,
        content.root,
        content.chunk_log2,
        sibling.node if sibling else 0,
        sibling.seq if sibling else 0,
        attrs.target,
        parent,
        flags,
    )
