"""Opening, creating and closing files."""

from __future__ import annotations

import logging
import os
import stat
import time

from fusefs.errors import (
    Exists,
    FsError,
    IsADirectory,
    NoSuchDevice,
    NotFound,
    ReadOnly,
    Stale,
)
from fusefs.model.ids import Ino, Seq
from fusefs.namespace.namespace import Namespace
from fusefs.vfs.coherence import Coherence
from fusefs.vfs.commits import Commits
from fusefs.vfs.files import File, Files
from fusefs.vfs.inodes import Inodes
from fusefs.vfs.locks import Locks
from fusefs.vfs.tree import Tree
from fusefs.vfs.types import Attr, Caller, Opened
from fusefs.vfs.writing import Writer

log = logging.getLogger(__name__)

MOST_TRIES, TRY_AGAIN_S = 50, 0.0005
"""A name that peers take away as fast as it is made is given up in the end."""


class Opener:
    """Thread-safe."""

    def __init__(
        self,
        namespace: Namespace,
        files: Files,
        inodes: Inodes,
        tree: Tree,
        writer: Writer,
        commits: Commits,
        coherence: Coherence,
        locks: Locks,
    ) -> None:
        self._namespace = namespace
        self._files = files
        self._inodes = inodes
        self._tree = tree
        self._writer = writer
        self._commits = commits
        self._coherence = coherence
        self._locks = locks

    def open(self, ino: Ino, flags: int, caller: Caller, kill_suid: bool) -> Opened:
        """open(2) of an inode. O_TRUNC empties it (published at close; at once where
        that close is of a descriptor that only reads, which nobody hears of)."""
        attr = self._inodes.attr(ino)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes or flags & os.O_TRUNC:
            self._check_writable(attr)
        if not stat.S_ISREG(attr.mode):
            raise _not_a_file(attr)
        file = self._files.acquire(ino)
        try:
            if flags & os.O_TRUNC:
                began = self._writer.edit(file, lambda d: d.truncate(0), caller)
                if kill_suid:
                    self._writer.kill_suid(file)
                if not writes:
                    self._writer.publish_or_undo(file, began)
                attr = self._inodes.attr(ino)
            return self._opened(file, flags, attr)
        except BaseException:
            self._files.release(file)
            raise

    def _check_writable(self, attr: Attr) -> None:
        if stat.S_ISDIR(attr.mode):
            raise IsADirectory("a directory cannot be written")
        if self._commits.options.read_only:
            raise ReadOnly("the file system is mounted read-only")

    def _opened(self, file: File, flags: int, attr: Attr) -> Opened:
        handle = self._files.open(file, flags)
        return Opened(handle.number, attr, self._coherence.pages_valid(attr))

    def create(
        self, parent: Ino, name: bytes, mode: int, flags: int, caller: Caller
    ) -> Opened:
        """open(2) with O_CREAT. A file that a peer made meanwhile is opened, unless
        O_EXCL forbids, and made anew if a peer takes it away before it is."""
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        exclusive = bool(flags & os.O_EXCL)
        for _ in range(MOST_TRIES):
            try:
                made = self._tree.create(
                    parent, name, mode, caller, exclusive=exclusive
                )
            except Exists:
                if exclusive:
                    raise
                opened = self._open_entry(parent, name, flags, caller)
                if opened is not None:
                    return opened
                time.sleep(TRY_AGAIN_S)
                continue
            try:
                return self._new(made[0], flags, Seq(made[1]))
            except NotFound:
                if exclusive:
                    raise
        raise NotFound(f"{name!r} comes and goes")

    def _open_entry(
        self, parent: Ino, name: bytes, flags: int, caller: Caller
    ) -> Opened | None:
        """What the name shows; None: it went this moment."""
        entry = self._namespace.entry(parent, name)
        if entry is None:
            return None
        try:
            return self.open(entry.ino, flags, caller, False)
        except Stale:
            return None

    def _new(self, ino: Ino, flags: int, seq: Seq) -> Opened:
        try:
            file = self._files.acquire(ino)
        except Stale:
            raise NotFound("removed this moment") from None
        try:
            file.capability = False  # nobody had time to set one
            file.seq = max(file.seq, seq)
            return self._opened(file, flags, self._inodes.attr(ino))
        except BaseException:
            self._files.release(file)
            raise

    def tmpfile(self, parent: Ino, mode: int, flags: int, caller: Caller) -> Opened:
        """O_TMPFILE: a file without a name, which link(2) may name unless O_EXCL."""
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        ino = self._tree.unnamed(parent, mode, caller, not flags & os.O_EXCL)
        opened = self._new(ino, flags, Seq(0))
        self._files.keep_orphans()
        return opened

    # -- closing ---------------------------------------------------------------

    def flush(self, number: int, owner: int, caller: Caller | None) -> None:
        """close(2) of one descriptor: what was written is published, and shown by
        near peers; record locks of the owner go."""
        handle = self._files.handle(number)
        try:
            self._writer.flush(handle, caller)
        finally:  # the next holder reads what was written
            if owner:
                self._locks.flushed(handle.file.ino, owner, number)

    def release(self, number: int) -> None:
        """The last descriptor of the open is gone. Never raises: nobody listens."""
        handle = self._files.close(number)
        self._locks.closed(number)
        if handle is None:
            return
        file = handle.file
        if self._files.release(file):
            try:
                self._writer.publish(file)
            except FsError as error:
                log.warning("inode %d is still unpublished: %s", file.ino, error)


def _not_a_file(attr: Attr) -> FsError:
    """Only regular files are opened here: the kernel opens devices and fifos."""
    if stat.S_ISDIR(attr.mode):
        return IsADirectory("open a directory with opendir")
    if stat.S_ISLNK(attr.mode):
        return FsError("a symbolic link cannot be opened", errno=40)
    return NoSuchDevice("devices, fifos and sockets are the kernel's")
