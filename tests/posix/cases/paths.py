"""Path resolution: the same errors from every system call that takes a path."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EACCES, EEXIST, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM

from tests.posix import libc
from tests.posix.scene import Scene, add, case, fails, same

Call = Callable[[bytes], object]


def _open(path: bytes) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _creat(path: bytes) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


LOOKING: dict[str, Call] = {
    "stat": os.stat,
    "lstat": os.lstat,
    "open": _open,
    "chmod": lambda path: os.chmod(path, 0o644),
    "chown": lambda path: os.chown(path, -1, -1),
    "lchown": lambda path: os.chown(path, -1, -1, follow_symlinks=False),
    "truncate": lambda path: os.truncate(path, 0),
    "utimensat": lambda path: os.utime(path, ns=(1, 1)),
    "readlink": os.readlink,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "opendir": os.listdir,
    "chdir": lambda path: in_place(path),
    "access": lambda path: require_access(path),
    "getxattr": lambda path: os.getxattr(path, b"user.x"),
    "setxattr": lambda path: os.setxattr(path, b"user.x", b"1"),
    "listxattr": os.listxattr,
    "removexattr": lambda path: os.removexattr(path, b"user.x"),
    "statvfs": os.statvfs,
}
"""Calls on something that exists."""

CREATING: dict[str, Call] = {
    "creat": _creat,
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda path: os.mknod(path, 0o100644),
    "symlink": lambda path: os.symlink(b"target", path),
}
"""Calls that make a name."""


def in_place(path: bytes) -> None:
    here = os.open(b".", os.O_PATH)
    try:
        os.chdir(path)
        os.fchdir(here)
    finally:
        os.close(here)


def require_access(path: bytes) -> None:
    fd = libc._check(libc._libc.access(path, os.F_OK))
    same(fd, 0)


def _two_names(name: str) -> dict[str, Callable[[Scene], Call]]:
    """link and rename with the tested path as old or as new name."""
    call = os.link if name == "link" else os.rename
    return {
        f"{name}_old": lambda t: lambda path: call(path, t.path("new")),
        f"{name}_new": lambda t: lambda path: call(t.file("old"), path),
    }


def _constant(call: Call) -> Callable[[Scene], Call]:
    return lambda t: call


CALLS: dict[str, Callable[[Scene], Call]] = {
    **{name: _constant(call) for name, call in (LOOKING | CREATING).items()},
    **_two_names("link"),
    **_two_names("rename"),
}


def _below_file(t: Scene, call: Call) -> None:
    fails(ENOTDIR, call, t.file("plain") + b"/below")


def _below_missing(t: Scene, call: Call) -> None:
    fails(ENOENT, call, t.path("missing") + b"/below")


def _name_256(t: Scene, call: Call) -> None:
    fails(ENAMETOOLONG, call, t.path("x" * 256))


def _component_256(t: Scene, call: Call) -> None:
    fails(ENAMETOOLONG, call, t.path("x" * 256) + b"/below")


def _path_4096(t: Scene, call: Call) -> None:
    path = t.top + b"/."
    fails(ENAMETOOLONG, call, path + b"/." * ((4096 - len(path)) // 2 + 1))


def _loop(t: Scene, call: Call) -> None:
    t.link_to("two", "one")
    t.link_to("one", "two")
    fails(ELOOP, call, t.path("one") + b"/below")


def _unsearchable(t: Scene, call: Call) -> None:
    directory = t.directory(mode=0o755, uid=t.alice.uid, gid=t.alice.gid)
    t.file("dir/below", uid=t.alice.uid, gid=t.alice.gid)
    os.chmod(directory, 0o644)
    t.alice.fails(EACCES, call, directory + b"/below")


for _trap in (
    _below_file,
    _below_missing,
    _name_256,
    _component_256,
    _path_4096,
    _loop,
):
    for _name, _maker in CALLS.items():
        add(
            f"paths{_trap.__name__}.{_name}",
            lambda t, trap=_trap, maker=_maker: trap(t, maker(t)),
        )

for _name, _call in (LOOKING | CREATING).items():
    add(
        f"paths_unsearchable.{_name}",
        lambda t, call=_call: _unsearchable(t, call),
    )


def _missing(t: Scene, call: Call) -> None:
    fails(ENOENT, call, t.path("missing"))


def _last_loop(t: Scene, call: Call) -> None:
    t.link_to("one", "one")
    fails(ELOOP, call, t.path("one"))


def _exists(t: Scene, call: Call) -> None:
    for kind in ("regular", "directory", "fifo", "symlink"):
        fails(EEXIST, call, t.make(kind, kind))


def _unwritable(t: Scene, call: Call) -> None:
    directory = t.directory(mode=0o755)
    t.alice.fails(EACCES, call, directory + b"/new")


for _name, _call in LOOKING.items():
    add(f"paths_missing.{_name}", lambda t, call=_call: _missing(t, call))

_NOT_FOLLOWING = {"lstat", "lchown", "readlink", "unlink", "rmdir"}
for _name, _call in LOOKING.items():
    if _name not in _NOT_FOLLOWING:
        add(f"paths_last_loop.{_name}", lambda t, call=_call: _last_loop(t, call))

for _name, _call in CREATING.items():
    if _name != "creat":
        add(f"paths_exists.{_name}", lambda t, call=_call: _exists(t, call))
    add(f"paths_unwritable.{_name}", lambda t, call=_call: _unwritable(t, call))


@case("paths")
def empty(t: Scene) -> None:
    fails(ENOENT, os.stat, b"")
    fails(ENOENT, os.mkdir, b"")
    fails(ENOENT, os.unlink, b"")


@case("paths")
def name_of_255_bytes(t: Scene) -> None:
    for byte in (b"a", b"\xff"):
        path = t.file(byte * 255, b"1")
        same(os.stat(path).st_size, 1)
        os.rename(path, t.path(b"b" * 255))
        os.unlink(t.path(b"b" * 255))


@case("paths")
def path_of_4095_bytes(t: Scene) -> None:
    t.file("f", b"123")
    dots = (4095 - len(t.top) - len(b"/f")) // 2
    path = t.top + b"/." * dots + b"/f"
    path = path.replace(b"/.", b"//.", 1) if len(path) == 4094 else path
    same(len(path), 4095)
    same(os.stat(path).st_size, 3)


@case("paths")
def any_bytes_but_slash_and_nul(t: Scene) -> None:
    names = [bytes([one]) * 3 for one in range(1, 256) if one != 0x2F]
    names = [name for name in names if name != b"..."] + [b"..."]
    for name in names:
        os.mkdir(t.path(name))
    same(sorted(os.listdir(t.top)), sorted(names))
    for name in names:
        os.rmdir(t.path(name))
    same(os.listdir(t.top), [])


@case("paths")
def names_are_compared_exactly(t: Scene) -> None:
    for name in ("a", "A", "e\u0301", "\u00e9", "a ", " a", "a."):
        t.file(name, name.encode())
    for name in ("a", "A", "e\u0301", "\u00e9", "a ", " a", "a."):
        with open(t.path(name), "rb") as stream:
            same(stream.read(), name.encode())


@case("paths")
def forty_links_are_followed_and_more_are_not(t: Scene) -> None:
    t.file("link0")
    for number in range(1, 42):
        t.link_to(f"link{number - 1}", f"link{number}")
    os.stat(t.path("link40"))
    fails(ELOOP, os.stat, t.path("link41"))


@case("paths")
def trailing_slash(t: Scene) -> None:
    plain = t.file()
    fails(ENOTDIR, os.stat, plain + b"/")
    fails(ENOTDIR, os.unlink, plain + b"/")
    directory = t.directory()
    os.stat(directory + b"/")
    t.link_to("dir", "to_dir")
    same(os.lstat(t.path("to_dir/")).st_ino, os.stat(directory).st_ino)
    os.mkdir(t.path("made/"))
    os.rmdir(t.path("made/"))


@case("paths")
def dot_dot_leads_back(t: Scene) -> None:
    deep = t.path("a/b/c")
    os.makedirs(deep)
    same(os.stat(deep + b"/../../..").st_ino, os.stat(t.top).st_ino)
    os.rename(t.path("a/b"), t.path("moved"))
    same(os.stat(t.path("moved/c/../..")).st_ino, os.stat(t.top).st_ino)


@case("paths")
def tree_200_levels_deep(t: Scene) -> None:
    path = t.top
    for _ in range(200):
        path += b"/d"
        os.mkdir(path)
    with open(path + b"/file", "wb") as stream:
        stream.write(b"deep")
    with open(path + b"/file", "rb") as stream:
        same(stream.read(), b"deep")
    os.unlink(path + b"/file")
    for _ in range(200):
        os.rmdir(path)
        path = path[:-2]


@case("paths")
def inode_numbers_are_stable(t: Scene) -> None:
    path = t.file()
    number = os.stat(path).st_ino
    os.rename(path, t.path("renamed"))
    os.chmod(t.path("renamed"), 0o600)
    os.truncate(t.path("renamed"), 10)
    os.link(t.path("renamed"), t.path("other"))
    same(os.stat(t.path("other")).st_ino, number)
    same(os.stat(t.path("renamed")).st_ino, number)


@case("paths")
def sticky_parent_owner_rules_for_unlink(t: Scene) -> None:
    sticky = t.directory("sticky", 0o1777)
    t.file("sticky/of_alice", uid=t.alice.uid)
    t.file("sticky/of_bob", uid=t.bob.uid)
    t.bob.fails({EPERM, EACCES}, os.unlink, sticky + b"/of_alice")
    t.bob(os.unlink, sticky + b"/of_bob")
    own = t.directory("own", 0o1777, uid=t.bob.uid)
    t.file("own/of_alice", uid=t.alice.uid)
    t.bob(os.unlink, own + b"/of_alice")
