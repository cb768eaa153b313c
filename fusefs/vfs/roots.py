"""What only files in use name: versions without a name, and unpublished writes.

Garbage collection finds what the registers name by itself. The rest it is told
(`live_roots`), and told to leave alone meanwhile (`leased`), from its own thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from fusefs.model.ids import HOLE, ChunkId
from fusefs.vfs.content import View
from fusefs.vfs.files import File, Files
from fusefs.vfs.missing import Missing
from fusefs.vfs.shares import Root


def live_roots(files: Files) -> Iterator[Root]:
    """Versions of what has no name, open or not, those that readers of open files are
    shown, and chunks of drafts (each as a file of one chunk)."""
    for row in files.without_name():
        if row.root:
            yield row.root, row.size, row.chunk_log2
    for file in files.opened():
        draft = file.draft
        if draft is not None:  # before the version that takes them over
            for cid in draft.objects():
                yield cid, 1, draft.base.log2
        for view in _shown(file):
            if view.root:
                yield view.root, view.size, view.log2


def leased(files: Files) -> set[ChunkId]:
    """The objects of these. Not all that open files show: of a large one that would be
    a row of small.db for each MiB, every few minutes."""
    wanted: set[ChunkId] = set()
    for file in files.opened():
        if file.ino in files.orphans:
            for view in _shown(file):
                wanted.update(_objects(view))
        draft = file.draft
        if draft is not None:
            wanted.update(draft.objects())
    wanted.discard(HOLE)
    return wanted


def _shown(file: File) -> list[View]:
    """The version, and what the draft lies over: another one if that was begun under
    an earlier worker."""
    draft = file.draft
    if draft is None or draft.base is file.view:
        return [file.view]
    return [file.view, draft.base]


def _objects(view: View) -> set[ChunkId]:
    try:
        return set(view.objects())
    except Missing:
        return set()
