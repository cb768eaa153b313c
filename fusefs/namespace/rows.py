"""Rows of the table `inode` from the values of its registers."""

from __future__ import annotations

import stat

from fusefs.model.conflict import merge_attrs, split_versions
from fusefs.model.ids import Ino
from fusefs.model.records import Attrs, Content, decode_attrs, decode_content
from fusefs.model.register import Register, Sibling
from fusefs.model.tx import ContentChange
from fusefs.namespace.types import Inode


def content_change(before: Inode | None, after: Inode | None) -> ContentChange | None:
    if before is None or after is None or stat.S_ISDIR(after.mode):
        return None
    if (before.size, before.root) == (after.size, after.root):
        return None
    recut = bool(before.root) and before.chunk_log2 != after.chunk_log2
    return ContentChange(
        after.ino,
        before.size,
        before.root,
        after.size,
        after.root,
        after.chunk_log2,
        recut=recut,
        old_chunk_log2=before.chunk_log2 if recut else 0,
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


def unnamed_row(ino: Ino, attrs: Register, content: Register) -> Inode | None:
    """The row of an inode without a name: what its registers alone say."""
    if not attrs.live:
        return None
    merged = merge_attrs([(s, decode_attrs(s.value)) for s in attrs.live])
    versions = [(s, decode_content(s.value)) for s in content.live]
    sibling, shown = split_versions(versions)[0] if versions else (None, None)
    return inode_row(ino, merged, sibling, shown, 0, 0, 0)
