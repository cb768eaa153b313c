"""utimensat, and which calls move atime, mtime and ctime."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from errno import EACCES, EINVAL, EPERM

from tests.posix import libc
from tests.posix.scene import KINDS, Scene, add, case, fails, same, true

ODD = 1_234_567_890_123_456_789


def _set_by_name(t: Scene, kind: str) -> None:
    path = t.make(kind, kind)
    os.utime(path, ns=(ODD, ODD + 1), follow_symlinks=False)
    status = os.lstat(path)
    same((status.st_atime_ns, status.st_mtime_ns), (ODD, ODD + 1))


for _kind in KINDS:
    add(f"times.nanoseconds_{_kind}", lambda t, kind=_kind: _set_by_name(t, kind))


@case("times")
def before_1970_and_after_2038(t: Scene) -> None:
    path = t.file()
    for seconds in (-1, -86_400 * 365, 0, 1 << 31, 1 << 32):
        os.utime(path, ns=(seconds * 10**9 + 5, seconds * 10**9 + 7))
        status = os.stat(path)
        got = status.st_atime_ns, status.st_mtime_ns
        same(got, (seconds * 10**9 + 5, seconds * 10**9 + 7))


@case("times")
def moves_ctime(t: Scene) -> None:
    path = t.file()
    same(t.moved(path, lambda: os.utime(path, ns=(1, 1))), {"mtime", "ctime"})


@case("times")
def omit_leaves_one_alone(t: Scene) -> None:
    path = t.file()
    os.utime(path, ns=(111, 222))
    libc.utimensat(path, (0, libc.UTIME_OMIT), (5, 6))
    status = os.stat(path)
    same((status.st_atime_ns, status.st_mtime_ns), (111, 5_000_000_006))
    libc.utimensat(path, (7, 8), (0, libc.UTIME_OMIT))
    status = os.stat(path)
    same((status.st_atime_ns, status.st_mtime_ns), (7_000_000_008, 5_000_000_006))


@case("times")
def omit_both_changes_nothing(t: Scene) -> None:
    path = t.file()
    both = (0, libc.UTIME_OMIT)
    same(t.moved(path, lambda: libc.utimensat(path, both, both)), set())


@case("times")
def now_is_now(t: Scene) -> None:
    path = t.file()
    os.utime(path, ns=(111, 222))
    before = time.time_ns() - 20_000_000
    libc.utimensat(path, (0, libc.UTIME_NOW), (0, libc.UTIME_OMIT))
    status = os.stat(path)
    true(before <= status.st_atime_ns <= time.time_ns() + 10**7, "atime is now")
    same(status.st_mtime_ns, 222)
    os.utime(path)
    true(before <= os.stat(path).st_mtime_ns <= time.time_ns() + 10**7, "mtime is now")


@case("times")
def invalid_nanoseconds(t: Scene) -> None:
    path = t.file()
    fails(EINVAL, libc.utimensat, path, (0, 1_000_000_000), (0, 0))
    fails(EINVAL, libc.utimensat, path, (0, 0), (0, -1))


@case("times")
def explicit_needs_the_owner(t: Scene) -> None:
    path = t.file(mode=0o666, uid=t.alice.uid)
    t.alice(lambda: os.utime(path, ns=(1, 2)))
    t.bob.fails(EPERM, lambda: os.utime(path, ns=(3, 4)))
    same(os.stat(path).st_mtime_ns, 2)


@case("times")
def now_needs_write_right_only(t: Scene) -> None:
    path = t.file(mode=0o666, uid=t.alice.uid)
    t.bob(os.utime, path)
    os.chmod(path, 0o644)
    t.bob.fails(EACCES, os.utime, path)
    t.alice(os.utime, path)
    os.chmod(path, 0o444)
    t.alice(os.utime, path)


@case("times")
def one_now_one_omitted_needs_the_owner(t: Scene) -> None:
    path = t.file(mode=0o666, uid=t.alice.uid)
    now, omit = (0, libc.UTIME_NOW), (0, libc.UTIME_OMIT)
    t.bob.fails(EPERM, libc.utimensat, path, now, omit)
    t.bob(libc.utimensat, path, now, now)


@case("times")
def by_descriptor(t: Scene) -> None:
    fd = os.open(t.file(), os.O_RDONLY)
    os.utime(fd, ns=(11, 22))
    status = os.fstat(fd)
    same((status.st_atime_ns, status.st_mtime_ns), (11, 22))
    os.close(fd)


@case("times")
def nofollow_sets_the_symlink(t: Scene) -> None:
    path = t.file()
    link = t.link_to("file")
    os.utime(path, ns=(1, 2))
    libc.utimensat(link, (3, 4), (5, 6), libc.AT_SYMLINK_NOFOLLOW)
    same(os.stat(path).st_mtime_ns, 2)
    same(os.lstat(link).st_mtime_ns, 5_000_000_006)


@case("times")
def set_time_survives_close(t: Scene) -> None:
    path = t.path("copy")
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    os.write(fd, b"data")
    os.utime(fd, ns=(ODD, ODD))
    os.close(fd)
    same(os.stat(path).st_mtime_ns, ODD)


@case("times")
def set_time_survives_close_of_another_descriptor(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"data")
    os.utime(path, ns=(ODD, ODD))
    os.close(fd)
    same(os.stat(path).st_mtime_ns, ODD)


def _on_descriptor(path: bytes, flags: int, call: Callable[[int], object]) -> None:
    fd = os.open(path, flags)
    try:
        call(fd)
    finally:
        os.close(fd)


def _mapped(fd: int) -> None:
    with mmap.mmap(fd, 4096) as view:
        view[0] = 120
        view.flush()


_MOVES: dict[str, tuple[int, Callable[[int], object], set[str]]] = {
    "write": (os.O_WRONLY, lambda fd: os.write(fd, b"x"), {"mtime", "ctime"}),
    "pwrite": (os.O_WRONLY, lambda fd: os.pwrite(fd, b"x", 9), {"mtime", "ctime"}),
    "append": (
        os.O_WRONLY | os.O_APPEND,
        lambda fd: os.write(fd, b"x"),
        {"mtime", "ctime"},
    ),
    "write_nothing": (os.O_WRONLY, lambda fd: os.write(fd, b""), set()),
    "read": (os.O_RDONLY, lambda fd: os.read(fd, 10), set()),
    "fsync": (os.O_RDWR, os.fsync, set()),
    "ftruncate": (os.O_RDWR, lambda fd: os.ftruncate(fd, 3), {"mtime", "ctime"}),
    "fchmod": (os.O_RDWR, lambda fd: os.fchmod(fd, 0o600), {"ctime"}),
    "mmap_store": (os.O_RDWR, _mapped, {"mtime", "ctime"}),
    "setxattr": (
        os.O_RDWR,
        lambda fd: os.setxattr(fd, b"user.a", b"1"),
        {"ctime"},
    ),
    "punch_hole": (
        os.O_RDWR,
        lambda fd: libc.fallocate(fd, libc.PUNCH_HOLE | libc.KEEP_SIZE, 0, 4096),
        {"mtime", "ctime"},
    ),
}


def _moves(t: Scene, name: str) -> None:
    flags, call, wanted = _MOVES[name]
    path = t.file(data=b"x" * 8192)
    same(t.moved(path, lambda: _on_descriptor(path, flags, call)), wanted)


for _name in _MOVES:
    add(f"times.moved_by_{_name}", lambda t, name=_name: _moves(t, name))


@case("times")
def write_is_seen_before_close(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_WRONLY)
    before = os.stat(path)
    t.tick()
    os.write(fd, b"12345")
    after = os.stat(path)
    same(after.st_size, 5)
    true(after.st_mtime_ns > before.st_mtime_ns, "mtime moved by the write")
    os.close(fd)


@case("times")
def of_a_new_file_are_now(t: Scene) -> None:
    before = time.time_ns() - 20_000_000
    for kind in KINDS:
        status = os.lstat(t.make(kind, kind))
        for stamp in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns):
            true(before <= stamp <= time.time_ns() + 10**7, f"time of a new {kind}")


@case("times")
def of_the_removed_xattr(t: Scene) -> None:
    path = t.file()
    os.setxattr(path, b"user.a", b"1")
    same(t.moved(path, lambda: os.removexattr(path, b"user.a")), {"ctime"})


@case("times")
def ctime_never_goes_back(t: Scene) -> None:
    path = t.file()
    last = 0
    for number in range(20):
        os.chmod(path, 0o600 + number % 2)
        now = os.stat(path).st_ctime_ns
        true(now >= last, "ctime went back")
        last = now
