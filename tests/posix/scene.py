"""The stage a POSIX case plays on: an empty directory, three users, exact checks.

A case is a function of one `Scene`. It does system calls below `scene.top` as root
and, through `scene.alice(...)` and `scene.bob(...)`, as two ordinary users in a
forked child. Nothing here knows what file system is below.
"""

from __future__ import annotations

import errno as errnos
import os
import pickle
import stat
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

ALICE_UID = 12001
ALICE_GID = 12001
BOB_UID = 12002
BOB_GID = 12002
SHARED_GID = 12003
"""A group alice is a member of and bob is not."""


CLOCK_REALTIME_COARSE = 5
"""Of <time.h>: the clock file times come from."""


class Failed(AssertionError):
    """A check of a case did not hold."""


class Case(NamedTuple):
    id: str
    run: Callable[[Scene], None]


CASES: dict[str, Case] = {}


def case(group: str) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Registers the function as the case `group.function_name`."""

    def register(function: Callable[[Scene], None]) -> Callable[[Scene], None]:
        add(f"{group}.{function.__name__}", function)
        return function

    return register


def add(case_id: str, function: Callable[[Scene], None]) -> None:
    if case_id in CASES:
        raise ValueError(f"case {case_id} exists twice")
    CASES[case_id] = Case(case_id, function)


def same(got: object, want: object, what: str = "") -> None:
    if got != want:
        raise Failed(f"{what + ': ' if what else ''}got {got!r}, want {want!r}")


def true(condition: object, what: str) -> None:
    if not condition:
        raise Failed(what)


def fails(errno: int | Iterable[int], call: Callable[..., Any], *args: Any) -> None:
    """The call fails with exactly this errno (or one of these)."""
    wanted = {errno} if isinstance(errno, int) else set(errno)
    names = "/".join(errnos.errorcode[one] for one in sorted(wanted))
    try:
        result = call(*args)
    except OSError as error:
        if error.errno not in wanted:
            got = errnos.errorcode.get(error.errno or 0, str(error.errno))
            raise Failed(f"got {got}, want {names}") from error
        return
    raise Failed(f"succeeded with {result!r}, want {names}")


class User:
    """Runs calls in a forked child with all ids of one user."""

    def __init__(self, uid: int, gid: int, groups: list[int]) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups

    def __call__(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The call's result, or its OSError or Failed, from the child."""
        return in_child(self.become, call, *args, **kwargs)

    def become(self) -> None:
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        os.umask(0o022)

    def fails(self, errno: int | Iterable[int], call: Any, *args: Any) -> None:
        fails(errno, lambda: self(call, *args))


def in_child(
    prepare: Callable[[], None], call: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    def work() -> Any:
        prepare()
        return call(*args, **kwargs)

    return Child(work).join()


class Child:
    """A forked process that does one call and never anything else."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._reading, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._reading)
                os.write(writing, pickle.dumps(_outcome(call)))
            finally:
                os._exit(0)
        os.close(writing)

    def join(self) -> Any:
        """The call's result, or its OSError or Failed."""
        with open(self._reading, "rb") as stream:
            answer = stream.read()
        os.waitpid(self._pid, 0)
        if not answer:
            raise Failed("the child died")
        kind, value = pickle.loads(answer)
        if kind == "errno":
            raise OSError(value, os.strerror(value))
        if kind == "failed":
            raise Failed(value)
        return value


def _outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "result", call()
    except OSError as error:
        return "errno", error.errno
    except Failed as error:
        return "failed", str(error)
    except BaseException:
        return "failed", traceback.format_exc()


class Scene:
    """An empty directory `top` (0755, root) of one case, and who may play in it."""

    def __init__(self, top: bytes) -> None:
        self.top = top
        self.alice = User(ALICE_UID, ALICE_GID, [ALICE_GID, SHARED_GID])
        self.bob = User(BOB_UID, BOB_GID, [BOB_GID])

    def path(self, name: str | bytes) -> bytes:
        return os.path.join(self.top, os.fsencode(name))

    # -- making things: each returns the path -----------------------------------

    def file(
        self,
        name: str | bytes = "file",
        data: bytes = b"",
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
    ) -> bytes:
        path = self.path(name)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            if data:
                os.write(fd, data)
        finally:
            os.close(fd)
        return self._owned(path, mode, uid, gid)

    def directory(
        self, name: str | bytes = "dir", mode: int = 0o755, uid: int = 0, gid: int = 0
    ) -> bytes:
        path = self.path(name)
        os.mkdir(path)
        return self._owned(path, mode, uid, gid)

    def fifo(self, name: str = "fifo") -> bytes:
        path = self.path(name)
        os.mkfifo(path, 0o644)
        return path

    def link_to(self, target: str | bytes, name: str = "symlink") -> bytes:
        path = self.path(name)
        os.symlink(os.fsencode(target), path)
        return path

    def make(self, kind: str, name: str) -> bytes:
        """One thing of the kind (see KINDS)."""
        path = self.path(name)
        KINDS[kind](path)
        return path

    @staticmethod
    def _owned(path: bytes, mode: int, uid: int, gid: int) -> bytes:
        if uid or gid:
            os.chown(path, uid, gid)
        os.chmod(path, mode)
        return path

    # -- time -------------------------------------------------------------------

    def tick(self) -> None:
        """Waits until the kernel's coarse clock has moved twice."""
        for _ in range(2):
            start = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
            while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == start:
                time.sleep(0.0005)

    def moved(self, path: bytes, call: Callable[[], Any]) -> set[str]:
        """Which of mtime and ctime of `path` the call moved (lstat)."""
        before = os.lstat(path)
        self.tick()
        call()
        after = os.lstat(path)
        result = set()
        if after.st_mtime_ns != before.st_mtime_ns:
            result.add("mtime")
        if after.st_ctime_ns != before.st_ctime_ns:
            result.add("ctime")
        return result


def _create(path: bytes) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _socket(path: bytes) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o644)


KINDS: dict[str, Callable[[bytes], None]] = {
    "regular": _create,
    "directory": lambda path: os.mkdir(path, 0o755),
    "fifo": lambda path: os.mkfifo(path, 0o644),
    "socket": _socket,
    "character": lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3)),
    "block": lambda path: os.mknod(path, stat.S_IFBLK | 0o644, os.makedev(7, 0)),
    "symlink": lambda path: os.symlink(b"nowhere", path),
}


def mode_of(path: bytes) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def read_file(path: bytes) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def write_file(path: bytes, data: bytes, flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
