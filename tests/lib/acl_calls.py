"""Random calls that have to do with access control lists, made by several users on
several directories, one after the other: a file system that the kernel knows them of,
and mounts of ours. What each answers, and what then shows where, must be the same.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fusefs.model import acl
from fusefs.model.acl import ACCESS, DEFAULT, Entry

PLACES = ["a", "b", "c", "a/x", "a/y", "b/x", "b/y", "a/x/z", "b/x/z", "a/y/z"]
MODES = [0o777, 0o666, 0o700, 0o640, 0o2775, 0o1777, 0o4755, 0]
UMASKS = [0, 0o22, 0o77, 0o27]


class User(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User(0, 0)
USERS = [ROOT, User(1001, 2001), User(1002, 2002, (2001,)), User(1003, 2003, (2002,))]
_UIDS, _GIDS = [user.uid for user in USERS], [0, 2001, 2002]

Call = Callable[[], object]
"""Of paths below the directory that it is made in."""


def random_list(rng: random.Random) -> bytes:
    """Now and then one that is not valid."""
    some = [Entry(acl.USER_OBJ, rng.randrange(8))]
    users = sorted(rng.sample(_UIDS, rng.randrange(3)))
    some += [Entry(acl.USER, rng.randrange(8), uid) for uid in users]
    some.append(Entry(acl.GROUP_OBJ, rng.randrange(8)))
    groups = sorted(rng.sample(_GIDS, rng.randrange(3)))
    some += [Entry(acl.GROUP, rng.randrange(8), gid) for gid in groups]
    if len(some) > 2 or rng.random() < 0.3:
        some.append(Entry(acl.MASK, rng.randrange(8)))
    some.append(Entry(acl.OTHER, rng.randrange(8)))
    if rng.random() < 0.05:
        rng.shuffle(some)
    return acl.encode(tuple(some))


def as_user(user: User, umask: int, top: Path, call: Call) -> str:
    """What the call answers in a process of that user, which begins in the directory,
    whatever is above."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.chdir(top)
            os.umask(umask)
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            try:
                said = repr(call())
            except OSError as error:
                said = os.strerror(error.errno or 0)
            os.write(writing, said.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


def random_call(rng: random.Random) -> tuple[str, User, int, Call]:
    """(what it is, who makes it, the umask, the call on one of the directories)."""
    place, other = rng.choice(PLACES), rng.choice(PLACES)
    mode, value = rng.choice(MODES), random_list(rng)
    name = rng.choice([ACCESS, DEFAULT])
    uid, gid = rng.choice([-1, *_UIDS]), rng.choice([-1, *_GIDS])
    with_mode = rng.random() < 0.5

    def make() -> None:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

    def write() -> None:
        """A mode and a list between a write and the close."""
        fd = os.open(place, os.O_WRONLY)
        try:
            os.write(fd, b"data")
            if with_mode:
                os.fchmod(fd, mode)
            os.setxattr(fd, ACCESS, value)
        finally:
            os.close(fd)

    def unnamed() -> None:
        above = Path(place).parent
        fd = os.open(above, os.O_TMPFILE | os.O_RDWR, mode)
        proc = os.open("/proc/self/fd", os.O_RDONLY)
        os.link(str(fd), place, src_dir_fd=proc, follow_symlinks=True)

    def remove() -> None:
        path = Path(place)
        (path.rmdir if path.is_dir() else path.unlink)()

    calls: dict[str, Call] = {
        "mkdir": lambda: os.mkdir(place, mode),
        "create": make,
        "mkfifo": lambda: os.mknod(place, stat.S_IFIFO | mode),
        "symlink": lambda: os.symlink("x", place),
        "tmpfile": unnamed,
        "chmod": lambda: os.chmod(place, mode),
        "chown": lambda: os.chown(place, uid, gid),
        "set": lambda: os.setxattr(place, name, value),
        "remove list": lambda: os.removexattr(place, name),
        "write": write,
        "list": lambda: len(os.listdir(place)),
        "rename": lambda: os.rename(place, other),
        "remove": remove,
    }
    weights = {"mkdir": 3, "create": 3, "chmod": 2, "set": 4}
    if "/" not in place:  # directories, to have something below
        calls = {key: calls[key] for key in ("mkdir", "chmod", "chown", "set")}
    kind = rng.choice([key for key in calls for _ in range(weights.get(key, 1))])
    who = rng.choice([*USERS, ROOT, ROOT, ROOT, USERS[1]])
    umask = rng.choice(UMASKS)
    told = f"{kind} {place} {other} {mode:o} {name!r} {value.hex()} {uid}:{gid} {who}"
    return told, who, umask, calls[kind]


def shown(top: Path) -> dict[str, tuple[object, ...]]:
    """Mode, owner and lists of all that is below."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        lists = [_list_of(path, name) for name in acl.NAMES]
        owner = status.st_uid, status.st_gid
        found[str(path.relative_to(top))] = (oct(status.st_mode), *owner, *lists)
    return found


def _list_of(path: Path, name: bytes) -> str:
    try:
        return os.getxattr(path, name, follow_symlinks=False).hex()
    except OSError as error:
        return os.strerror(error.errno or 0)


def permitted(top: Path, places: Sequence[str]) -> list[str]:
    """What each user may do with each of these."""
    kinds = (os.R_OK, os.W_OK, os.X_OK)
    return [
        as_user(user, 0, top, lambda: [os.access(p, k) for p in places for k in kinds])
        for user in USERS
    ]


def begin(top: Path) -> None:
    """Something to begin with, in an empty directory."""
    top.chmod(0o777)
    for name, owner in (("a", 1001), ("b", 1002), ("a/x", 0)):
        path = top / name
        path.mkdir()
        path.chmod(0o775)
        os.chown(path, owner, 2001)
