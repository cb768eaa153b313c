"""What the programs of a run were promised, kept apart from the system under test.

Every token that a `close` acknowledged must be readable at the end, unless a program
that saw it removed or replaced it. No file may be there that somebody deleted who
knew everything that was ever done to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusefs.errors import FsError
from fusefs.model.ids import ChunkId, Dot, Ino, NodeId
from fusefs.model.records import (
    ATTRS,
    CONTENT,
    DIRENT,
    UNLINKED,
    XATTR,
    decode_content,
    decode_dirent,
    decode_unlinked,
    key_ino,
)
from fusefs.model.tx import Tx
from fusefs.model.vector import Vector, covers
from fusefs.namespace.types import FLAG_APPENDS
from fusefs.vfs.types import Attr
from tests.sim.cluster import SimNode

TOKEN_BYTES = 8
Tokens = frozenset[bytes]


class _Delete:
    """A program removed the last name of an inode."""

    def __init__(self, dot: Dot, ino: Ino, knew: Vector) -> None:
        self.dot = dot
        self.ino = ino
        self.knew = knew


class _Unsynced:
    """What a node did since it last synced its disk."""

    def __init__(self) -> None:
        self.tokens: set[bytes] = set()
        self.roots: set[bytes] = set()
        self.deletes: list[_Delete] = []
        self.dots: set[Dot] = set()


class Promises:
    """One run's ledger."""

    def __init__(self) -> None:
        self.contents: dict[bytes, bytes] = {b"": b""}
        """Root to bytes: every file here is one chunk."""
        self._count = 0
        self._acknowledged: dict[bytes, NodeId] = {}
        self._replaced: set[bytes] = set()
        self._unsynced: dict[NodeId, _Unsynced] = {}
        self._forgot: set[Dot] = set()
        self._excused: set[bytes] = set()
        self._excused_roots: set[bytes] = set()
        self._touched: dict[Ino, list[Dot]] = {}
        self._deletes: list[_Delete] = []

    def token(self) -> bytes:
        """Bytes nobody has written before."""
        self._count += 1
        return b"%07d " % self._count

    def tokens(self, root: bytes) -> Tokens:
        data = self.contents.get(root, b"")
        return frozenset(
            data[at : at + TOKEN_BYTES] for at in range(0, len(data), TOKEN_BYTES)
        )

    def shown(self, node: SimNode, attr: Attr | None) -> Tokens:
        """What a file shows on a node now."""
        row = node.namespace.inode(attr.ino) if attr is not None else None
        return self.tokens(row.root) if row is not None else frozenset()

    def under(self, node: SimNode, attr: Attr | None) -> Tokens:
        """What is written over on a node now: appends of peers that are here but not
        merged yet are merged before."""
        row = node.namespace.inode(attr.ino) if attr is not None else None
        if row is None or not row.flags & FLAG_APPENDS:
            return self.shown(node, attr)
        live = node.namespace.content_versions(row.ino).live
        return frozenset().union(
            *(self.tokens(decode_content(sibling.value).root) for sibling in live)
        )

    # -- what happens ------------------------------------------------------------------

    def wrote(self, node: SimNode, before: Tokens, after: Tokens) -> None:
        """A program replaced what it saw; the system call has returned."""
        self._replaced |= before - after
        for token in after - before:
            self._acknowledged.setdefault(token, node.id)
            self._of(node.id).tokens.add(token)

    def published(self, node: SimNode, tx: Tx) -> None:
        """A transaction was committed on a node, before anybody else knows it."""
        knew = node.namespace.vector()
        knew[tx.node] = tx.prev
        self._of(node.id).dots.add(tx.dot)
        for write in tx.writes:
            kind = write.key[:1]
            if kind in (ATTRS, CONTENT, XATTR):
                self._touch(key_ino(write.key), tx.dot)
            if kind == DIRENT and write.value:
                self._touch(decode_dirent(write.value).ino, tx.dot)
            if kind == UNLINKED and decode_unlinked(write.value).seen:
                delete = _Delete(tx.dot, key_ino(write.key), knew)
                self._deletes.append(delete)
                self._of(node.id).deletes.append(delete)
            if kind == CONTENT and write.value:
                self._learn(node, decode_content(write.value).root)

    def _learn(self, node: SimNode, root: bytes) -> None:
        if root and root not in self.contents:
            try:
                self.contents[root] = node.store.get(ChunkId(root))
            except FsError:
                return
        self._of(node.id).roots.add(root)

    def _touch(self, ino: Ino, dot: Dot) -> None:
        self._touched.setdefault(ino, []).append(dot)

    def _of(self, node: NodeId) -> _Unsynced:
        return self._unsynced.setdefault(node, _Unsynced())

    def synced(self, node: SimNode) -> None:
        self._unsynced.pop(node.id, None)

    def power_cut(self, node: SimNode) -> None:
        """What was not synced may be gone, deletes included. The node does not know of
        it any more, and perhaps others do."""
        lost = self._unsynced.pop(node.id, _Unsynced())
        self._excused |= lost.tokens
        self._excused_roots |= lost.roots
        self._forgot |= lost.dots
        self._deletes = [d for d in self._deletes if d not in lost.deletes]

    # -- at the end --------------------------------------------------------------------

    def may_be_lost(self, root: bytes) -> bool:
        return root in self._excused_roots

    def broken(self, files: Iterable[tuple[Ino, bytes]]) -> list[str]:
        """Given (inode, root) of every file: what was promised and is not so."""
        visible: set[bytes] = set()
        present: set[Ino] = set()
        for ino, root in files:
            visible |= self.tokens(root)
            present.add(ino)
        lost = set(self._acknowledged) - visible - self._replaced - self._excused
        out = [
            f"{t.decode()} written by {self._acknowledged[t]:x} is lost"
            for t in sorted(lost)
        ]
        for delete in self._deletes:
            known = all(
                dot == delete.dot
                or (covers(delete.knew, dot) and dot not in self._forgot)
                for dot in self._touched.get(delete.ino, ())
            )
            if known and delete.ino in present:
                out.append(f"inode {delete.ino}, deleted by {delete.dot}, is back")
        return out
