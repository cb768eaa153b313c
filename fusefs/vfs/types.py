"""The values a binding and the vfs exchange. No binding, no errno, no kernel here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import msgspec

from fusefs.model.ids import Ino

Buffer = bytes | bytearray | memoryview


class Attr(NamedTuple):
    """What stat shows, built once per change and shared: never mutate."""

    ino: Ino
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    """512-byte units actually holding data (holes excluded)."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    version: int
    """Changes exactly when the data does: decides page-cache reuse."""


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asks. `cancelled` turns true when the kernel interrupts the request. `noted`
    is told the inode whose name the request makes, takes away or moves, just before
    that is committed."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0o022
    cancelled: Callable[[], bool] | None = None
    noted: Callable[[Ino], None] | None = None

    def note(self, ino: Ino) -> None:
        if self.noted is not None:
            self.noted(ino)


class SetAttr(msgspec.Struct, frozen=True):
    """The attributes to change; None leaves one alone. Times in ns; NOW is the
    vfs's clock."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    kill_suid: bool = False
    """The kernel asks to drop set-id bits, too (FUSE_HANDLE_KILLPRIV_V2)."""


class Permissions(msgspec.Struct, frozen=True, array_like=True):
    """Mode and owner given to a file that has unpublished writes; None: as its inode
    has it."""

    mode: int | None = None
    """The whole st_mode."""
    uid: int | None = None
    gid: int | None = None


UNCHANGED = Permissions()

EARLIEST_NS, LATEST_NS = -(1 << 63) + 1, (1 << 63) - 1
"""Times that can be kept: 1677 to 2262. Others become the nearest of them, as on any
file system (ext4: 1901 to 2446)."""
NOW = EARLIEST_NS - 1
"""In SetAttr.atime_ns / mtime_ns: the current time (UTIME_NOW)."""


class DirEntry(NamedTuple):
    """One line of a listing. `cookie` is the offset that continues after it."""

    cookie: int
    name: bytes
    ino: Ino
    kind: int
    """d_type: S_IFMT >> 12."""


class StatFs(NamedTuple):
    block_size: int
    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int
    name_max: int


class Opened(NamedTuple):
    handle: int
    attr: Attr
    keep_cache: bool
    """The kernel's pages of this inode are of the shown version."""


class FileLock(NamedTuple):
    """A POSIX or flock lock. `end` is inclusive (FUSE), OFFSET_MAX for "to the end"."""

    kind: int
    """F_RDLCK, F_WRLCK or F_UNLCK."""
    start: int
    end: int
    pid: int


class Invalidator(Protocol):
    """What the vfs tells a binding when the tree changed under the kernel's feet.

    Called from a thread that holds no vfs lock; returns when the kernel has
    forgotten. A binding that cannot invalidate does nothing.
    """

    def knows(self, ino: Ino) -> bool:
        """Whether the kernel certainly holds the inode."""

    def entry(self, parent: Ino, name: bytes) -> None: ...
    def deleted(self, parent: Ino, child: Ino, name: bytes) -> None: ...
    def returned(self, directory: Ino) -> None:
        """A directory that had no name has one again: what the kernel knew as removed
        stays removed for it, and this is another one."""

    def attributes(self, ino: Ino) -> None: ...
    def data(self, ino: Ino, offset: int, length: int) -> None:
        """Pages of [offset, offset + length), length 0: to the end; attributes."""

    def everything(self) -> None:
        """Changes were missed: forget all names, attributes and pages."""

    def together(self) -> AbstractContextManager[None]:
        """What one thread tells within it, it may wait for at the end only."""
