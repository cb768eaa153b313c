"""Drafts as a file gets them and is rid of them; how a version is made of one."""

from __future__ import annotations

import time
from functools import partial

from fusefs.model import manifest
from fusefs.model.manifest import chunk_count
from fusefs.vfs.buffers import Pool
from fusefs.vfs.content import View
from fusefs.vfs.draft import Draft
from fusefs.vfs.files import File, Files
from fusefs.vfs.objects import Objects
from fusefs.vfs.storing import Storing


class Moved(Exception):
    """Somebody else changed the inode, or its last name, between our look and our
    transaction."""


class Undecided(Exception):
    """A transaction is under way that takes its name or gives it one."""


class Drafts:
    """Of all files. Every method is called with `file.lock` held."""

    def __init__(
        self,
        files: Files,
        storing: Storing,
        objects: Objects,
        pool: Pool,
        append_log2: int,
    ) -> None:
        """`append_log2`: size of the chunks of a file that begins with an append."""
        self._files = files
        self._storing = storing
        self._objects = objects
        self._pool = pool
        self._append_log2 = append_log2

    def begin(self, file: File, now_ns: int, *, appends: bool = False) -> Draft:
        """A draft over what the file shows."""
        view = file.view
        if appends and not view.size:
            view = View(0, b"", self._append_log2, self._objects.node)
        draft = Draft(view, now_ns, time.monotonic(), self._objects, self._pool)
        file.draft = draft
        draft.log = self._files.journal.begin(file.ino, draft)
        self._files.dirty[file.ino] = file
        return draft

    def end(self, file: File, view: View) -> None:
        """The draft is published as `view`."""
        assert file.draft is not None
        file.view = view
        kept = file.draft.log
        file.draft.discard()
        file.draft = None
        self._files.dirty.pop(file.ino, None)
        self._files.journal.end(file.ino, kept)

    def materialise(self, file: File, draft: Draft) -> View:
        """Store everything the draft needs; the version it makes. Raises Missing."""
        self._storing.settle(file, draft)

        save = partial(self._storing.put_node, file, draft)
        base, load = draft.base, self._objects.node
        root, count = base.root, base.count
        if draft.truncated:
            kept = chunk_count(draft.cut, base.log2)
            root = manifest.update(root, count, kept, {}, load, save)
            count = kept
        changes = {i: p.source for i, p in draft.patches.items() if p.source}
        new_count = chunk_count(draft.size, base.log2)
        root = manifest.update(root, count, new_count, changes, load, save)
        return View(draft.size, root, base.log2, load)
