"""flock, POSIX (fcntl) and open-file-description locks between processes."""

# ruff: noqa: F811  (a case is named group.function, the same function name may recur)

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from errno import EACCES, EAGAIN, EBADF, EDEADLK
from typing import Any

from tests.posix import libc
from tests.posix.scene import Child, Scene, case, fails, in_child, same, true

BUSY = {EAGAIN, EACCES}


def _elsewhere(call: Callable[..., Any], *args: Any) -> Any:
    return in_child(lambda: None, call, *args)


def _flock(path: bytes, how: int) -> None:
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, how | fcntl.LOCK_NB)


def _lockf(path: bytes, how: int, length: int = 0, start: int = 0) -> None:
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, how | fcntl.LOCK_NB, length, start)


def _ofd(fd: int, kind: int, start: int = 0, length: int = 0) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, libc.fcntl_lock(kind, start, length))


@case("flock")
def exclusive_excludes(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fails(EAGAIN, _elsewhere, _flock, path, fcntl.LOCK_EX)
    fails(EAGAIN, _elsewhere, _flock, path, fcntl.LOCK_SH)
    fcntl.flock(fd, fcntl.LOCK_UN)
    _elsewhere(_flock, path, fcntl.LOCK_EX)
    os.close(fd)


@case("flock")
def shared_shares(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    _elsewhere(_flock, path, fcntl.LOCK_SH)
    fails(EAGAIN, _elsewhere, _flock, path, fcntl.LOCK_EX)
    os.close(fd)


@case("flock")
def belongs_to_the_open_file(t: Scene) -> None:
    path = t.file()
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    fcntl.flock(one, fcntl.LOCK_EX)
    fails(EAGAIN, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    copy = os.dup(one)
    os.close(one)
    fails(EAGAIN, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(copy)
    fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(two)


@case("flock")
def is_freed_by_exit(t: Scene) -> None:
    path = t.file()
    _elsewhere(_flock, path, fcntl.LOCK_EX)
    _elsewhere(_flock, path, fcntl.LOCK_EX)


@case("flock")
def converts(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.flock(fd, fcntl.LOCK_SH)
    _elsewhere(_flock, path, fcntl.LOCK_SH)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fails(EAGAIN, _elsewhere, _flock, path, fcntl.LOCK_SH)
    os.close(fd)


@case("flock")
def waits_until_it_is_free(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    _wakes(lambda: fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX), fd)


def _wakes(blocking: Callable[[], object], fd: int) -> None:
    """The call blocks in a child, and ends soon after `fd` is closed here."""
    reading, writing = os.pipe()

    def work() -> None:
        os.close(fd)
        os.close(reading)
        blocking()
        os.write(writing, b"got it")

    child = Child(work)
    os.close(writing)
    os.set_blocking(reading, False)
    time.sleep(0.05)
    fails(EAGAIN, os.read, reading, 10)
    os.set_blocking(reading, True)
    os.close(fd)
    started = time.monotonic()
    same(os.read(reading, 10), b"got it")
    true(time.monotonic() - started < 10, "woken promptly")
    os.close(reading)
    child.join()


@case("fcntl")
def ranges_exclude(t: Scene) -> None:
    path = t.file(data=b"x" * 100)
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 10)
    fails(BUSY, _elsewhere, _lockf, path, fcntl.LOCK_EX, 1, 19)
    fails(BUSY, _elsewhere, _lockf, path, fcntl.LOCK_EX, 0, 0)
    _elsewhere(_lockf, path, fcntl.LOCK_EX, 10, 0)
    _elsewhere(_lockf, path, fcntl.LOCK_EX, 0, 20)
    os.close(fd)


@case("fcntl")
def unlock_in_the_middle_splits(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 30, 0)
    fcntl.lockf(fd, fcntl.LOCK_UN, 10, 10)
    _elsewhere(_lockf, path, fcntl.LOCK_EX, 10, 10)
    fails(BUSY, _elsewhere, _lockf, path, fcntl.LOCK_EX, 1, 9)
    fails(BUSY, _elsewhere, _lockf, path, fcntl.LOCK_EX, 1, 20)
    os.close(fd)


@case("fcntl")
def shared_shares(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_SH)
    _elsewhere(_lockf, path, fcntl.LOCK_SH)
    fails(BUSY, _elsewhere, _lockf, path, fcntl.LOCK_EX)
    os.close(fd)


@case("fcntl")
def closing_any_descriptor_frees(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    os.close(os.open(path, os.O_RDONLY))
    _elsewhere(_lockf, path, fcntl.LOCK_EX)
    os.close(fd)


@case("fcntl")
def getlk_names_the_holder(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 7, 3)

    def ask() -> tuple[int, ...]:
        mine = os.open(path, os.O_RDWR)
        query = libc.fcntl_lock(fcntl.F_WRLCK, 0, 0)
        return struct.unpack("hhqqi4x", fcntl.fcntl(mine, fcntl.F_GETLK, query))

    kind, _, start, length, pid = _elsewhere(ask)
    same((kind, start, length, pid), (fcntl.F_WRLCK, 3, 7, os.getpid()))
    fcntl.lockf(fd, fcntl.LOCK_UN)
    same(_elsewhere(ask)[0], fcntl.F_UNLCK)
    os.close(fd)


@case("fcntl")
def waits_until_it_is_free(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    _wakes(lambda: fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX), fd)


@case("fcntl")
def needs_the_right_direction(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDONLY)
    fails(EBADF, fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    fd = os.open(path, os.O_WRONLY)
    fails(EBADF, fcntl.lockf, fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(fd)


@case("fcntl")
def deadlock_is_found(t: Scene) -> None:
    """By the one of both that asks last."""
    path = t.file(data=b"12")
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
    reading, writing = os.pipe()

    def take(own: int, start: int) -> int:
        try:
            fcntl.lockf(own, fcntl.LOCK_EX, 1, start)
        except OSError as error:
            return error.errno or 0
        return 0

    def work() -> int:
        own = os.open(path, os.O_RDWR)
        fcntl.lockf(own, fcntl.LOCK_EX, 1, 1)
        os.write(writing, b"x")
        return take(own, 0)

    child = Child(work)
    os.read(reading, 1)
    here = take(fd, 1)
    os.close(fd)
    same(sorted((here, child.join())), [0, EDEADLK])
    os.close(reading)
    os.close(writing)


@case("ofd")
def belongs_to_the_open_file(t: Scene) -> None:
    path = t.file()
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    _ofd(one, fcntl.F_WRLCK, 0, 10)
    fails(BUSY, _ofd, two, fcntl.F_WRLCK, 5, 1)
    _ofd(two, fcntl.F_WRLCK, 10, 10)
    os.close(os.open(path, os.O_RDONLY))
    fails(BUSY, _ofd, two, fcntl.F_WRLCK, 5, 1)
    os.close(one)
    _ofd(two, fcntl.F_WRLCK, 5, 1)
    os.close(two)


@case("ofd")
def conflicts_with_posix(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDWR)
    _ofd(fd, fcntl.F_WRLCK)
    fails(BUSY, _elsewhere, _lockf, path, fcntl.LOCK_EX)
    os.close(fd)


@case("ofd")
def on_a_removed_file(t: Scene) -> None:
    path = t.file()
    one = os.open(path, os.O_RDWR)
    two = os.open(path, os.O_RDWR)
    os.unlink(path)
    _ofd(one, fcntl.F_WRLCK)
    fails(BUSY, _ofd, two, fcntl.F_WRLCK)
    os.close(one)
    os.close(two)


@case("flock")
def through_another_name(t: Scene) -> None:
    path, other = t.file("one"), t.path("two")
    os.link(path, other)
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fails(EAGAIN, _elsewhere, _flock, other, fcntl.LOCK_EX)
    os.close(fd)
