"""What the binding asks of the vfs: inodes in, attributes out (fusefs.vfs.Vfs).

Every method may raise FsError and may be called from several threads at once.
`caller.cancelled` is passed where a call may wait for the network or for a lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from fusefs.model.ids import Ino
from fusefs.vfs.types import (
    Attr,
    Buffer,
    Caller,
    DirEntry,
    FileLock,
    Opened,
    SetAttr,
    StatFs,
)


class FileSystem(Protocol):
    """The part of the vfs that the kernel's requests end in."""

    # names
    def lookup(self, parent: Ino, name: bytes) -> Attr: ...
    def symlink(
        self, parent: Ino, name: bytes, target: bytes, caller: Caller
    ) -> Attr: ...
    def mknod(
        self, parent: Ino, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Attr: ...
    def mkdir(self, parent: Ino, name: bytes, mode: int, caller: Caller) -> Attr: ...
    def link(self, ino: Ino, parent: Ino, name: bytes) -> Attr: ...
    def unlink(self, parent: Ino, name: bytes, caller: Caller) -> None: ...
    def rmdir(self, parent: Ino, name: bytes, caller: Caller) -> Ino:
        """Gives what was removed."""
        ...

    def rename(
        self,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> tuple[Ino, Ino]:
        """Gives what was moved, and what it replaced or was exchanged with."""
        ...

    def readdir_ino(self, ino: Ino, cookie: int) -> Iterator[DirEntry]: ...
    def readdirplus_ino(
        self, ino: Ino, cookie: int
    ) -> Iterator[tuple[DirEntry, Attr]]: ...
    def names_given(self) -> Iterator[tuple[Ino, bytes]]:
        """Directory and name of all there is or was, as far as it is remembered; what
        has its name by another's choice is left to `readdir_ino`."""

    def fsyncdir(self, handle: int, datasync: bool) -> None: ...

    # inodes
    def getattr(self, ino: Ino) -> Attr: ...
    def adopt_orphan(self, ino: Ino) -> bool: ...
    def adopt_directory(self, ino: Ino) -> bool: ...
    def has_appended(self, ino: Ino, request: int) -> bool | None:
        """Whether an earlier worker did what this request to append wants; None: it
        is not known."""

    def setattr(
        self, ino: Ino, change: SetAttr, caller: Caller, handle: int | None = None
    ) -> Attr: ...
    def readlink(self, ino: Ino) -> bytes: ...
    def getxattr(self, ino: Ino, name: bytes) -> bytes: ...
    def setxattr(
        self,
        ino: Ino,
        name: bytes,
        value: bytes,
        flags: int,
        caller: Caller,
        kill_sgid: bool,
    ) -> None: ...
    def listxattr(self, ino: Ino, caller: Caller) -> list[bytes]: ...
    def removexattr(self, ino: Ino, name: bytes, caller: Caller) -> None: ...
    def statfs(self) -> StatFs: ...
    def forget(self, ino: Ino) -> None: ...
    def sync(self) -> None: ...

    # open files
    def create(
        self, parent: Ino, name: bytes, mode: int, flags: int, caller: Caller
    ) -> Opened: ...
    def tmpfile(self, parent: Ino, mode: int, flags: int, caller: Caller) -> Opened: ...
    def open(self, ino: Ino, flags: int, caller: Caller, kill_suid: bool) -> Opened: ...
    def read_into(
        self, handle: int, offset: int, into: memoryview, caller: Caller
    ) -> int: ...
    def write(
        self,
        handle: int,
        offset: int,
        data: Buffer,
        caller: Caller,
        kill_suid: bool = False,
        appends: bool | None = None,
        request: int = 0,
    ) -> int: ...
    def flush(self, handle: int, lock_owner: int, caller: Caller) -> None: ...
    def release(self, handle: int) -> None: ...
    def record_locked(self) -> Iterable[Ino]:
        """Inodes with record locks, those of an earlier worker included."""

    def fsync(self, handle: int, datasync: bool, caller: Caller) -> None: ...
    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None: ...
    def lseek(self, handle: int, offset: int, whence: int) -> int: ...
    def may_be_mapped(self, handle: int) -> bool:
        """Whether a program may write to the file through a mapping."""

    def copy_file_range(
        self,
        handle_in: int,
        offset_in: int,
        handle_out: int,
        offset_out: int,
        length: int,
        caller: Caller,
    ) -> int: ...
    def getlk(
        self,
        handle: int,
        owner: int,
        lock: FileLock,
        is_flock: bool,
        caller: Caller,
    ) -> FileLock: ...
    def setlk(
        self,
        handle: int,
        owner: int,
        lock: FileLock,
        wait: bool,
        is_flock: bool,
        caller: Caller,
    ) -> None: ...
    def adopt_handle(self, handle: int, ino: Ino) -> None:
        """Goes on with a handle that an earlier worker gave out."""
