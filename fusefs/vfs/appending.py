"""Merging concurrent appends: base, then every appended piece in stamp order.

Every node that has the bytes may do it; all get the same content, which is no
conflict with itself. The plan is pure (model/appends.py); here the bytes are read,
stored and published. No lock is held while chunks are fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fusefs.errors import FsError
from fusefs.model import manifest
from fusefs.model.appends import Merge, plan
from fusefs.model.ids import HOLE, ChunkId, Dot, Ino
from fusefs.model.manifest import chunk_count
from fusefs.model.records import Content, decode_content
from fusefs.model.tx import Body
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.transaction import Transaction
from fusefs.namespace.types import FLAG_APPENDS, Inode
from fusefs.store.store import Store
from fusefs.vfs.commits import Commits
from fusefs.vfs.content import View
from fusefs.vfs.later import Later
from fusefs.vfs.missing import Fetcher, Fetching, Missing
from fusefs.vfs.objects import Objects

log = logging.getLogger(__name__)

MAX_MERGE_BYTES = 64 << 20
"""More appended bytes than this are not read into memory to be merged; then the
versions stay as they are until one is overwritten (and become files of their own)."""


MOST_MOVES = 16
"""Merges of one file in a row, each overtaken by another append."""

Part = tuple[View, int, int]
"""Bytes [start, end) of a version."""


class Appends:
    """Thread-safe."""

    def __init__(
        self,
        namespace: Namespace,
        commits: Commits,
        store: Store,
        objects: Objects,
        fetcher: Fetcher,
    ) -> None:
        self._namespace = namespace
        self._commits = commits
        self._store = store
        self._objects = objects
        self._fetcher = fetcher
        self._later = Later("vfs-appends")
        self._waiting: set[Ino] = set()
        """Those whose bytes could not be had; until `retry`."""

    def merge_soon(self, inos: Sequence[Ino]) -> None:
        """Merge in a thread of its own: bytes may have to come from peers."""
        for ino in inos:
            self._later.submit(self._merge_or_log, ino)

    def retry(self) -> None:
        """Now and then: perhaps the bytes of those that wait can be had by now."""
        waiting, self._waiting = self._waiting, set()
        if waiting:
            self.merge_soon(tuple(waiting))

    def _merge_or_log(self, ino: Ino) -> None:
        try:
            self.merge(ino)
        except FsError as error:
            log.info("appends to inode %d wait to be merged: %s", ino, error)
            self._waiting.add(ino)
        except Exception:
            log.exception("merging the appends to inode %d failed", ino)

    def close(self) -> None:
        self._later.close()

    def merge(self, ino: Ino) -> bool:
        """Merge what can be merged; True when the file has one version now.

        Raises: NoSpace; Unreachable, TimedOut when bytes cannot be had.
        """
        fetching = self._fetcher.begin()
        for _ in range(MOST_MOVES):
            row = self._namespace.inode(ino)
            if row is None or not row.flags & FLAG_APPENDS:
                return row is not None
            versions = self._versions(ino)
            merge = plan([c for _, c in versions])
            if merge is None or merge.size - merge.base_size > MAX_MERGE_BYTES:
                return False
            root, bodies = self._fetch_and_store(merge, versions, fetching)
            self._commit(ino, merge, root, bodies, [dot for dot, _ in versions])
        raise FsError(f"inode {ino} is appended to faster than it can be merged")

    def _fetch_and_store(
        self, merge: Merge, versions: list[tuple[Dot, Content]], fetching: Fetching
    ) -> tuple[bytes, list[Body]]:
        while True:
            try:
                return self._store_merged(merge, versions)
            except Missing as missing:
                fetching.bring(missing)

    def merge_in(self, tx: Transaction, row: Inode, bodies: list[Body]) -> bool:
        """Merge inside a transaction, from what is on this disk. Raises Missing."""
        ranked = sorted(tx.versions(row.ino), key=lambda v: v[0].rank, reverse=True)
        versions = [(s.dot, c) for s, c in ranked]
        merge = plan([c for _, c in versions])
        if merge is None or merge.size - merge.base_size > MAX_MERGE_BYTES:
            return False
        root, stored = self._store_merged(merge, versions)
        bodies += stored
        return tx.merge_appends(row.ino, merge, root, [dot for dot, _ in versions])

    def _versions(self, ino: Ino) -> list[tuple[Dot, Content]]:
        register = self._namespace.content_versions(ino)
        ranked = sorted(register.live, key=lambda s: s.rank, reverse=True)
        return [(s.dot, decode_content(s.value)) for s in ranked]

    def _commit(
        self, ino: Ino, merge: Merge, root: bytes, bodies: list[Body], dots: list[Dot]
    ) -> None:
        commit = self._commits.begin()
        commit.bodies, commit.quiet = bodies, True
        with commit as tx:
            tx.merge_appends(ino, merge, root, dots)
        if commit.seq:
            self._commits.coherence.caught_up(ino)

    def _store_merged(
        self, merge: Merge, versions: list[tuple[Dot, Content]]
    ) -> tuple[bytes, list[Body]]:
        """Store the merged tail; the root of the whole. Raises Missing."""
        contents = [c for _, c in versions]
        first = contents[0]
        log2, load = first.chunk_log2, self._objects.node
        views = [View(c.size, c.root, c.chunk_log2, load) for c in contents]
        start = merge.base_size >> log2 << log2
        parts = [(views[0], start, merge.base_size)]
        parts += [(views[s.version], s.start, s.end) for s in merge.segments]
        self._need(parts)
        tail = bytearray()
        for part in parts:
            tail += self._read(*part)
        bodies: list[Body] = []

        def save(data: bytes | memoryview) -> ChunkId:
            cid = self._store.put(data)
            self._commits.risks.add((cid,))
            if len(data) <= self._commits.options.body_bytes:
                bodies.append(Body(cid, bytes(data)))
            return cid

        index, count = start >> log2, chunk_count(merge.size, log2)
        view = memoryview(tail)
        changes = {
            index + i: save(view[i << log2 : (i + 1) << log2])
            for i in range(count - index)
        }
        root = manifest.update(
            first.root, views[0].count, count, changes, load, lambda node, _: save(node)
        )
        return root, bodies

    def _need(self, parts: Sequence[Part]) -> None:
        """Raises Missing, once for all chunks of the parts that are not here."""
        wanted: list[ChunkId] = []
        for view, start, end in parts:
            wanted += view.chunks(start >> view.log2, chunk_count(end, view.log2))
        if absent := self._store.missing(wanted):
            raise Missing(absent)

    def _read(self, view: View, start: int, end: int) -> bytes:
        """Bytes [start, end) of a version. Raises Missing."""
        out = bytearray(end - start)
        into = memoryview(out)
        at = start
        while at < end:
            index, low = at >> view.log2, at & ((1 << view.log2) - 1)
            size = min(end - at, (1 << view.log2) - low)
            cid = view.chunk(index)
            if cid != HOLE:
                self._objects.read(cid, low, into[at - start : at - start + size])
            at += size
        return bytes(out)
