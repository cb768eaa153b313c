"""Keeping every cache true: rows, attributes, open files, and the kernel's.

Changes of peers come in twice: `forget`, in the link's reading thread, for our own
caches, then `tell`, in another one, for the kernel: that forgets exactly what changed,
and only when this returns is the change acknowledged to its origin. Nothing is locked
then. Telling may wait for a request that holds a kernel lock, and that one (at the
fence) for what the reading thread hears next: hence two threads.

A change made here is known to the kernel that asked for it. What it changed
besides (a conflict version that vanished, pages that a rebase moved) is told by a
thread of its own, since the request that caused it may hold kernel locks.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from fusefs.errors import Corrupt
from fusefs.model.ids import Ino
from fusefs.model.records import S_DIR
from fusefs.model.tx import ContentChange, Effects, EntryChange
from fusefs.namespace.cache import RowCache
from fusefs.namespace.namespace import Namespace
from fusefs.vfs.attributes import version_of
from fusefs.vfs.content import View, differing
from fusefs.vfs.files import File, Files
from fusefs.vfs.missing import Missing
from fusefs.vfs.objects import Objects
from fusefs.vfs.snapshots import Snapshots
from fusefs.vfs.types import Attr, Invalidator

log = logging.getLogger(__name__)

MAX_RANGES = 64
"""More ranges than this of one file are told as one: each costs ~50 us."""
_KNOWN_GONE = 4096
"""Of these those are kept that the kernel still knows."""
_KNOWN_PAGES = 65_536
"""Inodes whose page-cache version is remembered (~0.1 KiB each)."""


class NoInvalidator:
    """A binding that cannot tell the kernel, or none at all."""

    def knows(self, ino: Ino) -> bool:
        return False

    def entry(self, parent: Ino, name: bytes) -> None:
        pass

    def deleted(self, parent: Ino, child: Ino, name: bytes) -> None:
        pass

    def returned(self, directory: Ino) -> None:
        pass

    def attributes(self, ino: Ino) -> None:
        pass

    def data(self, ino: Ino, offset: int, length: int) -> None:
        pass

    def everything(self) -> None:
        pass

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()


class Coherence:
    """See the module. Thread-safe."""

    def __init__(
        self,
        namespace: Namespace,
        files: Files,
        objects: Objects,
        attrs: RowCache[Ino, Attr],
        snapshots: Snapshots,
    ) -> None:
        self._namespace = namespace
        self._files = files
        self._objects = objects
        self._attrs = attrs
        self._snapshots = snapshots
        self._pages: dict[Ino, int] = {}
        self._gone: set[Ino] = set()
        """Inodes the kernel knows and has seen the last name of go."""
        self._gone_lock = threading.Lock()  # a leaf
        self.invalidator: Invalidator = NoInvalidator()
        self._later: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()  # starting the thread once
        self.invalidations = 0

    # -- changes of peers ------------------------------------------------------

    def forget_remote(self, effects: Effects) -> None:
        """Our own caches: rows, attributes and what open files show."""
        self._namespace.forget(effects)
        self.forget(effects)

    def tell(self, effects: Effects) -> None:
        """The kernel's, of changes that were forgotten here."""
        with self.invalidator.together():
            self._tell(effects)

    def _tell(self, effects: Effects) -> None:
        self._tell_contents(effects.contents)
        listings = {e.parent for e in effects.entries}
        told = {c.ino for c in effects.contents}
        for ino in dict.fromkeys(effects.inodes):
            if ino not in told and ino not in listings:
                self.invalidator.attributes(ino)
                self.invalidations += 1
        for parent in listings:  # a cached listing is the directory's pages
            self.invalidator.data(parent, 0, 0)
            self.invalidations += 1
        self._tell_entries(effects.entries)

    def forget(self, effects: Effects) -> None:
        """Our own caches only: attributes and what open files show."""
        inodes = set(effects.inodes)
        inodes.update(c.ino for c in effects.contents)
        self._attrs.forget(inodes)
        if effects.entries:
            self._snapshots.changed({e.parent for e in effects.entries})
        for ino in inodes:
            self.refresh(ino)

    def refresh(self, ino: Ino) -> None:
        """What open files show of it. Of one that was without a name here the kernel
        has something else, and no effect says so."""
        if self._files.refresh(ino):
            self._pages.pop(ino, None)
            self.soon(lambda: self.invalidator.data(ino, 0, 0))

    def forget_everything(self) -> None:
        """Changes were missed: everything cached here may be wrong."""
        self._namespace.drop_caches()
        self._attrs.clear()
        self._snapshots.changed()
        for file in self._files.opened():
            self._files.refresh(file.ino)
            _told_at_publish(file)
        self._pages.clear()

    def tell_everything(self) -> None:
        """The same in the kernel."""
        self.invalidator.everything()

    def _tell_entries(self, entries: Sequence[EntryChange]) -> None:
        moved = {e.old for e in entries}
        for e in entries:
            if e.old == e.new:
                continue
            if e.new and e.new not in moved:
                self._tell_return(Ino(e.new))
            self.invalidations += 1
            # One that has another name now, or has more, is not deleted: the kernel
            # would take a directory in use for dead, and a file for one without links.
            if e.new == 0 and self._namespace.inode(Ino(e.old)) is None:
                self.gone(Ino(e.old))
                self.invalidator.deleted(e.parent, Ino(e.old), e.name)
            else:
                self.invalidator.entry(e.parent, e.name)

    def gone(self, ino: Ino) -> None:
        """Its last name went, and the kernel knows: it takes a directory for dead."""
        if not self.invalidator.knows(ino):
            return
        with self._gone_lock:
            if len(self._gone) >= _KNOWN_GONE:
                self._gone = {i for i in self._gone if self.invalidator.knows(i)}
            self._gone.add(ino)

    def _tell_return(self, ino: Ino) -> None:
        """Only of what the kernel takes for dead. Another one that it knows already was
        looked up between the change and this moment."""
        if ino not in self._gone:
            return
        with self._gone_lock:
            self._gone.discard(ino)
        if self.invalidator.knows(ino):
            row = self._namespace.inode(ino)
            if row is not None and row.mode >> 12 == S_DIR:
                self.invalidator.returned(ino)

    def _tell_contents(self, contents: Iterable[ContentChange]) -> None:
        for change in contents:
            file = self._files.get(change.ino)
            if file is not None and _told_at_publish(file):
                self.invalidator.attributes(change.ino)  # mode and owner show
                continue
            for offset, length in self._ranges(change):
                self.invalidator.data(change.ino, offset, length)
                self.invalidations += 1
            if change.ino in self._pages:
                version = version_of(change.new_size, change.new_root)
                self._pages[change.ino] = version

    def _ranges(self, c: ContentChange) -> list[tuple[int, int]]:
        if c.recut:
            return [(0, 0)]
        load, log2 = self._objects.node, c.chunk_log2
        try:
            ranges = differing(
                View(c.old_size, c.old_root, log2, load),
                View(c.new_size, c.new_root, log2, load),
            )
        except (Missing, Corrupt):
            return [(0, 0)]
        if len(ranges) > MAX_RANGES:
            return [(ranges[0][0], 0)]
        return ranges or [(0, 0)]

    # -- changes made here -----------------------------------------------------

    def committed(
        self, effects: Effects, own: Collection[tuple[Ino, bytes]] = ()
    ) -> None:
        """After a local commit: `own` are the names the caller's kernel knows of, with
        what they name and their directories; without a name it is one inode."""
        self.forget(effects)
        most = max(1, 2 * len(own))
        if len(effects.inodes) > most and len(inodes := set(effects.inodes)) > most:
            self.soon(lambda: self._tell_attributes(inodes))  # conflict copies, then
        if len(effects.entries) <= len(own):
            return
        others = [e for e in effects.entries if (e.parent, e.name) not in own]
        if others:
            self.soon(lambda: self._tell_entries(others))

    def _tell_attributes(self, inodes: Iterable[Ino]) -> None:
        for ino in inodes:
            self.invalidator.attributes(ino)

    def caught_up(self, ino: Ino) -> None:
        """A draft was published over another version: no page may be kept."""
        self._pages.pop(ino, None)
        self.soon(lambda: self.invalidator.data(ino, 0, 0))

    def pages_valid(self, attr: Attr) -> bool:
        """At open: whether the kernel's pages of the inode are of this version."""
        pages = self._pages
        if pages.get(attr.ino) == attr.version:
            return True
        if len(pages) >= _KNOWN_PAGES:
            pages.clear()
        pages[attr.ino] = attr.version
        return False

    def wrote(self, ino: Ino, before: int, after: int) -> None:
        """Our own write moved the version; the kernel's pages have it already."""
        if self._pages.get(ino) == before:
            self._pages[ino] = after

    def soon(self, work: Callable[[], None]) -> None:
        """Run in the invalidation thread: the kernel may hold locks for a request
        that is being answered right now."""
        if self._thread is None:
            with self._start_lock:
                if self._thread is None:
                    self._start()
        self._later.put(work)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="vfs-invalidate", daemon=True)
        try:
            thread.start()
        except RuntimeError as problem:  # the next one tries again
            log.warning("the kernel is told later: %s", problem)
        else:
            self._thread = thread

    def _run(self) -> None:
        while (work := self._later.get()) is not None:
            try:
                work()
            except Exception:
                log.exception("an invalidation failed")

    def close(self) -> None:
        if self._thread is not None:
            self._later.put(None)
            self._thread.join(5.0)


def _told_at_publish(file: File) -> bool:
    """Whether unpublished writes hide the change: then whoever publishes them tells
    the kernel. The lock makes it either them or us."""
    with file.lock:
        if file.draft is None:
            return False
        file.behind = True
        return True
