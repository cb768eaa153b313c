"""Making, naming, moving and removing entries: results, errnos and times."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from fusefs.errors import FsError
from fusefs.model.ids import ROOT_INO, Ino
from fusefs.vfs import VfsOptions
from fusefs.vfs.tree import EXCHANGE, NOREPLACE
from fusefs.vfs.types import NOW, Caller, SetAttr
from tests.lib.local import Local, local_vfs

ROOT = Caller(uid=0, gid=0)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with local_vfs(tmp_path / "s") as made:
        yield made


def error_of(call: Callable[[], object]) -> str:
    """The errno's name, or "" when the call works."""
    try:
        call()
    except FsError as error:
        assert error.errno is not None
        return errno.errorcode[error.errno]
    return ""


# -- names ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a" * 255, ""),
        (b"a" * 256, "ENAMETOOLONG"),
        (b"\xff\xfe\n ", ""),
        (b"a/b", "EINVAL"),
        (b"a\0b", "EINVAL"),
        (b"", "EINVAL"),
        (b".", "EINVAL"),
    ],
)
def test_names_are_any_bytes_but_slash_and_nul(
    local: Local, name: bytes, expected: str
) -> None:
    vfs, user = local.vfs, local.caller
    assert error_of(lambda: vfs.mkdir(ROOT_INO, name, 0o755, user)) == expected
    if not expected:
        assert vfs.lookup(ROOT_INO, name).nlink == 2


def test_lookup_says_why_nothing_is_there(local: Local) -> None:
    ino = local.put("/file")
    vfs = local.vfs
    assert error_of(lambda: vfs.lookup(ROOT_INO, b"no")) == "ENOENT"
    assert error_of(lambda: vfs.lookup(ROOT_INO, b"n" * 256)) == "ENAMETOOLONG"
    assert error_of(lambda: vfs.lookup(ino, b"x")) == "ENOTDIR"
    assert error_of(lambda: vfs.getattr(Ino(12345))) == "ESTALE"
    assert vfs.lookup(ROOT_INO, b".").ino == vfs.lookup(ROOT_INO, b"..").ino == ROOT_INO


def test_every_type_can_be_made(local: Local) -> None:
    vfs, user = local.vfs, local.caller
    for name, kind in (
        (b"reg", stat.S_IFREG),
        (b"fifo", stat.S_IFIFO),
        (b"sock", stat.S_IFSOCK),
        (b"blk", stat.S_IFBLK),
        (b"chr", stat.S_IFCHR),
    ):
        attr = vfs.mknod(ROOT_INO, name, kind | 0o640, os.makedev(7, 9), user)
        assert attr.mode == kind | 0o640
        assert (attr.uid, attr.gid, attr.nlink) == (1000, 1000, 1)
    assert vfs.lookup(ROOT_INO, b"blk").rdev == os.makedev(7, 9)
    for kind in (stat.S_IFDIR, stat.S_IFLNK):
        assert error_of(lambda k=kind: vfs.mknod(1, b"x", k, 0, user)) == "EINVAL"  # type: ignore[misc]
    link = vfs.symlink(ROOT_INO, b"link", b"to/there", user)
    assert vfs.readlink(link.ino) == b"to/there"
    assert (link.size, link.mode) == (8, stat.S_IFLNK | 0o777)
    assert error_of(lambda: vfs.symlink(ROOT_INO, b"l", b"", user)) == "ENOENT"
    assert error_of(lambda: vfs.symlink(1, b"l", b"x" * 4096, user)) == "ENAMETOOLONG"
    assert error_of(lambda: vfs.readlink(ROOT_INO)) == "EINVAL"


def test_making_what_exists_or_below_what_is_not_a_directory(local: Local) -> None:
    vfs, user = local.vfs, local.caller
    ino = local.put("/file", b"x")
    for name in (b"file",):
        assert error_of(lambda n=name: vfs.mkdir(1, n, 0o755, user)) == "EEXIST"  # type: ignore[misc]
        assert error_of(lambda n=name: vfs.symlink(1, n, b"t", user)) == "EEXIST"  # type: ignore[misc]
        assert error_of(lambda n=name: vfs.link(ino, 1, n)) == "EEXIST"  # type: ignore[misc]
    excl = os.O_RDWR | os.O_EXCL
    assert error_of(lambda: vfs.create(1, b"file", 0o644, excl, user)) == "EEXIST"
    opened = vfs.create(ROOT_INO, b"file", 0o644, os.O_RDWR, user)
    assert opened.attr.ino == ino
    local.close(opened.handle)
    assert error_of(lambda: vfs.mkdir(ino, b"d", 0o755, user)) == "ENOTDIR"
    assert error_of(lambda: vfs.mkdir(Ino(99), b"d", 0o755, user)) == "ENOENT"
    assert error_of(lambda: vfs.opendir(ino)) == "ENOTDIR"
    assert error_of(lambda: vfs.open(ROOT_INO, os.O_WRONLY, user)) == "EISDIR"


# -- times, links, inheritance ------------------------------------------------------


def moved(local: Local, path: str, work: Callable[[], object]) -> str:
    """Which times of `path` the work moved: "m", "c", both or none."""
    before = local.stat(path)
    work()
    after = local.stat(path)
    return ("m" if after.mtime_ns > before.mtime_ns else "") + (
        "c" if after.ctime_ns > before.ctime_ns else ""
    )


def test_parents_move_with_every_change_of_their_names(local: Local) -> None:
    vfs, user = local.vfs, local.caller
    d = local.mkdir("/d")
    e = local.mkdir("/e")
    ino = local.put("/file")
    assert moved(local, "/d", lambda: vfs.mkdir(d, b"sub", 0o755, user)) == "mc"
    assert moved(local, "/d", lambda: local.put("/d/f")) == "mc"
    assert moved(local, "/d", lambda: vfs.symlink(d, b"l", b"t", user)) == "mc"
    assert moved(local, "/d", lambda: vfs.link(ino, d, b"hard")) == "mc"
    assert moved(local, "/d", lambda: vfs.unlink(d, b"l")) == "mc"
    assert moved(local, "/d", lambda: vfs.rmdir(d, b"sub")) == "mc"
    assert moved(local, "/d", lambda: vfs.rename(d, b"f", d, b"g")) == "mc"
    assert moved(local, "/e", lambda: vfs.rename(d, b"g", e, b"g")) == "mc"
    assert moved(local, "/d", lambda: vfs.rename(e, b"g", d, b"g")) == "mc"
    assert moved(local, "/d", lambda: local.put("/e/other")) == ""


def test_link_unlink_rename_move_only_ctime_of_the_inode(local: Local) -> None:
    vfs = local.vfs
    ino = local.put("/a", b"x")
    assert moved(local, "/a", lambda: vfs.link(ino, ROOT_INO, b"b")) == "c"
    assert local.stat("/b").nlink == 2
    assert moved(local, "/a", lambda: vfs.unlink(ROOT_INO, b"b")) == "c"
    assert local.stat("/a").nlink == 1
    before = local.stat("/a")
    vfs.rename(ROOT_INO, b"a", ROOT_INO, b"c")
    after = local.stat("/c")
    assert (after.mtime_ns, after.ino) == (before.mtime_ns, before.ino)
    assert after.ctime_ns > before.ctime_ns


def test_directories_count_their_subdirectories(local: Local) -> None:
    local.mkdir("/d")
    assert local.stat("/d").nlink == 2
    local.mkdir("/d/one")
    local.mkdir("/d/two")
    assert local.stat("/d").nlink == 4
    local.vfs.rmdir(local.walk("/d"), b"one")
    assert local.stat("/d").nlink == 3
    local.vfs.rename(local.walk("/d"), b"two", ROOT_INO, b"two")
    assert local.stat("/d").nlink == 2
    assert local.stat("/").nlink == 4


def test_setgid_directories_pass_group_and_bit_on(local: Local) -> None:
    vfs = local.vfs
    d = local.mkdir("/d")
    vfs.setattr(d, SetAttr(mode=0o2775, gid=77), ROOT)
    assert local.stat("/d").mode & 0o7777 == 0o2775
    made = vfs.mkdir(d, b"sub", 0o755, local.caller)
    assert (made.gid, made.mode & 0o7777) == (77, 0o2755)
    opened = vfs.create(d, b"f", 0o640, os.O_RDWR, local.caller)
    assert (opened.attr.gid, opened.attr.mode & 0o7777) == (77, 0o640)
    local.close(opened.handle)


def test_link_limits(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s", VfsOptions(link_max=3)) as local:
        vfs = local.vfs
        ino = local.put("/a")
        d = local.mkdir("/d")
        vfs.link(ino, d, b"2")
        vfs.link(ino, d, b"3")
        assert error_of(lambda: vfs.link(ino, d, b"4")) == "EMLINK"
        assert error_of(lambda: vfs.link(d, ROOT_INO, b"d2")) == "EPERM"
        assert error_of(lambda: vfs.link(Ino(99), ROOT_INO, b"x")) == "ENOENT"


# -- removing -----------------------------------------------------------------------


def test_unlink_and_rmdir_errors(local: Local) -> None:
    vfs = local.vfs
    local.mkdir("/d")
    local.put("/d/f")
    local.put("/f")
    assert error_of(lambda: vfs.unlink(ROOT_INO, b"d")) == "EISDIR"
    assert error_of(lambda: vfs.rmdir(ROOT_INO, b"f")) == "ENOTDIR"
    assert error_of(lambda: vfs.rmdir(ROOT_INO, b"d")) == "ENOTEMPTY"
    assert error_of(lambda: vfs.rmdir(ROOT_INO, b".")) == "EINVAL"
    assert error_of(lambda: vfs.rmdir(ROOT_INO, b"..")) == "ENOTEMPTY"
    assert error_of(lambda: vfs.unlink(ROOT_INO, b"none")) == "ENOENT"
    assert error_of(lambda: vfs.rmdir(ROOT_INO, b"none")) == "ENOENT"
    vfs.unlink(local.walk("/d"), b"f")
    vfs.rmdir(ROOT_INO, b"d")
    assert error_of(lambda: local.walk("/d")) == "ENOENT"


def test_a_removed_directory_is_a_dead_end(local: Local) -> None:
    vfs = local.vfs
    d = local.mkdir("/d")
    handle = vfs.opendir(d)
    vfs.rmdir(ROOT_INO, b"d")
    assert vfs.getattr(d).nlink == 0
    assert error_of(lambda: vfs.mkdir(d, b"x", 0o755, local.caller)) == "ENOENT"
    assert error_of(lambda: vfs.lookup(d, b"x")) == "ENOENT"
    assert [e.name for e in vfs.readdir(handle, 0)] == [b".", b".."]
    vfs.releasedir(handle)
    vfs.forget(d)
    assert error_of(lambda: vfs.getattr(d)) == "ESTALE"


# -- renaming -----------------------------------------------------------------------


def rename_error(local: Local, old: str, new: str, flags: int = 0) -> str:
    a, b = local.split(old), local.split(new)
    return error_of(lambda: local.vfs.rename(*a, *b, flags))


def test_rename_over_everything(local: Local) -> None:
    for path in ("/d", "/empty", "/full"):
        local.mkdir(path)
    for path in ("/f", "/g", "/full/f"):
        local.put(path, path.encode())
    assert rename_error(local, "/none", "/x") == "ENOENT"
    assert rename_error(local, "/f", "/d") == "EISDIR"
    assert rename_error(local, "/d", "/f") == "ENOTDIR"
    assert rename_error(local, "/d", "/full") == "ENOTEMPTY"
    assert rename_error(local, "/d", "/d/below") == "EINVAL"
    assert rename_error(local, "/f", "/x" * 1 + "y" * 256) == "ENAMETOOLONG"
    assert rename_error(local, "/f", "/g", NOREPLACE) == "EEXIST"
    assert rename_error(local, "/f", "/new", EXCHANGE) == "ENOENT"
    assert rename_error(local, "/f", "/g", NOREPLACE | EXCHANGE) == "EINVAL"
    assert rename_error(local, "/f", "/g", 4) == "EINVAL"
    assert rename_error(local, "/d", "/empty") == ""
    assert rename_error(local, "/f", "/g") == ""
    assert local.cat("/g") == b"/f"
    assert rename_error(local, "/g", "/fresh", NOREPLACE) == ""
    assert [e.name for e in local.listing()] == [b"empty", b"fresh", b"full"]


def test_rename_deep_below_itself_is_refused(local: Local) -> None:
    local.mkdir("/a")
    local.mkdir("/a/b")
    local.mkdir("/a/b/c")
    assert rename_error(local, "/a", "/a/b/c/d") == "EINVAL"
    local.mkdir("/x")
    assert rename_error(local, "/x", "/a/b", EXCHANGE) == ""
    assert rename_error(local, "/a", "/a/b", EXCHANGE) == "EINVAL"


def test_rename_to_another_name_of_the_same_file_does_nothing(local: Local) -> None:
    ino = local.put("/a", b"x")
    local.vfs.link(ino, ROOT_INO, b"b")
    assert rename_error(local, "/a", "/b") == ""
    assert local.stat("/a").nlink == 2
    assert rename_error(local, "/a", "/a") == ""


def test_exchange_swaps_files_and_directories(local: Local) -> None:
    local.mkdir("/d")
    local.put("/d/in", b"in")
    local.put("/f", b"f")
    local.mkdir("/sub")
    assert rename_error(local, "/d", "/f", EXCHANGE) == ""
    assert local.cat("/d") == b"f"
    assert local.cat("/f/in") == b"in"
    assert rename_error(local, "/f", "/sub/x") == ""
    assert rename_error(local, "/d", "/sub/x", EXCHANGE) == ""
    assert local.cat("/sub/x") == b"f"
    assert local.stat("/").nlink == 4


# -- attributes ---------------------------------------------------------------------


def test_chmod_keeps_the_type_and_moves_ctime(local: Local) -> None:
    ino = local.put("/a")
    change = SetAttr(mode=0o7654)
    assert moved(local, "/a", lambda: local.vfs.setattr(ino, change, ROOT)) == "c"
    assert local.stat("/a").mode == stat.S_IFREG | 0o7654


@pytest.mark.parametrize(
    ("mode", "after"), [(0o6755, 0o755), (0o4644, 0o644), (0o2644, 0o2644)]
)
def test_chown_and_flagged_writes_clear_set_id(
    local: Local, mode: int, after: int
) -> None:
    vfs = local.vfs

    def mode_after(path: str, work: Callable[[Ino], object]) -> int:
        ino = local.put(path, b"data")
        vfs.setattr(ino, SetAttr(mode=mode), ROOT)
        vfs.setxattr(ino, b"security.capability", b"x")
        work(ino)
        assert error_of(lambda: vfs.getxattr(ino, b"security.capability")) == (
            "" if path == "/empty" else "ENODATA"
        )
        return vfs.getattr(ino).mode & 0o7777

    def write(ino: Ino) -> None:
        handle = vfs.open(ino, os.O_RDWR, local.caller).handle
        vfs.write(handle, 0, b"x", local.caller, kill_suid=True)
        local.close(handle)

    assert mode_after("/chown", lambda i: vfs.setattr(i, SetAttr(uid=5), ROOT)) == after
    assert mode_after("/chgrp", lambda i: vfs.setattr(i, SetAttr(gid=5), ROOT)) == after
    assert mode_after("/write", write) == after
    kill = SetAttr(size=1, kill_suid=True)
    assert mode_after("/cut", lambda i: vfs.setattr(i, kill, local.caller)) == after
    assert mode_after("/empty", lambda i: vfs.setattr(i, SetAttr(), ROOT)) == after
    keep = SetAttr(size=1)
    assert mode_after("/keep", lambda i: vfs.setattr(i, keep, ROOT)) == mode


def test_utimens_sets_nanoseconds_now_and_omit(local: Local) -> None:
    vfs = local.vfs
    ino = local.put("/a", b"x")
    vfs.setattr(ino, SetAttr(atime_ns=1_000_000_001, mtime_ns=2_000_000_002), ROOT)
    attr = local.stat("/a")
    assert (attr.atime_ns, attr.mtime_ns) == (1_000_000_001, 2_000_000_002)
    vfs.setattr(ino, SetAttr(mtime_ns=NOW), ROOT)
    attr = local.stat("/a")
    assert attr.atime_ns == 1_000_000_001
    assert attr.mtime_ns > 10**18
    vfs.setattr(ino, SetAttr(atime_ns=5), ROOT)
    assert local.stat("/a").mtime_ns == attr.mtime_ns
    assert local.stat("/a").atime_ns == 5


def test_times_set_between_write_and_close_survive_it(local: Local) -> None:
    """cp -p, tar and rsync set times before closing."""
    handle = local.create("/a", b"data")
    ino = local.walk("/a")
    local.vfs.setattr(ino, SetAttr(atime_ns=7, mtime_ns=9), local.caller, handle)
    before = local.stat("/a")
    assert (before.atime_ns, before.mtime_ns) == (7, 9)
    local.close(handle)
    after = local.stat("/a")
    assert (after.atime_ns, after.mtime_ns) == (7, 9)
    assert local.vfs.statistics().commits == 2


def test_atime_set_alone_after_both_between_write_and_close(local: Local) -> None:
    handle = local.create("/a", b"data")
    ino = local.walk("/a")
    local.vfs.setattr(ino, SetAttr(atime_ns=7, mtime_ns=9), local.caller, handle)
    local.vfs.setattr(ino, SetAttr(atime_ns=5), local.caller, handle)
    before = local.stat("/a")
    assert (before.atime_ns, before.mtime_ns) == (5, 9)
    local.close(handle)
    after = local.stat("/a")
    assert (after.atime_ns, after.mtime_ns) == (5, 9)


def test_stat_before_close_is_stat_after_it(local: Local) -> None:
    """git remembers what fstat said before close."""
    handle = local.create("/a", b"data")
    before = local.stat("/a")
    local.close(handle)
    assert local.stat("/a")[:12] == before[:12]


def test_write_and_truncate_move_mtime_and_ctime(local: Local) -> None:
    ino = local.put("/a", b"12345")
    vfs = local.vfs

    def write() -> None:
        handle = local.open("/a")
        vfs.write(handle, 0, b"x")
        local.close(handle)

    assert moved(local, "/a", write) == "mc"
    for size in (9, 2, 2):
        change = SetAttr(size=size)
        assert moved(local, "/a", lambda c=change: vfs.setattr(ino, c, ROOT)) == "mc"  # type: ignore[misc]
    assert moved(local, "/a", lambda: local.cat("/a")) == ""


def test_truncate_errors(local: Local) -> None:
    vfs = local.vfs
    fifo = vfs.mknod(ROOT_INO, b"p", stat.S_IFIFO | 0o600, 0, ROOT).ino
    assert error_of(lambda: vfs.setattr(fifo, SetAttr(size=0), ROOT)) == "EINVAL"
    assert error_of(lambda: vfs.setattr(ROOT_INO, SetAttr(size=0), ROOT)) == "EISDIR"
    ino = local.put("/a")
    assert error_of(lambda: vfs.setattr(ino, SetAttr(size=-1), ROOT)) == "EINVAL"
    assert error_of(lambda: vfs.setattr(ino, SetAttr(size=1 << 63), ROOT)) == "EFBIG"


def test_read_only_refuses_every_change(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        ino = local.put("/a", b"x")
    with local_vfs(tmp_path / "s", VfsOptions(read_only=True)) as local:
        vfs, user = local.vfs, local.caller
        changes: list[Callable[[], object]] = [
            lambda: vfs.mkdir(ROOT_INO, b"d", 0o755, user),
            lambda: vfs.create(ROOT_INO, b"f", 0o644, os.O_RDWR, user),
            lambda: vfs.open(ino, os.O_WRONLY, user),
            lambda: vfs.open(ino, os.O_RDONLY | os.O_TRUNC, user),
            lambda: vfs.unlink(ROOT_INO, b"a"),
            lambda: vfs.rename(ROOT_INO, b"a", ROOT_INO, b"b"),
            lambda: vfs.link(ino, ROOT_INO, b"b"),
            lambda: vfs.setattr(ino, SetAttr(mode=0o600), user),
            lambda: vfs.setattr(ino, SetAttr(size=0), user),
            lambda: vfs.setxattr(ino, b"user.a", b"b"),
        ]
        assert {error_of(change) for change in changes} == {"EROFS"}
        assert local.cat("/a") == b"x"


def test_cost_of_the_usual_sequences(local: Local) -> None:
    """Transactions: what each operation may spend."""
    commits = local.vfs.statistics
    for work, cost in (
        (lambda: local.put("/a", b"x"), 2),
        (lambda: local.cat("/a"), 0),
        (lambda: local.close(local.open("/a")), 0),
        (lambda: local.put("/empty"), 1),
    ):
        before = commits().commits
        work()
        assert commits().commits - before == cost


def test_one_of_many_names_goes_at_the_cost_of_one_of_few(local: Local) -> None:
    ino, other = local.put("/few"), local.put("/other")
    steps: list[int] = []

    def cost(call: Callable[[], object]) -> int:
        """In hundreds of instructions of the database."""
        db = local.namespace._writer
        steps.clear()
        db.set_progress_handler(lambda: steps.append(1), 100)
        call()
        db.set_progress_handler(None, 0)
        return len(steps)

    def each() -> tuple[int, int]:
        for name, target in ((b"gone", ino), (b"replaced", ino), (b"over", other)):
            local.vfs.link(target, ROOT_INO, name)
        rename = partial(local.vfs.rename, ROOT_INO, b"over", ROOT_INO, b"replaced")
        costs = cost(lambda: local.vfs.unlink(ROOT_INO, b"gone")), cost(rename)
        local.vfs.unlink(ROOT_INO, b"replaced")
        return costs

    few = each()
    for number in range(500):
        local.vfs.link(ino, ROOT_INO, b"%d" % number)
    many = each()
    assert all(b <= a + 5 for a, b in zip(few, many)), (few, many)


@pytest.mark.parametrize("opened_before", [False, True])
def test_access_time_that_was_set_stays_while_the_file_is_written(
    local: Local, opened_before: bool
) -> None:
    """Also one that equals the modification time, as `touch -d` sets them."""
    ino = local.put("/a", b"data")
    handle = local.open("/a") if opened_before else 0
    local.vfs.setattr(ino, SetAttr(atime_ns=5, mtime_ns=5), local.caller)
    handle = handle or local.open("/a")
    local.vfs.write(handle, 0, b"new")
    assert local.stat("/a").atime_ns == 5
    local.close(handle)
    assert local.stat("/a").atime_ns == 5
