"""rename and renameat2."""

from __future__ import annotations

import os
from errno import (
    EACCES,
    EBUSY,
    EEXIST,
    EINVAL,
    EISDIR,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
)

from tests.posix import libc
from tests.posix.scene import (
    KINDS,
    Child,
    Scene,
    add,
    case,
    fails,
    in_child,
    read_file,
    same,
)


def _keeps_everything(t: Scene, kind: str) -> None:
    path, new = t.make(kind, "old"), t.path("new")
    before = os.lstat(path)
    os.rename(path, new)
    after = os.lstat(new)
    fails(ENOENT, os.lstat, path)
    fields = ("st_ino", "st_mode", "st_uid", "st_nlink", "st_size", "st_mtime_ns")
    for field in fields:
        same(getattr(after, field), getattr(before, field), field)


def _replaces(t: Scene, kind: str, victim: str) -> None:
    path, new = t.make(kind, "old"), t.make(victim, "new")
    number = os.lstat(path).st_ino
    os.rename(path, new)
    same(os.lstat(new).st_ino, number)
    fails(ENOENT, os.lstat, path)
    same(os.listdir(t.top), [b"new"])


for _kind in KINDS:
    add(f"rename.keeps_{_kind}", lambda t, kind=_kind: _keeps_everything(t, kind))
    if _kind != "directory":
        add(
            f"rename.{_kind}_over_file",
            lambda t, kind=_kind: _replaces(t, kind, "regular"),
        )
        add(
            f"rename.file_over_{_kind}",
            lambda t, kind=_kind: _replaces(t, "regular", kind),
        )


@case("rename")
def directory_over_empty_directory(t: Scene) -> None:
    _replaces(t, "directory", "directory")


@case("rename")
def directory_over_full_directory(t: Scene) -> None:
    old, new = t.directory("old"), t.directory("new")
    t.file("new/inside")
    fails({ENOTEMPTY, EEXIST}, os.rename, old, new)
    same(sorted(os.listdir(t.top)), [b"new", b"old"])


@case("rename")
def directory_over_others(t: Scene) -> None:
    old = t.directory("old")
    for kind in KINDS:
        if kind != "directory":
            fails(ENOTDIR, os.rename, old, t.make(kind, kind))


@case("rename")
def others_over_directory(t: Scene) -> None:
    new = t.directory("new")
    for kind in KINDS:
        if kind != "directory":
            fails(EISDIR, os.rename, t.make(kind, kind), new)


@case("rename")
def into_own_subdirectory(t: Scene) -> None:
    path = t.directory()
    t.directory("dir/sub")
    fails(EINVAL, os.rename, path, t.path("dir/new"))
    fails(EINVAL, os.rename, path, t.path("dir/sub/new"))
    fails(EINVAL, os.rename, path, t.path("dir/sub"))


@case("rename")
def over_own_ancestor(t: Scene) -> None:
    t.directory()
    path = t.directory("dir/sub")
    fails({ENOTEMPTY, EEXIST}, os.rename, path, t.path("dir"))


@case("rename")
def dot_and_dot_dot(t: Scene) -> None:
    path = t.directory()
    fails({EINVAL, EBUSY}, os.rename, path + b"/.", t.path("new"))
    fails({EINVAL, EBUSY}, os.rename, path + b"/..", t.path("new"))


@case("rename")
def to_itself_does_nothing(t: Scene) -> None:
    path = t.file(data=b"1")
    os.rename(path, path)
    same(read_file(path), b"1")
    directory = t.directory()
    os.rename(directory, directory)


@case("rename")
def between_links_of_one_file_does_nothing(t: Scene) -> None:
    path, other = t.file("one", b"1"), t.path("two")
    os.link(path, other)
    os.rename(path, other)
    same(sorted(os.listdir(t.top)), [b"one", b"two"])
    same(os.stat(path).st_nlink, 2)


@case("rename")
def over_a_linked_file_lowers_its_count(t: Scene) -> None:
    path, other = t.file("victim"), t.path("other")
    os.link(path, other)
    os.rename(t.file("new"), path)
    same(os.stat(other).st_nlink, 1)


@case("rename")
def moves_times_of_both_parents(t: Scene) -> None:
    old, new = t.directory("old"), t.directory("new")
    t.file("old/file")
    moved = t.moved(
        old,
        lambda: same(
            t.moved(new, lambda: os.rename(t.path("old/file"), t.path("new/file"))),
            {"mtime", "ctime"},
        ),
    )
    same(moved, {"mtime", "ctime"})


@case("rename")
def moves_ctime_of_the_file(t: Scene) -> None:
    path = t.file()
    before = os.stat(path)
    t.tick()
    os.rename(path, t.path("new"))
    after = os.stat(t.path("new"))
    same(after.st_mtime_ns, before.st_mtime_ns)
    same(after.st_ctime_ns > before.st_ctime_ns, True)


@case("rename")
def failed_changes_no_times(t: Scene) -> None:
    path = t.file()
    t.directory()
    same(t.moved(t.top, lambda: fails(EISDIR, os.rename, path, t.path("dir"))), set())


@case("rename")
def of_directory_between_parents_moves_link_counts(t: Scene) -> None:
    old, new = t.directory("old"), t.directory("new")
    t.directory("old/sub")
    t.file("old/sub/file", b"inside")
    os.rename(t.path("old/sub"), t.path("new/sub"))
    same((os.stat(old).st_nlink, os.stat(new).st_nlink), (2, 3))
    same(read_file(t.path("new/sub/file")), b"inside")
    parent = os.stat(t.path("new/sub/..")).st_ino
    same(parent, os.stat(new).st_ino)


@case("rename")
def over_directory_in_other_parent_moves_link_counts(t: Scene) -> None:
    old, new = t.directory("old"), t.directory("new")
    t.directory("old/sub")
    t.directory("new/sub")
    os.rename(t.path("old/sub"), t.path("new/sub"))
    same((os.stat(old).st_nlink, os.stat(new).st_nlink), (2, 3))


@case("rename")
def over_open_file_keeps_the_old_data(t: Scene) -> None:
    path = t.file("target", b"old content")
    fd = os.open(path, os.O_RDWR)
    os.rename(t.file("new", b"new"), path)
    same(read_file(path), b"new")
    same(os.pread(fd, 20, 0), b"old content")
    os.pwrite(fd, b"OLD", 0)
    same(os.pread(fd, 20, 0), b"OLD content")
    same(os.fstat(fd).st_nlink, 0)
    same(os.listdir(t.top), [b"target"])
    os.close(fd)
    same(read_file(path), b"new")


@case("rename")
def of_open_file_is_followed(t: Scene) -> None:
    path = t.file(data=b"1")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.rename(path, t.path("moved"))
    os.write(fd, b"2")
    os.fsync(fd)
    os.close(fd)
    same(read_file(t.path("moved")), b"12")
    same(os.listdir(t.top), [b"moved"])


@case("rename")
def of_parent_of_open_file(t: Scene) -> None:
    t.directory()
    path = t.file("dir/file", b"1")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    os.rename(t.path("dir"), t.path("moved"))
    os.write(fd, b"2")
    same(os.fstat(fd).st_size, 2)
    os.close(fd)
    same(read_file(t.path("moved/file")), b"12")


@case("rename")
def unwritable_directories(t: Scene) -> None:
    t.directory("closed", 0o755)
    t.directory("open", 0o777)
    t.file("closed/a", uid=t.alice.uid)
    t.file("open/b", uid=t.alice.uid)
    t.alice.fails(EACCES, os.rename, t.path("closed/a"), t.path("open/a"))
    t.alice.fails(EACCES, os.rename, t.path("open/b"), t.path("closed/b"))
    t.alice(os.rename, t.path("open/b"), t.path("open/c"))


@case("rename")
def foreign_directory_needs_write_to_change_its_parent(t: Scene) -> None:
    t.directory("one", 0o777)
    t.directory("two", 0o777)
    t.directory("one/sub", 0o755)
    t.alice.fails({EACCES, EPERM}, os.rename, t.path("one/sub"), t.path("two/sub"))
    t.alice(os.rename, t.path("one/sub"), t.path("one/renamed"))


@case("rename")
def sticky_source(t: Scene) -> None:
    t.directory("sticky", 0o1777)
    t.file("sticky/a", uid=t.alice.uid)
    t.bob.fails({EPERM, EACCES}, os.rename, t.path("sticky/a"), t.path("sticky/b"))
    t.alice(os.rename, t.path("sticky/a"), t.path("sticky/b"))


@case("rename")
def sticky_target(t: Scene) -> None:
    t.directory("sticky", 0o1777)
    t.directory("open", 0o777)
    t.file("sticky/a", uid=t.alice.uid)
    t.file("open/b", uid=t.bob.uid)
    t.bob.fails({EPERM, EACCES}, os.rename, t.path("open/b"), t.path("sticky/a"))


@case("rename")
def reader_never_misses_a_replaced_name(t: Scene) -> None:
    path = t.file("target", b"0")

    def watch() -> None:
        for _ in range(400):
            same(len(read_file(path)), 1)

    def replace() -> None:
        for number in range(400):
            fresh = t.path(b"fresh")
            with open(fresh, "wb") as stream:
                stream.write(b"%d" % (number % 10))
            os.rename(fresh, path)

    child = Child(replace)
    try:
        in_child(lambda: None, watch)
    finally:
        child.join()


@case("renameat2")
def noreplace(t: Scene) -> None:
    one, two = t.file("one", b"1"), t.file("two", b"2")
    fails(EEXIST, libc.renameat2, one, two, libc.RENAME_NOREPLACE)
    same((read_file(one), read_file(two)), (b"1", b"2"))
    libc.renameat2(one, t.path("three"), libc.RENAME_NOREPLACE)
    same(read_file(t.path("three")), b"1")


@case("renameat2")
def exchange_files(t: Scene) -> None:
    one, two = t.file("one", b"1"), t.file("two", b"22")
    numbers = os.stat(one).st_ino, os.stat(two).st_ino
    libc.renameat2(one, two, libc.RENAME_EXCHANGE)
    same((read_file(one), read_file(two)), (b"22", b"1"))
    same((os.stat(two).st_ino, os.stat(one).st_ino), numbers)


@case("renameat2")
def exchange_file_and_directory(t: Scene) -> None:
    path = t.file("one", b"1")
    t.directory("parent")
    directory = t.directory("parent/two")
    t.file("parent/two/inside")
    links = os.stat(t.top).st_nlink
    libc.renameat2(path, directory, libc.RENAME_EXCHANGE)
    same(os.listdir(path), [b"inside"])
    same(read_file(directory), b"1")
    same(os.stat(t.top).st_nlink, links + 1)
    same(os.stat(t.path("parent")).st_nlink, 2)


@case("renameat2")
def exchange_with_missing(t: Scene) -> None:
    one = t.file("one")
    fails(ENOENT, libc.renameat2, one, t.path("none"), libc.RENAME_EXCHANGE)


@case("renameat2")
def exchange_with_own_ancestor(t: Scene) -> None:
    t.directory("a")
    path = t.directory("a/b")
    fails(EINVAL, libc.renameat2, path, t.path("a"), libc.RENAME_EXCHANGE)
    fails(EINVAL, libc.renameat2, t.path("a"), path, libc.RENAME_EXCHANGE)


@case("renameat2")
def unknown_flags(t: Scene) -> None:
    one = t.file("one")
    fails(EINVAL, libc.renameat2, one, t.path("two"), 1 << 20)
    both = libc.RENAME_NOREPLACE | libc.RENAME_EXCHANGE
    fails(EINVAL, libc.renameat2, one, t.path("two"), both)
