"""The portable binding: fusepy's path operations on libfuse 2, over the inode vfs.

Runs in the main thread (libfuse's loop); the operations are called from libfuse's
threads, of which Python forgets some between calls: nothing here is thread-local.

Limits, none of which the kernel binding has: remote changes show by the entry
timeout; every name of a hard-linked file is an inode of its own to the kernel, hence
attribute timeout 0; no interrupts, no SEEK_HOLE, no renameat2 flags, no O_TMPFILE.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import fuse

from fusefs.bindings import fusepy_library
from fusefs.bindings.fusepy_paths import HIDDEN, Orphans, Pages, Paths
from fusefs.bindings.words import UNKNOWN, escaped
from fusefs.model.ids import Ino
from fusefs.vfs.types import Attr, Caller, DirEntry, SetAttr
from fusefs.vfs.vfs import Vfs

ENTRY_TIMEOUT_S = 1.0
"""A name that changed elsewhere may be shown this long. Not what it leads to: every
stat, open and listing is answered here, by path."""

NOBODY = Caller()
"""For calls where nobody's rights matter."""


class Forget:
    """The invalidator: libfuse 2 cannot be told, so only our own memory is dropped."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def entry(self, parent: Ino, name: bytes) -> None:
        self._paths.forget()

    def knows(self, ino: Ino) -> bool:
        return False

    def returned(self, directory: Ino) -> None:
        pass

    def deleted(self, parent: Ino, child: Ino, name: bytes) -> None:
        self._paths.forget()

    def attributes(self, ino: Ino) -> None:
        pass

    def everything(self) -> None:
        self._paths.forget()

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def data(self, ino: Ino, offset: int, length: int) -> None:
        pass


class Operations(fuse.Operations):  # type: ignore[misc]
    """Paths arrive as latin-1 text, which stands for the same bytes one to one."""

    use_ns = True
    flag_utime_omit_ok = 1  # else `touch -a` and `touch -m` are silently dropped
    flag_nullpath_ok = 1  # a descriptor outlives its path
    access = None  # default_permissions: the kernel does it
    ioctl = None  # the prototype of fusepy does not match libfuse
    lock = None  # local locks are the kernel's

    def __init__(self, vfs: Vfs, on_ready: Callable[[], None]) -> None:
        self.vfs = vfs
        self.orphans = Orphans(vfs)
        self.paths = Paths(vfs, self.orphans)
        self.pages = Pages()
        self._open: dict[int, Ino] = {}
        self._on_ready = on_ready

    def init(self, path: str) -> None:
        self._on_ready()

    # -- names ------------------------------------------------------------------

    def getattr(self, path: str | None, handle: int | None = None) -> Attr:
        if path is None:
            return self.vfs.getattr(self._open[handle or 0])
        return self.paths.attr(_bytes(path))

    def readlink(self, path: str) -> str:
        return self.vfs.readlink(self._ino(path)).decode("latin-1")

    def mknod(self, path: str, mode: int, rdev: int) -> None:
        self.vfs.mknod(*self._split(path), mode, rdev, _caller())

    def mkdir(self, path: str, mode: int) -> None:
        self.vfs.mkdir(*self._split(path), mode, _caller())

    def symlink(self, target: str, source: str) -> None:
        """`target` is the new name (fusepy's order), `source` what it holds."""
        self.vfs.symlink(*self._split(target), _bytes(source), _caller())

    def link(self, target: str, source: str) -> None:
        """`target` is the new name."""
        self.vfs.link(self._ino(source), *self._split(target))

    def unlink(self, path: str) -> None:
        parent, name = self._split(path)
        if not self.orphans.release(parent, name):
            self.vfs.unlink(parent, name, _caller())
            self.paths.taken(parent, name)

    def rmdir(self, path: str) -> None:
        parent, name = self._split(path)
        self.vfs.rmdir(parent, name, _caller())
        self.paths.taken(parent, name)
        self.paths.forget()

    def rename(self, old: str, new: str) -> None:
        parent, name = self._split(old)
        new_parent, new_name = self._split(new)
        if HIDDEN.fullmatch(new_name) and parent == new_parent:
            self.orphans.hide(parent, name, new_name, _caller())
            self.paths.taken(parent, name)
            return
        self.orphans.replaced(new_parent, new_name)
        self.vfs.rename(parent, name, new_parent, new_name, 0, _caller())
        self.paths.taken(parent, name)
        self.paths.forget()

    # -- attributes -------------------------------------------------------------

    def chmod(self, path: str, mode: int) -> None:
        self.vfs.setattr(self._ino(path), SetAttr(mode=mode & 0o7777), _caller())

    def chown(self, path: str, uid: int, gid: int) -> None:
        change = SetAttr(uid=None if uid == -1 else uid, gid=None if gid == -1 else gid)
        self.vfs.setattr(self._ino(path), change, _caller())

    def truncate(
        self, path: str | None, length: int, handle: int | None = None
    ) -> None:
        ino = self._open[handle or 0] if path is None else self._ino(path)
        self.vfs.setattr(ino, SetAttr(size=length), _caller(), handle)

    def utimens(self, path: str, times: tuple[int | None, int | None]) -> None:
        """Each time in ns, None (leave alone) or NOW."""
        change = SetAttr(atime_ns=times[0], mtime_ns=times[1])
        self.vfs.setattr(self._ino(path), change, _caller())

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        return self.vfs.getxattr(self._ino(path), _bytes(name))

    def setxattr(
        self, path: str, name: str, value: bytes, flags: int, position: int = 0
    ) -> None:
        self.vfs.setxattr(self._ino(path), _bytes(name), value, flags, _caller())

    def listxattr(self, path: str) -> list[str]:
        names = self.vfs.listxattr(self._ino(path), _caller())
        return [name.decode("latin-1") for name in names]

    def removexattr(self, path: str, name: str) -> None:
        self.vfs.removexattr(self._ino(path), _bytes(name), _caller())

    # -- open files -------------------------------------------------------------

    def open(self, path: str, flags: int) -> tuple[int, bool, bool]:
        """The handle, whether the kernel may keep its pages, whether it may have any.

        Pages belong to a name: two names of one file would show each other's writes
        late, so a file with several names is read past the page cache.
        """
        opened = self.vfs.open(self._ino(path), flags, _caller())
        self._open[opened.handle] = opened.attr.ino
        shared = opened.attr.nlink > 1
        return opened.handle, self.pages.current(path, opened.attr), shared

    def create(self, path: str, mode: int, flags: int) -> int:
        parent, name = self._split(path)
        opened = self.vfs.create(parent, name, mode, flags, _caller())
        self._open[opened.handle] = opened.attr.ino
        return opened.handle

    def read(self, path: str | None, into: memoryview, offset: int, handle: int) -> int:
        """Fills `into`; the length that was there."""
        return self.vfs.read_into(handle, offset, into, NOBODY)

    def write(
        self, path: str | None, data: memoryview, offset: int, handle: int
    ) -> int:
        return self.vfs.write(handle, offset, data, NOBODY)

    def flush(self, path: str | None, handle: int, lock_owner: int = 0) -> None:
        self.vfs.flush(handle, lock_owner)

    def release(self, path: str | None, handle: int) -> None:
        self._open.pop(handle, None)
        self.vfs.release(handle)

    def fsync(self, path: str | None, datasync: int, handle: int) -> None:
        self.vfs.fsync(handle, bool(datasync))

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        self.vfs.fallocate(handle, mode, offset, length)

    # -- directories ------------------------------------------------------------

    def opendir(self, path: str) -> int:
        return self.vfs.opendir(self._ino(path))

    def readdir(self, path: str | None, handle: int) -> Iterator[DirEntry]:
        """The whole listing: libfuse keeps it and serves positions from it."""
        return self.vfs.readdir(handle, 0)

    def releasedir(self, path: str | None, handle: int) -> None:
        self.vfs.releasedir(handle)

    def fsyncdir(self, path: str | None, datasync: int, handle: int) -> None:
        self.vfs.fsyncdir(handle, bool(datasync))

    def statfs(self, path: str) -> dict[str, int]:
        found = self.vfs.statfs()
        return {
            "f_bsize": found.block_size,
            "f_frsize": found.block_size,
            "f_blocks": found.blocks,
            "f_bfree": found.blocks_free,
            "f_bavail": found.blocks_available,
            "f_files": found.files,
            "f_ffree": found.files_free,
            "f_favail": found.files_free,
            "f_namemax": found.name_max,
        }

    def _ino(self, path: str) -> Ino:
        return self.paths.ino(path.encode("latin-1"))

    def _split(self, path: str) -> tuple[Ino, bytes]:
        return self.paths.split(path.encode("latin-1"))


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def _caller() -> Caller:
    uid, gid, pid = fuse.fuse_get_context()
    return Caller(uid, gid, pid, 0)  # the kernel has applied the umask


class MountOptions(Protocol):
    """What of `fusefs.config.Config` matters here."""

    @property
    def mount_flags(self) -> Sequence[str]: ...
    @property
    def fsname(self) -> str: ...
    @property
    def allow_nonempty(self) -> bool: ...


def fuse_options(options: MountOptions) -> dict[str, Any]:
    """The words for libfuse, and why."""
    words: dict[str, Any] = {
        "foreground": True,  # else libfuse forks and our threads are gone
        "fsname": escaped(options.fsname or "dfs"),
        "subtype": "dfs",
        "big_writes": True,  # 128 KiB a write instead of 4 KiB
        "default_permissions": True,  # the kernel checks modes
        "use_ino": True,  # our numbers, the same on every node
        "attr_timeout": 0,  # names of one file must not differ in size
        "entry_timeout": ENTRY_TIMEOUT_S,
        "negative_timeout": 0,
        "nonempty": options.allow_nonempty,
    }
    for flag in options.mount_flags:
        if flag in UNKNOWN:
            continue
        word, equals, value = flag.partition("=")
        words[word] = value if equals else True
    if os.geteuid() == 0 and "allow_root" not in words:
        words["allow_other"] = True
    return words


def run(
    vfs: Vfs,
    mountpoint: bytes | str,
    options: MountOptions,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Mounts and serves; returns when it is unmounted or a SIGTERM arrived.

    Must be called in the main thread. `on_ready` is called when the mount is there.
    Raises: RuntimeError when libfuse cannot mount (its reason is on stderr).
    """
    operations = Operations(vfs, on_ready)
    vfs.set_invalidator(Forget(operations.paths))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # libfuse handles what is default
    fusepy_library.serve(operations, os.fsencode(mountpoint), fuse_options(options))
    operations.orphans.settle()
