"""Attr of a row: what stat shows, and the version that decides page-cache reuse."""

from __future__ import annotations

from fusefs.errors import Corrupt
from fusefs.model.ids import HOLE, MASK63
from fusefs.model.records import S_DIR, S_REG
from fusefs.namespace.types import Inode
from fusefs.vfs.content import View
from fusefs.vfs.draft import Draft
from fusefs.vfs.files import permitted
from fusefs.vfs.missing import Missing
from fusefs.vfs.objects import Objects
from fusefs.vfs.types import UNCHANGED, Attr

DIRECTORY_BYTES = 4096
"""st_size of a directory: what ext4 shows for a small one."""
_CACHED_COUNTS = 65_536
"""Sizes without holes kept by manifest root (~0.15 KiB each)."""
_SPREAD = 0x9E3779B97F4A7C15


def version_of(size: int, root: bytes) -> int:
    """Equal exactly when the data is (but for chance): from the content's name."""
    return (int.from_bytes(root[:8], "big") ^ size * _SPREAD) & MASK63


class Attributes:
    """Builds Attr. Thread-safe; never waits for the network."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._present: dict[tuple[bytes, int], int] = {}

    def of(self, row: Inode) -> Attr:
        """What the published inode shows."""
        kind = row.mode >> 12
        size, blocks, version = row.size, 0, 0
        if kind == S_REG:
            blocks = self._blocks(row)
            version = version_of(size, row.root)
        elif kind == S_DIR:
            size, blocks, version = DIRECTORY_BYTES, 8, row.mtime_ns
        return Attr(
            row.ino,
            row.mode,
            row.nlink,
            row.uid,
            row.gid,
            row.rdev,
            size,
            blocks,
            row.atime_ns or row.mtime_ns,
            row.mtime_ns,
            row.ctime_ns,
            row.btime_ns,
            version,
        )

    def _blocks(self, row: Inode) -> int:
        size, root = row.size, row.root
        if not root:
            return 0
        if size <= 1 << row.chunk_log2:  # one chunk: there or a hole
            return (size + 511) >> 9 if any(root) else 0
        return (self.present_bytes(row) + 511) >> 9

    def present_bytes(self, row: Inode) -> int:
        """Bytes not in holes. A manifest node that is not local: as if none were."""
        key = (row.root, row.size)
        known = self._present.get(key)
        if known is None:
            try:
                known = View.of(row, self._objects.node).present_bytes()
            except (Missing, Corrupt):
                return row.size
            if len(self._present) >= _CACHED_COUNTS:
                self._present.clear()
            self._present[key] = known
        return known

    def with_draft(self, attr: Attr, draft: Draft, row: Inode) -> Attr:
        """What shows while writes are unpublished. `row` is the published one, but for
        what was changed without a name."""
        atime = draft.atime_ns
        if atime is None:  # one that was never set shows as mtime
            unset = not row.atime_ns and attr.atime_ns == attr.mtime_ns
            atime = draft.mtime_ns if unset else attr.atime_ns
        if draft.permissions is not UNCHANGED:
            attr = permitted(attr, draft.permissions)
        return attr._replace(
            size=draft.size,
            blocks=self._draft_blocks(attr, draft),
            atime_ns=atime,
            mtime_ns=draft.mtime_ns,
            ctime_ns=max(attr.ctime_ns, draft.ctime_ns),
        )

    def _draft_blocks(self, attr: Attr, draft: Draft) -> int:
        """As it will be once published, as far as this disk knows."""
        added = 0
        for index in list(draft.patches):
            try:
                if draft.fills_hole(index):
                    added += max(0, draft.length(index))
            except Missing:
                pass
        added += _lengthened(draft)
        kept = attr.blocks
        if draft.truncated:
            kept = kept * draft.cut // draft.base.size
        return min(kept + ((added + 511) >> 9), (draft.size + 511) >> 9)


def _lengthened(draft: Draft) -> int:
    """Bytes by which the base's last chunk is longer once the file has grown."""
    end, log2 = draft.cut, draft.base.log2
    if not 0 < end < draft.size:
        return 0
    index = (end - 1) >> log2
    try:
        there = draft.base.chunk(index) != HOLE
    except Missing:
        return 0
    return min((index + 1) << log2, draft.size) - end if there else 0
