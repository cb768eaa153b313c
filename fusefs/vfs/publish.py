"""From unpublished writes to a version every peer can see.

Order (docs/formats.md, 3.2): chunks (`storing`), manifest nodes, transaction. Chunks
that are whole are stored while the writer goes on, the others at flush, fsync, release,
after a few seconds, or when buffers run out (`spill`).
"""

from __future__ import annotations

import logging
import time
from functools import partial

from fusefs.errors import FsError
from fusefs.model.ids import ChunkId
from fusefs.model.records import decode_content
from fusefs.model.tx import Effects
from fusefs.namespace.transaction import Transaction
from fusefs.namespace.types import FLAG_APPENDS, Inode
from fusefs.relief import Relief
from fusefs.store.store import Store
from fusefs.vfs.appending import Appends
from fusefs.vfs.attributes import version_of
from fusefs.vfs.buffers import Pool
from fusefs.vfs.commits import Commits
from fusefs.vfs.content import View
from fusefs.vfs.draft import Draft
from fusefs.vfs.drafts import Drafts, Moved, Undecided
from fusefs.vfs.files import File, Files
from fusefs.vfs.missing import Cancelled, Fetcher, Missing
from fusefs.vfs.objects import Objects
from fusefs.vfs.recutting import Recutting
from fusefs.vfs.storing import MAX_UNCOMMITTED, Storing
from fusefs.vfs.types import UNCHANGED
from fusefs.vfs.unlinked import Unlinked

log = logging.getLogger(__name__)

OPTIMISTIC, MOST_MOVES = 3, 16
"""Attempts to publish without holding the namespace while chunks are stored; and in
all, when others change the inode meanwhile."""
OTHER_HALF_S, OTHER_HALF_POLL_S = 0.25, 0.00025
"""After a piece of a write(2) the next one comes at once, where the program finds a
processor. Few appends look as if they were cut and are not."""
UNDECIDED_S = 0.0005
"""A transaction takes as long, and ends."""


class _Gone(Exception):
    """A peer removed it, which our caches were not told yet."""


class _Half(Exception):
    """The rest of a write(2) is on its way."""


class Publisher:
    """Thread-safe. Takes `File.lock`, then what committing takes."""

    def __init__(
        self,
        files: Files,
        commits: Commits,
        store: Store,
        objects: Objects,
        fetcher: Fetcher,
        pool: Pool,
        appends: Appends,
        relief: Relief,
    ) -> None:
        self._files = files
        self._commits = commits
        self._store = store
        self._fetcher = fetcher
        self._pool = pool
        self._appends = appends
        self._relief = relief
        options = commits.options
        self.storing = Storing(store, objects, pool, options.body_bytes)
        self._recutting = Recutting(self.storing, objects, options.fine_chunk_log2)
        append_log2 = min(options.chunk_log2, options.append_chunk_log2)
        self.drafts = Drafts(files, self.storing, objects, pool, append_log2)
        self._unlinked = Unlinked(files, self.drafts)

    # -- publishing ------------------------------------------------------------

    def publish(self, file: File, cancelled: Cancelled = None, writer: int = 0) -> None:
        """What was written is stored and committed when this returns. With nothing
        written it costs nothing. `writer`: who asks for it (`writer_of`), and so is not
        in the middle of a write(2).

        Raises: NoSpace; Unreachable, TimedOut, Interrupted when a chunk that was
        written in part cannot be had. The draft is kept then.
        """
        draft = file.draft
        if draft is None:
            return
        publish = partial(self._publish_until_done, file, cancelled, writer)
        if draft.shrinks:
            self._relief.removing(publish)
        else:
            publish()

    def _publish_until_done(
        self, file: File, cancelled: Cancelled, writer: int
    ) -> None:
        fetching = self._fetcher.begin(cancelled)
        moves, half_until_s = 0, 0.0
        while moves < MOST_MOVES:
            if file.draft is None:
                return
            pinned = moves >= OPTIMISTIC
            file.unmerged = not pinned and not self._merge_first(file)
            try:
                with file.lock:
                    if _half_is_due(file, writer, half_until_s):
                        raise _Half
                    if file.draft is not None:
                        self._publish_or_not(file, file.draft, pinned)
                    return
            except Missing as missing:
                fetching.bring(missing)
            except Moved:
                moves += 1
            except _Gone:
                self._commits.namespace.forget(Effects(inodes=[file.ino]))
                self._files.refresh(file.ino)
            except Undecided:
                time.sleep(UNDECIDED_S)
            except _Half:
                half_until_s = half_until_s or time.monotonic() + OTHER_HALF_S
                time.sleep(OTHER_HALF_POLL_S)
        raise FsError(f"inode {file.ino} changes faster than it can be written")

    def publish_or_undo(
        self, file: File, began: Draft | None, cancelled: Cancelled = None
    ) -> None:
        """`publish` for who changed a file without a descriptor, and began this draft
        for it. When it raises the file is as it was, unless somebody else writes to it,
        too: nobody would expect the change to be done later.
        """
        before = began.touched if began is not None else None
        try:
            self.publish(file, cancelled)
        except BaseException:
            with file.lock:
                draft = file.draft
                if draft is not None and draft is began and draft.touched == before:
                    self.drafts.end(file, file.view)
                    self._files.refresh(file.ino)
            raise

    def _merge_first(self, file: File) -> bool:
        """Concurrent appends are merged before they are written over. If their bytes
        cannot be had, which gives False, they wait beside what is appended here; the
        losing ones become files of their own when something else is written."""
        row = self._files.row(file.ino)
        if row is not None and row.flags & FLAG_APPENDS:
            try:
                self._appends.merge(file.ino)
            except FsError as error:
                log.info("appends to inode %d are not merged: %s", file.ino, error)
                return False
        return True

    def _publish_or_not(self, file: File, draft: Draft, pinned: bool) -> None:
        try:
            self._publish(file, draft, pinned)
        except BaseException:
            if draft.log is not None and file.draft is draft:
                draft.log.not_published()
            raise

    def _publish(self, file: File, draft: Draft, pinned: bool) -> None:
        row = self._files.row(file.ino)
        if row is None:  # unlinked by a peer this moment
            self._files.refresh(file.ino)
            row = self._files.need_row(file.ino)
        if file.ino in self._files.orphans:
            self._unlinked.keep(file, draft)
            return
        if pinned:
            row, view = self._commit_pinned(file, draft)
        else:
            waste = self._recutting.waste(draft)
            anew = self._cut_anew(file, draft, row, waste)
            under = self._appended_to(file, draft, row)
            file.behind |= under is not row
            view = anew or self._over(file, draft, under)
            self._commit(file, draft, row, view, under)
            if view.log2 == draft.base.log2:
                self._recutting.wasted(file.ino, waste)
        self.drafts.end(file, view)
        self._files.refresh(file.ino)
        coherence = self._commits.coherence
        coherence.wrote(
            file.ino, version_of(row.size, row.root), version_of(view.size, view.root)
        )
        if file.behind:
            file.behind = False
            coherence.caught_up(file.ino)
        self._files.published(file)

    def _cut_anew(
        self, file: File, draft: Draft, row: Inode, waste: int
    ) -> View | None:
        """Nothing that goes to an end which others may move, too."""
        if draft.appended or not draft.base.shows(row):
            return None
        return self._recutting.cut_if_due(file, draft, waste)

    def _appended_to(self, file: File, draft: Draft, row: Inode) -> Inode:
        """What is appended to as long as the appends of others cannot be had: what this
        node wrote last, so that it leaves no version of its own beside the next."""
        if not (file.unmerged and draft.appended and row.flags & FLAG_APPENDS):
            return row
        namespace = self._commits.namespace
        for sibling in namespace.content_versions(file.ino).live:
            if sibling.node == namespace.node_id != row.node:
                own = decode_content(sibling.value)
                return row._replace(
                    size=own.size,
                    root=own.root,
                    chunk_log2=own.chunk_log2,
                    node=sibling.node,
                    seq=sibling.seq,
                )
        return row

    def _over(self, file: File, draft: Draft, row: Inode) -> View:
        """The draft as a version over what the row shows. Raises Missing."""
        if not draft.base.shows(row):
            self._rebase(file, draft, row)
            file.behind = True
        return self.drafts.materialise(file, draft)

    def _commit_pinned(self, file: File, draft: Draft) -> tuple[Inode, View]:
        """Where peers change the file faster than we can look: look, merge and write
        under the namespace's lock. Costs a little of everybody's time, but ends."""
        commit = self._commits.begin()
        commit.bodies, commit.quiet = draft.bodies, True
        with commit as tx:
            row = tx.inode(file.ino)
            if row is None:
                raise _Gone
            if row.flags & FLAG_APPENDS and self._appends.merge_in(
                tx, row, draft.bodies
            ):
                row = tx.inode(file.ino) or row
            view = self._over(file, draft, row)
            self._note_risk(file, row)
            self._set_content(tx, file, draft, row, view)
        file.uncommitted.clear()
        file.seq = commit.seq
        return row, view

    def _rebase(self, file: File, draft: Draft, row: Inode) -> None:
        """Lie over what a peer published. What came through O_APPEND goes to the end
        of that; otherwise what was written here wins, byte by byte. Raises Missing."""
        view = self._files.view_of(row)
        kept, draft.log = draft.log, None
        try:
            if draft.appended:
                draft.move_to_end(view, partial(self.storing.store_whole, file, draft))
            else:
                draft.rebase(view)
        finally:
            draft.log = kept
        if kept is not None:  # offsets and base are others now
            kept.rewrite(draft)

    def _commit(
        self, file: File, draft: Draft, row: Inode, view: View, under: Inode
    ) -> None:
        """`under`: what it lies over, nearly always what the row shows."""
        commit = self._commits.begin()
        commit.bodies, commit.quiet = draft.bodies, True
        with commit as tx:
            now = tx.inode(file.ino)
            if now is None:
                raise _Gone
            if (now.root, now.size) != (row.root, row.size):
                raise Moved
            if now.flags & FLAG_APPENDS and not file.unmerged:
                raise Moved  # a peer appended this moment: merge first
            if under is not row and all(
                sibling.dot != under.dot for sibling, _ in tx.versions(file.ino)
            ):
                raise Moved
            self._note_risk(file, row)
            self._set_content(tx, file, draft, under, view)
        file.uncommitted.clear()
        file.seq = commit.seq

    def _note_risk(self, file: File, row: Inode) -> None:
        """Its bytes take the place of others. Within the transaction."""
        if row.root and len(file.uncommitted) < MAX_UNCOMMITTED:
            self._commits.risks.add(file.uncommitted)
        elif row.root:
            self._commits.risks.add_everything()

    def _set_content(
        self, tx: Transaction, file: File, draft: Draft, row: Inode, view: View
    ) -> None:
        tx.set_content(
            file.ino,
            size=view.size,
            root=view.root,
            chunk_log2=view.log2,
            mtime_ns=draft.mtime_ns,
            ctime_ns=draft.ctime_ns,
            data_changed=not view.shows(row),
            appended=draft.appended,
            over=row.dot if file.unmerged else None,
        )
        given = draft.permissions
        if draft.atime_ns is not None or given != UNCHANGED:
            tx.set_attrs(
                file.ino,
                mode=given.mode,
                uid=given.uid,
                gid=given.gid,
                atime_ns=draft.atime_ns,
                ctime_ns=draft.ctime_ns,
            )
        if draft.log is not None:
            draft.log.publishing(tx.seq)

    # -- promises --------------------------------------------------------------

    def barrier(self, file: File) -> None:
        """Near peers show the file's last version, or the time is up."""
        seq = file.seq
        if seq > file.waited:
            self._commits.barrier(seq)
            file.waited = max(file.waited, seq)

    def sync(self, file: File, cancelled: Cancelled = None, writer: int = 0) -> None:
        """fsync(2): published, and durable here when it returns."""
        self.publish(file, cancelled, writer)
        with file.lock:
            wanted = set(file.unsynced)
            known, overflows = file.synced, file.overflows
        if not known:
            wanted.update(_local_objects(file.view))
        self._store.sync(wanted)
        self._commits.risks.synced(wanted)
        self._commits.sync()
        with file.lock:
            file.unsynced -= wanted
            file.synced = file.overflows == overflows

    # -- running out of buffers ------------------------------------------------

    def spill(self, wanted_bytes: int, cancelled: Cancelled = None) -> None:
        """Store chunks of the oldest drafts until the buffers in use are down to
        `wanted_bytes`. One that needs the network waits for it only if nothing else
        helps. No lock may be held."""
        waiting: list[File] = []
        for file in list(self._files.dirty.values()):
            if self._pool.used_bytes <= wanted_bytes:
                return
            with file.lock:
                draft = file.draft
                if draft and not self.storing.spill(file, draft, wanted_bytes):
                    waiting.append(file)
        for file in waiting:
            if self._pool.used_bytes <= 2 * wanted_bytes:
                return
            self.publish(file, cancelled)


def _half_is_due(file: File, writer: int, until_s: float) -> bool:
    """The last append may be a piece of a write(2) that goes on. Published between two,
    a peer's append would come between."""
    half = file.half_written
    if half is None or half[0] == writer or file.draft is None:
        return False
    now_s = time.monotonic()
    if until_s and now_s > until_s:  # one that goes on and on
        return False
    return file.draft.appends and now_s - half[1] < OTHER_HALF_S


def _local_objects(view: View) -> set[ChunkId]:
    """What the version consists of, as far as this disk knows: below a node that is
    not here, nothing was written here."""
    found: set[ChunkId] = set()
    try:
        found.update(view.objects())
    except Missing:
        pass
    return found
