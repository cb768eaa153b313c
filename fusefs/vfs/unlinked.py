"""What is written to a file that has no name: nobody can be told of it."""

from __future__ import annotations

import time

from fusefs.vfs.content import View
from fusefs.vfs.draft import Draft
from fusefs.vfs.drafts import Drafts, Moved, Undecided
from fusefs.vfs.files import File, Files, Orphan, permitted

MOST_PATCHES = 64
"""Of an unlinked file, whose draft is there as long as the file: each stat looks at
all of them."""


class Unlinked:
    """The counterpart of publishing."""

    def __init__(self, files: Files, drafts: Drafts) -> None:
        self._files = files
        self._drafts = drafts

    def keep(self, file: File, draft: Draft) -> None:
        """Without a name there is nobody to tell. The draft stays, for its journal
        outlives a kill; but link(2) names what is stored. Raises Missing."""
        draft.since_s = time.monotonic()
        orphan = self._files.orphans.get(file.ino)
        if orphan is None:
            raise Moved
        if orphan.undecided:
            raise Undecided
        idle = not (file.refs or draft.inherited)
        if self._files.is_void(file, orphan):
            self._drafts.end(file, file.view)
            self._files.published(file)
        elif orphan.linkable or (idle and draft.idle):
            view = self._drafts.materialise(file, draft)
            self._keep_row(file, draft, orphan, view)
            if idle or self._files.keep_orphans():  # idle: nobody has it open
                self._drafts.end(file, view)
                self._files.published(file)
        elif idle:  # nearly always void in a moment
            draft.idle = True
        elif len(draft.patches) > MOST_PATCHES:
            view = self._drafts.materialise(file, draft)
            self._keep_row(file, draft, orphan, view)
            file.view = view
            draft.start_over(view)
            if draft.log is not None:
                draft.log.rewrite(draft)

    def _keep_row(self, file: File, draft: Draft, orphan: Orphan, view: View) -> None:
        """What link(2) would name, if anything may be."""
        with self._files.lock:
            if self._files.orphans.get(file.ino) is not orphan:
                raise Moved
            if orphan.undecided:
                raise Undecided
            row = orphan.row
            orphan.row = permitted(row, draft.permissions)._replace(
                size=view.size,
                root=view.root,
                chunk_log2=view.log2,
                mtime_ns=draft.mtime_ns,
                ctime_ns=max(row.ctime_ns, draft.ctime_ns),
            )
