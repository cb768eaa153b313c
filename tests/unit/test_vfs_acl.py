"""Access control lists of the vfs: beside unpublished writes, of files without a name,
and where the mount has none."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusefs.errors import FsError
from fusefs.model import acl
from fusefs.model.acl import ACCESS, DEFAULT, Entry
from fusefs.model.ids import ROOT_INO, Ino
from fusefs.vfs.options import VfsOptions
from fusefs.vfs.types import Caller, SetAttr
from tests.lib.local import Local, local_vfs

ROOT = Caller(umask=0o027)


def the_list(owner: int, user: int, group: int, mask: int, other: int) -> acl.Acl:
    """With an entry for user 7."""
    return (
        Entry(acl.USER_OBJ, owner),
        Entry(acl.USER, user, 7),
        Entry(acl.GROUP_OBJ, group),
        Entry(acl.MASK, mask),
        Entry(acl.OTHER, other),
    )


WIDE = acl.encode(the_list(7, 7, 7, 7, 7))
PLAIN = acl.encode(
    (Entry(acl.USER_OBJ, 6), Entry(acl.GROUP_OBJ, 4), Entry(acl.OTHER, 0))
)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with local_vfs(tmp_path / "s", VfsOptions(acl=True)) as made:
        made.caller = ROOT
        yield made


def mode_of(local: Local, ino: Ino) -> int:
    return stat.S_IMODE(local.vfs.getattr(ino).mode)


def shown(local: Local, ino: Ino, name: bytes = ACCESS) -> acl.Acl:
    return acl.decode(local.vfs.getxattr(ino, name))


def error_of(call: Callable[[], object]) -> int:
    with pytest.raises(FsError) as caught:
        call()
    return caught.value.errno or 0


def test_a_list_and_the_mode_follow_each_other(local: Local) -> None:
    ino = local.put("/a", mode=0o600)
    assert error_of(lambda: local.vfs.getxattr(ino, ACCESS)) == errno.ENODATA
    local.vfs.setxattr(ino, ACCESS, acl.encode(the_list(6, 7, 4, 5, 1)))
    assert mode_of(local, ino) == 0o651
    assert local.vfs.listxattr(ino) == [ACCESS]
    local.vfs.setattr(ino, SetAttr(mode=0o4720), ROOT)
    assert shown(local, ino) == the_list(7, 7, 4, 2, 0)
    local.vfs.setxattr(ino, ACCESS, PLAIN)
    assert mode_of(local, ino) == 0o4640
    assert local.vfs.listxattr(ino) == []
    local.vfs.setxattr(ino, ACCESS, WIDE)
    for _ in range(2):  # there is nothing to remove the second time
        local.vfs.removexattr(ino, ACCESS)
    assert mode_of(local, ino) == 0o4777
    assert error_of(lambda: local.vfs.getxattr(ino, ACCESS)) == errno.ENODATA


def test_an_empty_list_removes_it(local: Local) -> None:
    ino = local.mkdir("/d")
    for name in acl.NAMES:
        local.vfs.setxattr(ino, name, WIDE)
        local.vfs.setxattr(ino, name, acl.encode(()))
        assert (
            error_of(lambda name=name: local.vfs.getxattr(ino, name)) == errno.ENODATA
        )


def test_the_set_gid_bit_goes_where_the_kernel_says_so(local: Local) -> None:
    ino = local.put("/a")
    local.vfs.setattr(ino, SetAttr(mode=0o6755), ROOT)
    local.vfs.setxattr(ino, ACCESS, WIDE)
    assert mode_of(local, ino) == 0o6777
    local.vfs.setxattr(ino, ACCESS, WIDE, kill_sgid=True)
    assert mode_of(local, ino) == 0o4777


def test_what_a_default_is_given_to(local: Local) -> None:
    default = acl.encode(the_list(7, 7, 5, 7, 0))
    top = local.mkdir("/top")
    local.vfs.setxattr(top, DEFAULT, default)
    file, below = local.put("/top/f", mode=0o666), local.mkdir("/top/d", 0o775)
    assert (mode_of(local, file), mode_of(local, below)) == (0o660, 0o770)
    assert shown(local, file) == the_list(6, 7, 5, 6, 0)
    assert shown(local, below) == the_list(7, 7, 5, 7, 0)
    assert local.vfs.getxattr(below, DEFAULT) == default
    assert error_of(lambda: local.vfs.getxattr(file, DEFAULT)) == errno.ENODATA
    link = local.vfs.symlink(top, b"l", b"f", ROOT)
    assert (stat.S_IMODE(link.mode), local.vfs.listxattr(link.ino)) == (0o777, [])
    local.vfs.removexattr(top, DEFAULT)
    assert mode_of(local, local.put("/top/g", mode=0o666)) == 0o640  # the umask


def test_a_default_that_is_a_mode_leaves_no_list(local: Local) -> None:
    top = local.mkdir("/top")
    local.vfs.setxattr(top, DEFAULT, PLAIN)
    file = local.put("/top/f", mode=0o777)
    assert (mode_of(local, file), local.vfs.listxattr(file)) == (0o640, [])


def test_a_mode_that_waits_with_writes_is_older_than_a_list(local: Local) -> None:
    handle = local.create("/a", b"data")
    ino = local.walk("/a")
    local.vfs.setattr(ino, SetAttr(mode=0o600), ROOT, handle)
    local.vfs.setxattr(ino, ACCESS, WIDE)
    assert mode_of(local, ino) == 0o777
    local.vfs.write(handle, 0, b"more", ROOT)
    local.vfs.setattr(ino, SetAttr(mode=0o610), ROOT, handle)
    assert shown(local, ino) == the_list(6, 7, 7, 1, 0)
    local.close(handle)
    assert shown(local, ino) == the_list(6, 7, 7, 1, 0)


def test_files_without_a_name_have_lists(local: Local) -> None:
    top = local.mkdir("/top")
    local.vfs.setxattr(top, DEFAULT, WIDE)
    opened = local.vfs.tmpfile(top, 0o666, os.O_RDWR, ROOT)
    ino = opened.attr.ino
    assert (mode_of(local, ino), shown(local, ino)) == (0o666, the_list(6, 7, 7, 6, 6))
    local.vfs.setxattr(ino, ACCESS, acl.encode(the_list(7, 0, 1, 5, 0)))
    assert mode_of(local, ino) == 0o750
    local.vfs.link(ino, ROOT_INO, b"named")
    assert shown(local, local.walk("/named")) == the_list(7, 0, 1, 5, 0)
    local.vfs.unlink(ROOT_INO, b"named", ROOT)
    local.vfs.setxattr(ino, ACCESS, PLAIN)
    assert (mode_of(local, ino), local.vfs.listxattr(ino)) == (0o640, [])
    local.close(opened.handle)


def test_what_takes_no_list(local: Local) -> None:
    vfs = local.vfs
    ino = local.put("/a")
    link = vfs.symlink(ROOT_INO, b"l", b"a", ROOT).ino
    assert error_of(lambda: vfs.setxattr(ino, DEFAULT, WIDE)) == errno.EACCES
    assert error_of(lambda: vfs.setxattr(link, ACCESS, WIDE)) == errno.EOPNOTSUPP
    assert error_of(lambda: vfs.setxattr(ino, ACCESS, WIDE[:-1])) == errno.EINVAL
    assert error_of(lambda: vfs.setxattr(ino, b"system.x", b"")) == errno.EOPNOTSUPP


def test_a_mount_without_lists_keeps_them(tmp_path: Path) -> None:
    """Files made there are below the default as anywhere, and chmod counts."""
    with local_vfs(tmp_path / "s", VfsOptions(acl=True)) as local:
        top, file = local.mkdir("/top"), local.put("/a")
        local.vfs.setxattr(top, DEFAULT, WIDE)
        local.vfs.setxattr(file, ACCESS, WIDE)
    with local_vfs(tmp_path / "s", root=False) as local:
        local.caller = ROOT
        for name in acl.NAMES:
            for call in (
                lambda name=name: local.vfs.getxattr(top, name),
                lambda name=name: local.vfs.setxattr(top, name, WIDE),
                lambda name=name: local.vfs.removexattr(top, name),
            ):
                assert error_of(call) == errno.EOPNOTSUPP
        assert local.vfs.listxattr(file) == []
        below = local.put("/top/f", mode=0o666)
        local.vfs.setattr(file, SetAttr(mode=0o700), ROOT)
        assert mode_of(local, local.put("/g", mode=0o666)) == 0o666  # kernel's umask
    with local_vfs(tmp_path / "s", VfsOptions(acl=True), root=False) as local:
        assert shown(local, below) == the_list(6, 7, 7, 6, 6)
        assert shown(local, file) == the_list(7, 7, 7, 0, 0)
