"""A vfs in memory: the test double for bindings (the API of fusefs.vfs.Vfs).

POSIX enough for the kernel, no permissions, no network. Tests change the tree
"from elsewhere" through `remote_*`, which tell the invalidator as the vfs would,
and slow calls down with `before` (a hook called with the method's name).
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator

from fusefs.errors import (
    BadHandle,
    Exists,
    FsError,
    Interrupted,
    Invalid,
    IsADirectory,
    NoAttribute,
    NoSuchDevice,
    NotADirectory,
    NotEmpty,
    NotFound,
    WouldBlock,
)
from fusefs.model.ids import Ino
from fusefs.vfs.types import (
    NOW,
    Attr,
    Buffer,
    Caller,
    DirEntry,
    FileLock,
    Invalidator,
    Opened,
    SetAttr,
    StatFs,
)

F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2


class Node:
    def __init__(self, ino: int, mode: int, caller: Caller) -> None:
        now = time.time_ns()
        self.ino, self.mode = Ino(ino), mode
        self.uid, self.gid, self.rdev, self.nlink = caller.uid, caller.gid, 0, 1
        self.atime = self.mtime = self.ctime = self.btime = now
        self.data = bytearray()
        self.target = b""
        self.children: dict[bytes, Node] = {}
        self.parent: Node | None = None
        self.xattrs: dict[bytes, bytes] = {}
        self.locks: list[tuple[int, FileLock]] = []
        self.flocks: dict[int, int] = {}
        """Handle to owner, of whole-file locks."""
        self.version = 1
        self.kernel_version = 0
        self._attr: Attr | None = None

    def touch(self, *, data: bool = False) -> None:
        self.ctime = time.time_ns()
        if data:
            self.mtime = self.ctime
            self.version += 1
        self._attr = None

    @property
    def attr(self) -> Attr:
        if self._attr is None:
            size = len(self.target) if self.target else len(self.data)
            nlink = self.nlink
            if stat.S_ISDIR(self.mode):
                subdirs = sum(stat.S_ISDIR(n.mode) for n in self.children.values())
                nlink, size = 2 + subdirs, 4096
            self._attr = Attr(
                self.ino, self.mode, nlink, self.uid, self.gid, self.rdev, size,
                (size + 511) // 512, self.atime, self.mtime, self.ctime, self.btime,
                self.version,
            )  # fmt: skip
        return self._attr


class MemoryVfs:
    def __init__(self) -> None:
        self._inos = itertools.count(1 << 40)
        self._handles = itertools.count(1)
        self._open: dict[int, Node] = {}
        self._lock = threading.RLock()
        self._unlocked = threading.Condition(self._lock)
        root = Node(1, stat.S_IFDIR | 0o777, Caller())
        self._nodes: dict[int, Node] = {1: root}
        self.invalidator: Invalidator | None = None
        self.before: Callable[[str], None] = lambda name: None
        self.cancelled: list[str] = []
        self.forgotten: list[int] = []
        self.adopted: list[tuple[int, int]] = []
        self.appended: dict[tuple[Ino, int], bool | None] = {}

    def number_handles_from(self, first: int) -> None:
        """A second process must not give out the numbers of the first again."""
        self._handles = itertools.count(first)

    def set_invalidator(self, invalidator: Invalidator) -> None:
        self.invalidator = invalidator

    # -- inside

    def _node(self, ino: int) -> Node:
        try:
            return self._nodes[ino]
        except KeyError:
            raise NotFound from None

    def _dir(self, ino: int) -> Node:
        node = self._node(ino)
        if not stat.S_ISDIR(node.mode):
            raise NotADirectory
        return node

    def _handle(self, handle: int) -> Node:
        try:
            return self._open[handle]
        except KeyError:
            raise BadHandle from None

    def _add(self, parent: int, name: bytes, mode: int, caller: Caller) -> Node:
        directory = self._dir(parent)
        if name in directory.children:
            raise Exists
        node = Node(next(self._inos), mode, caller)
        caller.note(node.ino)
        self._nodes[node.ino] = node
        directory.children[name] = node
        node.parent = directory
        directory.touch(data=True)
        return node

    # -- names

    def lookup(self, parent: Ino, name: bytes) -> Attr:
        self.before("lookup")
        directory = self._dir(parent)
        if name == b"..":
            return (directory.parent or directory).attr
        node = directory.children.get(name)
        if node is None:
            self.before("looked up")
            raise NotFound
        attr = node.attr
        self.before("looked up")
        return attr

    def symlink(self, parent: Ino, name: bytes, target: bytes, caller: Caller) -> Attr:
        self.before("symlink")
        with self._lock:
            node = self._add(parent, name, stat.S_IFLNK | 0o777, caller)
            node.target = target
            return node.attr

    def mknod(
        self, parent: Ino, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Attr:
        with self._lock:
            node = self._add(parent, name, mode, caller)
            node.rdev = rdev
            return node.attr

    def mkdir(self, parent: Ino, name: bytes, mode: int, caller: Caller) -> Attr:
        self.before("mkdir")
        with self._lock:
            return self._add(parent, name, stat.S_IFDIR | mode, caller).attr

    def link(self, ino: Ino, parent: Ino, name: bytes) -> Attr:
        with self._lock:
            directory, node = self._dir(parent), self._node(ino)
            if name in directory.children:
                raise Exists
            directory.children[name] = node
            directory.touch(data=True)
            node.nlink += 1
            node.touch()
            return node.attr

    def unlink(self, parent: Ino, name: bytes, caller: Caller) -> None:
        self.before("unlink")
        with self._lock:
            directory = self._dir(parent)
            node = directory.children.get(name)
            if node is None:
                raise NotFound
            if stat.S_ISDIR(node.mode):
                raise IsADirectory
            caller.note(node.ino)
            del directory.children[name]
            directory.touch(data=True)
            node.nlink -= 1
            node.touch()

    def rmdir(self, parent: Ino, name: bytes, caller: Caller) -> Ino:
        with self._lock:
            directory = self._dir(parent)
            node = directory.children.get(name)
            if node is None:
                raise NotFound
            if node.children:
                raise NotEmpty
            caller.note(node.ino)
            del directory.children[name]
            directory.touch(data=True)
            return node.ino

    def rename(
        self,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> tuple[Ino, Ino]:
        with self._lock:
            old, new = self._dir(parent), self._dir(new_parent)
            node, there = old.children.get(name), new.children.get(new_name)
            if node is None:
                raise NotFound
            if flags & 1 and there is not None:
                raise Exists
            if flags & 2 and there is None:
                raise NotFound
            caller.note(node.ino)
            if flags & 2:
                old.children[name] = there
            else:
                del old.children[name]
            new.children[new_name] = node
            node.parent = new
            if there is not None and not flags & 2:
                there.nlink -= 1
                there.touch()
            for changed in (old, new, node):
                changed.touch(data=changed is not node)
            if there is not None and flags & 2:
                there.touch()
                there.ctime = node.ctime
            return node.ino, there.ino if there is not None else Ino(0)

    def _lines(self, ino: int, cookie: int) -> Iterator[tuple[DirEntry, Attr]]:
        node = self._dir(ino)
        lines = [(b".", node), (b"..", node.parent or node)]
        lines += sorted(node.children.items())
        for number, (name, child) in enumerate(lines[cookie:], cookie + 1):
            kind = child.mode >> 12
            yield DirEntry(number, name, child.ino, kind), child.attr

    def readdir_ino(self, ino: Ino, cookie: int) -> Iterator[DirEntry]:
        for line, _ in self._lines(ino, cookie):
            yield line

    def readdirplus_ino(self, ino: Ino, cookie: int) -> Iterator[tuple[DirEntry, Attr]]:
        yield from self._lines(ino, cookie)
        self.before("listed")

    def names_given(self) -> Iterator[tuple[Ino, bytes]]:
        for node in list(self._nodes.values()):
            for name in list(node.children):
                yield node.ino, name

    def fsyncdir(self, handle: int, datasync: bool) -> None:
        self._dir(handle)

    # -- inodes

    def getattr(self, ino: Ino) -> Attr:
        self.before("getattr")
        return self._node(ino).attr

    def setattr(
        self, ino: Ino, change: SetAttr, caller: Caller, handle: int | None = None
    ) -> Attr:
        with self._lock:
            node = self._node(ino)
            if change.mode is not None:
                node.mode = stat.S_IFMT(node.mode) | change.mode
            if change.uid is not None:
                node.uid = change.uid
            if change.gid is not None:
                node.gid = change.gid
            if change.size is not None:
                del node.data[change.size :]
                node.data.extend(bytes(change.size - len(node.data)))
                node.touch(data=True)
                node.kernel_version = node.version
            if change.kill_suid:
                node.mode &= ~0o6000
            now = time.time_ns()
            if change.atime_ns is not None:
                node.atime = now if change.atime_ns == NOW else change.atime_ns
            if change.mtime_ns is not None:
                node.mtime = now if change.mtime_ns == NOW else change.mtime_ns
            node.touch()
            attr = node.attr
        self.before("setattr")
        return attr

    def readlink(self, ino: Ino) -> bytes:
        return self._node(ino).target

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        try:
            return self._node(ino).xattrs[name]
        except KeyError:
            raise NoAttribute from None

    def setxattr(
        self,
        ino: Ino,
        name: bytes,
        value: bytes,
        flags: int,
        caller: Caller,
        kill_sgid: bool = False,
    ) -> None:
        xattrs = self._node(ino).xattrs
        if flags & os.XATTR_CREATE and name in xattrs:
            raise Exists
        if flags & os.XATTR_REPLACE and name not in xattrs:
            raise NoAttribute
        xattrs[name] = value

    def listxattr(self, ino: Ino, caller: Caller) -> list[bytes]:
        return list(self._node(ino).xattrs)

    def removexattr(self, ino: Ino, name: bytes, caller: Caller) -> None:
        if self._node(ino).xattrs.pop(name, None) is None:
            raise NoAttribute

    def statfs(self) -> StatFs:
        return StatFs(4096, 1 << 30, 1 << 29, 1 << 28, 1 << 20, 1 << 19, 255)

    def forget(self, ino: Ino) -> None:
        self.forgotten.append(ino)

    def sync(self) -> None:
        pass

    # -- open files

    def _opened(self, node: Node, keep: bool) -> Opened:
        handle = next(self._handles)
        self._open[handle] = node
        node.kernel_version = node.version
        return Opened(handle, node.attr, keep)

    def create(
        self, parent: Ino, name: bytes, mode: int, flags: int, caller: Caller
    ) -> Opened:
        self.before("create")
        with self._lock:
            there = self._dir(parent).children.get(name)
            if there is not None and not flags & os.O_EXCL:
                return self.open(there.ino, flags, caller)
            return self._opened(self._add(parent, name, mode, caller), True)

    def tmpfile(self, parent: Ino, mode: int, flags: int, caller: Caller) -> Opened:
        with self._lock:
            node = Node(next(self._inos), mode, caller)
            node.nlink = 0
            self._nodes[node.ino] = node
            return self._opened(node, True)

    def open(
        self, ino: Ino, flags: int, caller: Caller, kill_suid: bool = False
    ) -> Opened:
        with self._lock:
            node = self._node(ino)
            if kill_suid:
                node.mode &= ~0o6000
            keep = node.kernel_version == node.version
            if flags & os.O_TRUNC and node.data:
                node.data.clear()
                node.touch(data=True)
            return self._opened(node, keep)

    def read_into(
        self, handle: int, offset: int, into: memoryview, caller: Caller
    ) -> int:
        self.before("read")
        node = self._handle(handle)
        if node.xattrs.get(b"user.stuck"):
            self._wait(caller, "read")
        data = memoryview(node.data)[offset : offset + len(into)]
        count = len(data)
        into[:count] = data
        data.release()
        return count

    def _wait(self, caller: Caller, what: str) -> None:
        assert caller.cancelled is not None
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if caller.cancelled():
                self.cancelled.append(what)
                raise Interrupted
            time.sleep(0.005)
        raise FsError(errno=errno.ETIMEDOUT)

    def write(
        self,
        handle: int,
        offset: int,
        data: Buffer,
        caller: Caller,
        kill_suid: bool = False,
        appends: bool | None = None,
        request: int = 0,
    ) -> int:
        node = self._handle(handle)
        with self._lock:
            size = len(node.data)
            if appends:
                offset = size
            if offset > size:
                node.data.extend(bytes(offset - size))
            node.data[offset : offset + len(data)] = data
            if kill_suid:
                node.mode &= ~0o6000
            node.touch(data=True)
            node.kernel_version = node.version
        return len(data)

    def flush(self, handle: int, lock_owner: int, caller: Caller) -> None:
        node = self._handle(handle)
        self.before("flush")
        if node.locks:
            with self._unlocked:
                node.locks = [(o, k) for o, k in node.locks if o != lock_owner]
                self._unlocked.notify_all()

    def release(self, handle: int) -> None:
        node = self._open.pop(handle, None)
        if node is not None and handle in node.flocks:
            with self._unlocked:
                owner = node.flocks.pop(handle)
                node.locks = [(o, k) for o, k in node.locks if o != owner]
                self._unlocked.notify_all()

    def fsync(self, handle: int, datasync: bool, caller: Caller) -> None:
        self._handle(handle)
        self.before("fsync")

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        node = self._handle(handle)
        with self._lock:
            if not mode & 1:
                missing = offset + length - len(node.data)
                node.data.extend(bytes(max(0, missing)))
            if mode & 2:
                end = min(offset + length, len(node.data))
                node.data[offset:end] = bytes(max(0, end - offset))
            node.touch(data=True)

    def may_be_mapped(self, handle: int) -> bool:
        return True

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        size = len(self._handle(handle).data)
        if offset >= size:
            raise NoSuchDevice
        if whence == os.SEEK_DATA:
            return offset
        if whence == os.SEEK_HOLE:
            return size
        raise Invalid

    def copy_file_range(
        self,
        handle_in: int,
        offset_in: int,
        handle_out: int,
        offset_out: int,
        length: int,
        caller: Caller,
    ) -> int:
        source = self._handle(handle_in).data
        piece = bytes(source[offset_in : offset_in + length])
        return self.write(handle_out, offset_out, piece, caller)

    # -- locks (whole-file granularity is not enough for POSIX: ranges)

    def _against(self, node: Node, owner: int, wanted: FileLock) -> FileLock | None:
        for other, held in node.locks:
            overlap = held.start <= wanted.end and wanted.start <= held.end
            if other != owner and overlap and F_WRLCK in (held.kind, wanted.kind):
                return held
        return None

    def getlk(
        self,
        handle: int,
        owner: int,
        lock: FileLock,
        is_flock: bool,
        caller: Caller,
    ) -> FileLock:
        found = self._against(self._handle(handle), owner, lock)
        return found or lock._replace(kind=F_UNLCK)

    def setlk(
        self,
        handle: int,
        owner: int,
        lock: FileLock,
        wait: bool,
        is_flock: bool,
        caller: Caller,
    ) -> None:
        node = self._handle(handle)
        with self._unlocked:
            if lock.kind == F_UNLCK:
                node.locks = [
                    (o, k)
                    for o, k in node.locks
                    if o != owner or k.start < lock.start or k.end > lock.end
                ]
                self._unlocked.notify_all()
                return
            while self._against(node, owner, lock) is not None:
                if not wait:
                    raise WouldBlock
                if caller.cancelled is not None and caller.cancelled():
                    self.cancelled.append("setlk")
                    raise Interrupted
                self._unlocked.wait(0.005)
            node.locks.append((owner, lock))
            if is_flock:
                node.flocks[handle] = owner

    # -- taking over

    def adopt_handle(self, handle: int, ino: Ino) -> None:
        if handle in self._open:
            raise BadHandle
        self.adopted.append((handle, ino))
        self._open[handle] = self._node(ino)

    def adopt_directory(self, ino: Ino) -> bool:
        return False

    def adopt_orphan(self, ino: Ino) -> bool:
        return False

    def has_appended(self, ino: Ino, request: int) -> bool | None:
        return self.appended.get((ino, request))

    def record_locked(self) -> list[Ino]:
        return []

    # -- changes from elsewhere

    def _resolve(self, path: str) -> Node:
        node = self._nodes[1]
        for part in path.encode().split(b"/"):
            if part:
                node = node.children[part]
        return node

    def remote_write(self, path: str, data: bytes) -> None:
        """Replaces the content; tells the kernel what changed."""
        node = self._resolve(path)
        with self._lock:
            node.data[:] = data
            node.touch(data=True)
        assert self.invalidator is not None
        self.invalidator.data(node.ino, 0, 0)

    def remote_create(self, path: str, data: bytes = b"") -> None:
        directory, _, name = path.rpartition("/")
        parent = self._resolve(directory)
        with self._lock:
            mode = stat.S_IFREG | 0o644
            node = self._add(parent.ino, name.encode(), mode, Caller())
            node.data[:] = data
        assert self.invalidator is not None
        self.invalidator.entry(parent.ino, name.encode())
        self.invalidator.attributes(parent.ino)

    def remote_remove(self, path: str) -> None:
        directory, _, name = path.rpartition("/")
        parent, node = self._resolve(directory), self._resolve(path)
        with self._lock:
            del parent.children[name.encode()]
            parent.touch(data=True)
            node.nlink -= 1
            node.touch()
        assert self.invalidator is not None
        self.invalidator.deleted(parent.ino, node.ino, name.encode())
        self.invalidator.attributes(parent.ino)

    def remote_chmod(self, path: str, mode: int) -> None:
        node = self._resolve(path)
        with self._lock:
            node.mode = stat.S_IFMT(node.mode) | mode
            node.touch()
        assert self.invalidator is not None
        self.invalidator.attributes(node.ino)

    def quiet_move(self, path: str, to: bytes, empty: bytes) -> None:
        """Somebody moves a directory, and makes an `empty` one in its place. The kernel
        hears of it later."""
        directory, _, name = path.rpartition("/")
        parent, node = self._resolve(directory), self._resolve(path)
        with self._lock:
            del parent.children[name.encode()]
            parent.children[to] = node
            parent.touch(data=True)
            if empty:
                self._add(parent.ino, name.encode(), stat.S_IFDIR | 0o755, Caller())

    def remote_moved(self, path: str, to: bytes) -> None:
        directory, _, name = path.rpartition("/")
        parent = self._resolve(directory)
        assert self.invalidator is not None
        self.invalidator.entry(parent.ino, name.encode())
        self.invalidator.entry(parent.ino, to)
        self.invalidator.attributes(parent.ino)

    def quiet_write(self, path: str, data: bytes) -> None:
        """A change nobody was told of."""
        node = self._resolve(path)
        with self._lock:
            node.data[:] = data
            node.touch(data=True)
