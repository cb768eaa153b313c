"""Extended attributes: user, trusted, security, POSIX ACLs."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import E2BIG, EACCES, EEXIST, ENODATA, ENOSPC, EOPNOTSUPP, EPERM, ERANGE

from tests.posix.scene import Scene, add, case, fails, same, true

A, B = b"user.a", b"user.b"


def _own(path: bytes | int) -> list[str]:
    """The names a program stored (security labels and read-only ones aside)."""
    hidden = ("security.selinux", "user.dfs.")
    return sorted(n for n in os.listxattr(path) if not n.startswith(hidden))


@case("xattr")
def set_get_list_remove(t: Scene) -> None:
    path = t.file()
    os.setxattr(path, A, b"one")
    os.setxattr(path, B, b"")
    same((os.getxattr(path, A), os.getxattr(path, B)), (b"one", b""))
    same(_own(path), ["user.a", "user.b"])
    os.removexattr(path, A)
    same(_own(path), ["user.b"])
    fails(ENODATA, os.getxattr, path, A)
    fails(ENODATA, os.removexattr, path, A)


def _set_by_descriptor(t: Scene, make: Callable[[Scene], bytes]) -> None:
    fd = os.open(make(t), os.O_RDONLY)
    os.setxattr(fd, A, b"by descriptor")
    same(os.getxattr(fd, A), b"by descriptor")
    same(_own(fd), ["user.a"])
    os.close(fd)


add("xattr.file_descriptor", lambda t: _set_by_descriptor(t, Scene.file))
add("xattr.directory_descriptor", lambda t: _set_by_descriptor(t, Scene.directory))


@case("xattr")
def create_and_replace(t: Scene) -> None:
    path = t.file()
    fails(ENODATA, os.setxattr, path, A, b"1", os.XATTR_REPLACE)
    os.setxattr(path, A, b"1", os.XATTR_CREATE)
    fails(EEXIST, os.setxattr, path, A, b"2", os.XATTR_CREATE)
    os.setxattr(path, A, b"3", os.XATTR_REPLACE)
    same(os.getxattr(path, A), b"3")


@case("xattr")
def any_bytes(t: Scene) -> None:
    path = t.file()
    value = bytes(range(256)) * 8
    os.setxattr(path, b"user.\xff\xfe", value)
    same(os.getxattr(path, b"user.\xff\xfe"), value)


@case("xattr")
def exact_sizes(t: Scene) -> None:
    import ctypes

    path = t.file()
    os.setxattr(path, A, b"12345")
    libc = ctypes.CDLL(None, use_errno=True)
    same(libc.getxattr(path, A, None, 0), 5)
    buffer = ctypes.create_string_buffer(4)
    same(libc.getxattr(path, A, buffer, 4), -1)
    same(ctypes.get_errno(), ERANGE)
    same(libc.listxattr(path, None, 0), sum(len(n) + 1 for n in os.listxattr(path)))
    same(libc.listxattr(path, buffer, 1), -1)
    same(ctypes.get_errno(), ERANGE)


@case("xattr")
def name_of_255_bytes_and_no_more(t: Scene) -> None:
    path = t.file()
    os.setxattr(path, b"user." + b"n" * 250, b"1")
    fails(ERANGE, os.setxattr, path, b"user." + b"n" * 251, b"1")


@case("xattr")
def value_over_64_kib(t: Scene) -> None:
    fails({E2BIG, ENOSPC}, os.setxattr, t.file(), A, b"v" * 65537)


@case("xattr")
def unknown_namespace(t: Scene) -> None:
    fails(EOPNOTSUPP, os.setxattr, t.file(), b"nonsense.a", b"1")


@case("xattr")
def user_on_special_files(t: Scene) -> None:
    fails(EPERM, os.setxattr, t.fifo(), A, b"1")
    link = t.link_to("nowhere")
    fails(EPERM, lambda: os.setxattr(link, A, b"1", follow_symlinks=False))


@case("xattr")
def user_needs_write_to_set_and_read_to_get(t: Scene) -> None:
    path = t.file(mode=0o644)
    t.alice.fails(EACCES, os.setxattr, path, A, b"1")
    os.setxattr(path, A, b"1")
    same(t.alice(os.getxattr, path, A), b"1")
    os.chmod(path, 0o600)
    t.alice.fails(EACCES, os.getxattr, path, A)


@case("xattr")
def user_on_sticky_directory_is_for_the_owner(t: Scene) -> None:
    path = t.directory(mode=0o1777)
    t.alice.fails(EPERM, os.setxattr, path, A, b"1")


@case("xattr")
def trusted_is_for_root(t: Scene) -> None:
    path = t.file(mode=0o666)
    os.setxattr(path, b"trusted.a", b"1")
    same(os.getxattr(path, b"trusted.a"), b"1")
    t.alice.fails(EPERM, os.setxattr, path, b"trusted.a", b"2")
    t.alice.fails(ENODATA, os.getxattr, path, b"trusted.a")
    true("trusted.a" not in t.alice(os.listxattr, path), "hidden from users")


@case("xattr")
def trusted_on_a_symlink(t: Scene) -> None:
    link = t.link_to("nowhere")
    os.setxattr(link, b"trusted.a", b"1", follow_symlinks=False)
    same(os.getxattr(link, b"trusted.a", follow_symlinks=False), b"1")


@case("xattr")
def security_is_stored(t: Scene) -> None:
    path = t.file()
    os.setxattr(path, b"security.test", b"1")
    same(os.getxattr(path, b"security.test"), b"1")


@case("xattr")
def capability_survives_until_a_write(t: Scene) -> None:
    path = t.file(data=b"x", mode=0o755)
    caps = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(path, b"security.capability", caps)
    same(os.getxattr(path, b"security.capability"), caps)
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"y")
    os.close(fd)
    fails(ENODATA, os.getxattr, path, b"security.capability")


@case("xattr")
def posix_acl_is_honoured_or_refused(t: Scene) -> None:
    path = t.file(mode=0o640)
    acl = bytes.fromhex(
        "02000000"
        "0100"
        "0600"
        "ffffffff"
        "0200"
        "0400"
        "e12e0000"  # user 12001: r
        "0400"
        "0400"
        "ffffffff"
        "1000"
        "0400"
        "ffffffff"
        "2000"
        "0000"
        "ffffffff"
    )
    try:
        os.setxattr(path, b"system.posix_acl_access", acl)
    except OSError as error:
        same(error.errno, EOPNOTSUPP)
        return
    t.alice(lambda: os.close(os.open(path, os.O_RDONLY)))
    t.bob.fails(EACCES, os.open, path, os.O_RDONLY)


@case("xattr")
def many(t: Scene) -> None:
    path = t.file()
    names = [f"user.attribute{number:02}" for number in range(40)]
    for name in names:
        os.setxattr(path, name, name.encode())
    same(_own(path), names)
    for name in names:
        same(os.getxattr(path, name), name.encode())


@case("xattr")
def follows_the_inode(t: Scene) -> None:
    path = t.file("one")
    os.link(path, t.path("two"))
    os.setxattr(t.path("two"), A, b"shared")
    os.rename(path, t.path("three"))
    same(os.getxattr(t.path("three"), A), b"shared")


@case("xattr")
def new_file_of_the_same_name_has_none(t: Scene) -> None:
    path = t.file()
    os.setxattr(path, A, b"1")
    os.unlink(path)
    t.file()
    same(_own(path), [])


@case("xattr")
def of_a_removed_open_file(t: Scene) -> None:
    path = t.file()
    os.setxattr(path, A, b"1")
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
    same(os.getxattr(fd, A), b"1")
    os.setxattr(fd, A, b"2")
    same(os.getxattr(fd, A), b"2")
    os.close(fd)
