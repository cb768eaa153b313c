"""Extended attributes: namespaces, flags, sizes, and what is computed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusefs.errors import FsError
from fusefs.model.ids import ROOT_INO
from fusefs.vfs.types import Caller
from fusefs.vfs.xattrs import CREATE, REPLACE
from tests.lib.local import Local, local_vfs


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with local_vfs(tmp_path / "s") as made:
        yield made


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except FsError as error:
        assert error.errno is not None
        return errno.errorcode[error.errno]
    return ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"user.a", ""),
        (b"trusted.a", ""),
        (b"security.selinux", ""),
        (b"system.posix_acl_access", "ENOTSUP"),
        (b"system.other", "ENOTSUP"),
        (b"plain", "ENOTSUP"),
        (b"user.", "EINVAL"),
        (b"user.dfs.version", "EPERM"),
        (b"user." + b"n" * 250, ""),
        (b"user." + b"n" * 251, "ERANGE"),
    ],
)
def test_namespaces(local: Local, name: bytes, expected: str) -> None:
    ino = local.put("/a")
    assert error_of(lambda: local.vfs.setxattr(ino, name, b"v")) == expected
    if not expected:
        assert local.vfs.getxattr(ino, name) == b"v"
        assert local.vfs.listxattr(ino) == [name]
        local.vfs.removexattr(ino, name)
        assert error_of(lambda: local.vfs.getxattr(ino, name)) == "ENODATA"


def test_create_and_replace_flags(local: Local) -> None:
    vfs = local.vfs
    ino = local.put("/a")
    assert error_of(lambda: vfs.setxattr(ino, b"user.a", b"", REPLACE)) == "ENODATA"
    vfs.setxattr(ino, b"user.a", b"1", CREATE)
    assert error_of(lambda: vfs.setxattr(ino, b"user.a", b"2", CREATE)) == "EEXIST"
    vfs.setxattr(ino, b"user.a", b"", REPLACE)
    assert vfs.getxattr(ino, b"user.a") == b""
    assert error_of(lambda: vfs.setxattr(ino, b"user.a", b"", 4)) == "EINVAL"
    assert error_of(lambda: vfs.removexattr(ino, b"user.b")) == "ENODATA"


def test_sizes(local: Local) -> None:
    vfs = local.vfs
    ino = local.put("/a")
    vfs.setxattr(ino, b"user.big", bytes(65536))
    assert len(vfs.getxattr(ino, b"user.big")) == 65536
    assert error_of(lambda: vfs.setxattr(ino, b"user.c", bytes(65537))) == "E2BIG"


def test_ctime_moves_and_nothing_else(local: Local) -> None:
    ino = local.put("/a")
    before = local.stat("/a")
    local.vfs.setxattr(ino, b"user.a", b"1")
    middle = local.stat("/a")
    local.vfs.removexattr(ino, b"user.a")
    after = local.stat("/a")
    assert before.ctime_ns < middle.ctime_ns < after.ctime_ns
    assert before.mtime_ns == after.mtime_ns


def test_trusted_is_listed_to_root_only(local: Local) -> None:
    ino = local.put("/a")
    local.vfs.setxattr(ino, b"trusted.a", b"1")
    local.vfs.setxattr(ino, b"user.a", b"1")
    assert local.vfs.listxattr(ino, Caller(uid=5)) == [b"user.a"]
    assert sorted(local.vfs.listxattr(ino)) == [b"trusted.a", b"user.a"]


def test_computed_ones_are_readable_and_not_listed(local: Local) -> None:
    vfs = local.vfs
    data = b"x" * (3 << 20)
    ino = local.put("/a", data)
    row = local.namespace.inode(ino)
    assert row is not None
    assert vfs.getxattr(ino, b"user.dfs.manifest") == row.root.hex().encode()
    assert vfs.getxattr(ino, b"user.dfs.version") == b"%d.%d" % (row.node, row.seq)
    assert vfs.getxattr(ino, b"user.dfs.chunks") == b"3/3"
    assert vfs.getxattr(ino, b"user.dfs.local") == b"%d" % len(data)
    assert vfs.getxattr(ROOT_INO, b"user.dfs.replicas") == b"3"
    assert error_of(lambda: vfs.getxattr(ino, b"user.dfs.none")) == "ENODATA"
    assert error_of(lambda: vfs.getxattr(ROOT_INO, b"user.dfs.local")) == "ENODATA"
    assert vfs.listxattr(ino) == []


def test_a_directory_says_how_many_copies_are_kept_below_it(local: Local) -> None:
    vfs, name = local.vfs, b"user.dfs.replicas"
    top, deep = local.mkdir("/top"), local.mkdir("/top/deep")
    file, other = local.put("/top/deep/file"), local.put("/other")

    def told() -> list[int]:
        return [int(vfs.getxattr(ino, name)) for ino in (top, deep, file, other)]

    assert told() == [3, 3, 3, 3]
    vfs.setxattr(top, name, b"5")
    assert told() == [5, 5, 5, 3]
    vfs.setxattr(deep, name, b"100", CREATE)
    assert told() == [5, 100, 100, 3]
    assert error_of(lambda: vfs.setxattr(deep, name, b"1", CREATE)) == "EEXIST"
    assert vfs.listxattr(deep) == []
    vfs.rename(deep, b"file", ROOT_INO, b"file", 0)
    assert told() == [5, 100, 3, 3]
    vfs.link(other, top, b"second name")
    assert told() == [5, 100, 3, 5]
    vfs.setxattr(ROOT_INO, name, b"2")
    vfs.removexattr(deep, name)
    assert told() == [5, 5, 2, 5]
    assert error_of(lambda: vfs.removexattr(deep, name)) == "ENODATA"


@pytest.mark.parametrize(
    "value", [b"", b"0", b"01", b"101", b"1000", b"-1", b"3\n", b"3\0", b"many"]
)
def test_other_numbers_of_copies_are_refused(local: Local, value: bytes) -> None:
    name = b"user.dfs.replicas"
    assert error_of(lambda: local.vfs.setxattr(ROOT_INO, name, value)) == "EINVAL"


def test_only_directories_say_how_many_copies_are_kept(local: Local) -> None:
    vfs, name = local.vfs, b"user.dfs.replicas"
    file = local.put("/a")
    assert error_of(lambda: vfs.setxattr(file, name, b"2")) == "EPERM"
    assert error_of(lambda: vfs.removexattr(file, name)) == "EPERM"
