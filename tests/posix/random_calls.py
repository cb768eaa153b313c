"""Random operations, each ready to be made on either of two directories.

Used by random_ops; knows nothing of comparing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.posix import libc
from tests.posix.scene import ALICE_GID, ALICE_UID, SHARED_GID

LONG = b"long" * 50
DIRECTORIES = [b"a", b"b", b"dir"]
LEAVES = [b"c", b"e.txt", b"\xff\xfe", LONG]
NAMES = DIRECTORIES + LEAVES
MAX_DEPTH = 4
MAX_HANDLES = 12
OLDEST_NOW_NS = 1_500_000_000 * 10**9
"""Later times are of the clock and differ; earlier ones were set explicitly."""


class Operation(NamedTuple):
    """One call, ready to be made on either side."""

    text: str
    paths: tuple[bytes, ...]
    """Relative paths whose times are watched."""
    call: Callable[[Side], Any]
    alice: bool = False


class Side:
    """One of the two directories and the descriptors open there."""

    def __init__(self, top: Path) -> None:
        self.top = os.fsencode(top)
        self.handles: dict[int, int] = {}

    def path(self, relative: bytes) -> bytes:
        return self.top + b"/" + relative if relative else self.top

    def times(self, relative: bytes) -> tuple[int, int, int] | None:
        try:
            found = os.lstat(self.path(relative))
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns

    def perform(self, operation: Operation) -> tuple[object, list[str]]:
        """What happened: the result, or the name of the errno; and what moved."""
        before = [self.times(path) for path in operation.paths]
        try:
            result = _as_user(operation.alice, lambda: operation.call(self))
        except OSError as error:
            result = errno.errorcode.get(error.errno or 0, str(error))
        moved = [
            f"{_short(path)} {_moved(old, self.times(path))}"
            for path, old in zip(operation.paths, before)
        ]
        return result, moved

    def close(self) -> None:
        for fd in self.handles.values():
            os.close(fd)
        self.handles.clear()


def _moved(old: tuple[int, int, int] | None, new: tuple[int, int, int] | None) -> str:
    if old is None or new is None:
        return {(True, True): "absent", (True, False): "made"}.get(
            (old is None, new is None), "removed"
        )
    if old[0] != new[0]:
        return "replaced"
    names = ("mtime", "ctime")
    moved = [n for n, was, now in zip(names, old[1:], new[1:]) if was != now]
    return "+".join(moved) or "same"


def _short(path: bytes) -> str:
    return repr(path.replace(LONG, b"LONG"))[1:]


def _as_user(alice: bool, call: Callable[[], object]) -> object:
    if not alice:
        return call()
    os.setgroups([ALICE_GID, SHARED_GID])
    os.setegid(ALICE_GID)
    os.seteuid(ALICE_UID)
    try:
        return call()
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


class Features(NamedTuple):
    """What the mount can do; the rest is left out on both sides."""

    rename_flags: bool
    fallocate: bool

    @classmethod
    def probe(cls, top: Path) -> Features:
        one, two = os.fsencode(top / "one"), os.fsencode(top / "two")
        for path in (one, two):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        fd = os.open(one, os.O_RDWR)
        try:
            mode = libc.PUNCH_HOLE | libc.KEEP_SIZE
            found = cls(
                _works(lambda: libc.renameat2(one, two, libc.RENAME_EXCHANGE)),
                _works(lambda: libc.fallocate(fd, mode, 0, 1)),
            )
        finally:
            os.close(fd)
            os.unlink(one)
            os.unlink(two)
        return found


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError:
        return False
    return True


class Generator:
    """Draws operations; remembers nothing but what handles are open."""

    def __init__(self, seed: int, features: Features) -> None:
        self.rng = random.Random(seed)
        self.handles: list[int] = []
        self._next_handle = 1
        makers: list[tuple[Callable[[], Operation], int]] = [
            (self.create, 10),
            (self.write_file, 8),
            (self.mkdir, 8),
            (self.rmdir, 4),
            (self.unlink, 7),
            (self.rename, 10),
            (self.rename_flags, 3 if features.rename_flags else 0),
            (self.link, 6),
            (self.symlink, 4),
            (self.mkfifo, 2),
            (self.chmod, 5),
            (self.chown, 3),
            (self.truncate, 4),
            (self.utime, 4),
            (self.stat, 8),
            (self.lstat, 4),
            (self.readlink, 2),
            (self.read_file, 6),
            (self.listdir, 4),
            (self.access, 2),
            (self.setxattr, 3),
            (self.getxattr, 3),
            (self.open_handle, 6),
            (self.close_handle, 5),
            (self.write_handle, 8),
            (self.read_handle, 5),
            (self.stat_handle, 3),
            (self.truncate_handle, 2),
            (self.chmod_handle, 1),
            (self.sync_handle, 1),
            (self.fallocate_handle, 2 if features.fallocate else 0),
        ]
        self._makers = [maker for maker, _ in makers]
        self._weights = [weight for _, weight in makers]

    def draw(self) -> Operation:
        maker = self.rng.choices(self._makers, self._weights)[0]
        return maker()

    # -- by path ------------------------------------------------------------------

    def create(self) -> Operation:
        flags = os.O_CREAT | self._some_flags()
        mode = self._mode()
        return self._at_path(
            f"open {flags:#o} {mode:#o}",
            lambda path: os.close(os.open(path, flags, mode)),
        )

    def write_file(self) -> Operation:
        data = self._data()
        how = self.rng.choice((os.O_TRUNC, os.O_APPEND, 0))
        flags = how | os.O_WRONLY | os.O_NONBLOCK

        def call(path: bytes) -> int:
            fd = os.open(path, flags)
            try:
                return os.write(fd, data)
            finally:
                os.close(fd)

        return self._at_path(f"write {flags:#o} {len(data)}", call)

    def mkdir(self) -> Operation:
        mode = self._mode()
        return self._at_path(
            f"mkdir {mode:#o}", lambda path: os.mkdir(path, mode), DIRECTORIES
        )

    def rmdir(self) -> Operation:
        return self._at_path("rmdir", os.rmdir, DIRECTORIES)

    def unlink(self) -> Operation:
        return self._at_path("unlink", os.unlink)

    def rename(self) -> Operation:
        return self._two_paths("rename", os.rename)

    def rename_flags(self) -> Operation:
        flags = self.rng.choice((libc.RENAME_NOREPLACE, libc.RENAME_EXCHANGE))
        return self._two_paths(
            f"renameat2 {flags}", lambda old, new: libc.renameat2(old, new, flags)
        )

    def link(self) -> Operation:
        return self._two_paths(
            "link", lambda old, new: os.link(old, new, follow_symlinks=False)
        )

    def symlink(self) -> Operation:
        target = self.rng.choice((b"", b"../")) + self._path()
        return self._at_path(
            f"symlink {target!r}", lambda path: os.symlink(target, path)
        )

    def mkfifo(self) -> Operation:
        return self._at_path("mkfifo", lambda path: os.mkfifo(path, 0o644))

    def chmod(self) -> Operation:
        # Set-gid only with group execute: without it the kernel asks, on a write,
        # whether the writer is in the group, and FUSE has no way to answer.
        mode = self._mode() | self.rng.choice((0, 0, 0o4000, 0o2010, 0o1000))
        return self._at_path(f"chmod {mode:#o}", lambda path: os.chmod(path, mode))

    def chown(self) -> Operation:
        uid = self.rng.choice((-1, 0, ALICE_UID))
        groups = (0, ALICE_GID, SHARED_GID)  # both -1: POSIX leaves ctime open
        gid = self.rng.choice(groups if uid == -1 else (-1, *groups))
        return self._at_path(
            f"lchown {uid} {gid}", lambda path: os.lchown(path, uid, gid)
        )

    def truncate(self) -> Operation:
        size = self._size()
        return self._at_path(f"truncate {size}", lambda path: os.truncate(path, size))

    def utime(self) -> Operation:
        times = self.rng.randrange(10**18), self.rng.randrange(10**18)
        return self._at_path(
            f"utime {times}",
            lambda path: os.utime(path, ns=times, follow_symlinks=False),
        )

    def stat(self) -> Operation:
        return self._at_path("stat", lambda path: describe(os.stat(path)))

    def lstat(self) -> Operation:
        return self._at_path("lstat", lambda path: describe(os.lstat(path)))

    def readlink(self) -> Operation:
        return self._at_path("readlink", os.readlink)

    def read_file(self) -> Operation:
        return self._at_path("read", digest)

    def listdir(self) -> Operation:
        return self._at_path("listdir", lambda path: sorted(os.listdir(path)))

    def access(self) -> Operation:
        mode = self.rng.choice((os.R_OK, os.W_OK, os.X_OK))
        return self._at_path(
            f"access {mode}", lambda path: os.access(path, mode, effective_ids=True)
        )

    def setxattr(self) -> Operation:
        name = self.rng.choice((b"user.one", b"user.two"))
        if self.rng.random() < 0.3:
            return self._at_path(
                f"removexattr {name!r}", lambda path: os.removexattr(path, name)
            )
        value = self.rng.randbytes(self.rng.randrange(50))
        flags = self.rng.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        return self._at_path(
            f"setxattr {name!r} {len(value)} {flags}",
            lambda path: os.setxattr(path, name, value, flags),
        )

    def getxattr(self) -> Operation:
        if self.rng.random() < 0.5:
            return self._at_path("listxattr", xattr_names)
        return self._at_path("getxattr", lambda path: os.getxattr(path, b"user.one"))

    # -- by descriptor -------------------------------------------------------------

    def open_handle(self) -> Operation:
        if len(self.handles) >= MAX_HANDLES:
            return self.close_handle()
        number, self._next_handle = self._next_handle, self._next_handle + 1
        self.handles.append(number)
        flags = os.O_RDWR | self.rng.choice((0, os.O_CREAT, os.O_APPEND, os.O_TRUNC))

        def call(side: Side, path: bytes) -> None:
            found = side.path(path)
            if not stat.S_ISFIFO(_mode_of(found)):
                side.handles[number] = os.open(found, flags, 0o644)

        return self._at_side(f"handle {number} = open {flags:#o}", call)

    def close_handle(self) -> Operation:
        number = self._handle()
        if number in self.handles:
            self.handles.remove(number)

        def call(side: Side) -> None:
            fd = side.handles.pop(number, None)
            if fd is not None:
                os.close(fd)

        return Operation(f"close handle {number}", (), call)

    def write_handle(self) -> Operation:
        offset, data = self._size(), self._data()
        return self._on_handle(
            f"pwrite {offset}+{len(data)}", lambda fd: os.pwrite(fd, data, offset)
        )

    def read_handle(self) -> Operation:
        offset, length = self._size(), self._size()
        return self._on_handle(
            f"pread {offset}+{length}",
            lambda fd: _hash(os.pread(fd, length, offset)),
        )

    def stat_handle(self) -> Operation:
        return self._on_handle("fstat", lambda fd: describe(os.fstat(fd)))

    def truncate_handle(self) -> Operation:
        size = self._size()
        return self._on_handle(f"ftruncate {size}", lambda fd: os.ftruncate(fd, size))

    def chmod_handle(self) -> Operation:
        mode = self._mode()
        return self._on_handle(f"fchmod {mode:#o}", lambda fd: os.fchmod(fd, mode))

    def sync_handle(self) -> Operation:
        return self._on_handle("fsync", os.fsync)

    def fallocate_handle(self) -> Operation:
        mode = self.rng.choice(
            (0, libc.PUNCH_HOLE | libc.KEEP_SIZE, libc.ZERO_RANGE, libc.KEEP_SIZE)
        )
        offset, length = self._size(), self._size() + 1
        return self._on_handle(
            f"fallocate {mode} {offset}+{length}",
            lambda fd: libc.fallocate(fd, mode, offset, length),
        )

    # -- parts ----------------------------------------------------------------------

    def _at_path(
        self, text: str, call: Callable[[bytes], Any], leaves: list[bytes] = LEAVES
    ) -> Operation:
        return self._at_side(text, lambda side, path: call(side.path(path)), leaves)

    def _at_side(
        self,
        text: str,
        call: Callable[[Side, bytes], Any],
        leaves: list[bytes] = LEAVES,
    ) -> Operation:
        path = self._path(leaves)
        alice = self.rng.random() < 0.2
        who = "alice: " if alice else ""
        return Operation(
            f"{who}{text} {_short(path)}",
            (path, os.path.dirname(path)),
            lambda side: call(side, path),
            alice,
        )

    def _two_paths(self, text: str, call: Callable[[bytes, bytes], Any]) -> Operation:
        leaves = self.rng.choice((LEAVES, LEAVES, DIRECTORIES))
        old, new = self._path(leaves), self._path(leaves)
        alice = self.rng.random() < 0.2
        who = "alice: " if alice else ""
        return Operation(
            f"{who}{text} {_short(old)} {_short(new)}",
            (old, new, os.path.dirname(old), os.path.dirname(new)),
            lambda side: call(side.path(old), side.path(new)),
            alice,
        )

    def _on_handle(self, text: str, call: Callable[[int], Any]) -> Operation:
        number = self._handle()

        def on_side(side: Side) -> object:
            fd = side.handles.get(number)
            return "not open" if fd is None else call(fd)

        return Operation(f"{text} handle {number}", (), on_side)

    def _handle(self) -> int:
        return self.rng.choice(self.handles) if self.handles else 0

    def _path(self, leaves: list[bytes] = LEAVES) -> bytes:
        depth = self.rng.choices(range(1, MAX_DEPTH + 1), (5, 4, 2, 1))[0]
        above = [self._name(DIRECTORIES) for _ in range(depth - 1)]
        return b"/".join([*above, self._name(leaves)])

    def _name(self, usual: list[bytes]) -> bytes:
        """Mostly directories above and files below, so that most calls succeed."""
        return self.rng.choice(usual if self.rng.random() < 0.8 else NAMES)

    def _mode(self) -> int:
        usual = (0o644, 0o755, 0o777, 0o666, 0o700)
        return self.rng.choice(usual + (self.rng.randrange(0o1000),))

    def _some_flags(self) -> int:
        flags = self.rng.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR)) | os.O_NONBLOCK
        for flag in (os.O_EXCL, os.O_TRUNC, os.O_NOFOLLOW, os.O_DIRECTORY):
            if self.rng.random() < 0.2:
                flags |= flag
        if flags & os.O_DIRECTORY:
            flags &= ~os.O_CREAT
        return flags

    def _size(self) -> int:
        return self.rng.randrange(self.rng.choice((10, 5000, 100_000, 1_200_000)))

    def _data(self) -> bytes:
        return self.rng.randbytes(self.rng.choice((0, 1, 100, 4096, 70_000)))


def _mode_of(path: bytes) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def _hash(data: bytes) -> str:
    return f"{len(data)} {hashlib.blake2b(data, digest_size=8).hexdigest()}"


def digest(path: bytes) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return _hash(os.read(fd, 4 << 20))
    finally:
        os.close(fd)


def xattr_names(path: bytes) -> list[str]:
    return sorted(n for n in os.listxattr(path) if n in ("user.one", "user.two"))


def describe(found: os.stat_result) -> tuple[object, ...]:
    """What must be equal on both sides."""
    sized = stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)
    times = tuple(when for when in (found.st_mtime_ns,) if when < OLDEST_NOW_NS)
    return (
        oct(found.st_mode),
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_size if sized else None,
        times,
    )
