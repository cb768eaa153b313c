"""link, unlink, rmdir, symlink, readlink."""

# ruff: noqa: F811  (a case is named group.function, the same function name may recur)

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

from tests.posix.scene import (
    KINDS,
    Scene,
    add,
    case,
    fails,
    in_child,
    read_file,
    same,
    write_file,
)


def _link_and_unlink(t: Scene, kind: str) -> None:
    path = t.make(kind, "one")
    other = t.path("two")
    os.link(path, other, follow_symlinks=False)
    first, second = os.lstat(path), os.lstat(other)
    same((first.st_nlink, second.st_nlink), (2, 2))
    same(first.st_ino, second.st_ino)
    same(first.st_mode, second.st_mode)
    os.unlink(path)
    fails(ENOENT, os.lstat, path)
    same(os.lstat(other).st_nlink, 1)
    os.unlink(other)
    fails(ENOENT, os.lstat, other)


for _kind in KINDS:
    if _kind != "directory":
        add(f"link.{_kind}", lambda t, kind=_kind: _link_and_unlink(t, kind))


@case("link")
def attributes_and_content_are_shared(t: Scene) -> None:
    path, other = t.file("one", b"first"), t.path("two")
    os.link(path, other)
    os.chmod(other, 0o604)
    same(os.stat(path).st_mode & 0o777, 0o604)
    write_file(other, b"second!")
    same(os.stat(path).st_size, 7)
    same(read_file(path), b"second!")
    os.truncate(path, 3)
    same(read_file(other), b"sec")


@case("link")
def moves_ctime_of_the_file_and_times_of_the_parent(t: Scene) -> None:
    path = t.file()
    directory = t.directory()
    same(t.moved(path, lambda: os.link(path, directory + b"/1")), {"ctime"})
    same(
        t.moved(directory, lambda: os.link(path, directory + b"/2")),
        {"mtime", "ctime"},
    )


@case("link")
def onto_existing(t: Scene) -> None:
    path = t.file()
    for kind in KINDS:
        fails(EEXIST, os.link, path, t.make(kind, kind))
    same(os.stat(path).st_nlink, 1)


@case("link")
def of_a_directory(t: Scene) -> None:
    fails(EPERM, os.link, t.directory(), t.path("new"))


@case("link")
def of_missing(t: Scene) -> None:
    fails(ENOENT, os.link, t.path("none"), t.path("new"))


@case("link")
def many(t: Scene) -> None:
    path = t.file(data=b"x")
    for number in range(100):
        os.link(path, t.path(f"link{number}"))
    same(os.stat(path).st_nlink, 101)
    for number in range(100):
        os.unlink(t.path(f"link{number}"))
    same(os.stat(path).st_nlink, 1)
    same(read_file(path), b"x")


@case("link")
def of_symlink_is_the_symlink(t: Scene) -> None:
    t.file()
    link = t.link_to("file")
    os.link(link, t.path("hard"), follow_symlinks=False)
    same(os.readlink(t.path("hard")), b"file")


@case("link")
def across_directories(t: Scene) -> None:
    path = t.file(data=b"data")
    t.directory("a")
    os.link(path, t.path("a/hard"))
    os.unlink(path)
    same(read_file(t.path("a/hard")), b"data")


@case("link")
def unwritable_directory(t: Scene) -> None:
    t.directory("closed", 0o755)
    t.directory("open", 0o777)
    path = t.file("open/file", uid=t.alice.uid)
    t.alice.fails(EACCES, os.link, path, t.path("closed/new"))


@case("unlink")
def moves_ctime_of_what_is_left(t: Scene) -> None:
    path, other = t.file("one"), t.path("two")
    os.link(path, other)
    same(t.moved(other, lambda: os.unlink(path)), {"ctime"})


@case("unlink")
def moves_times_of_the_parent(t: Scene) -> None:
    path = t.file()
    same(t.moved(t.top, lambda: os.unlink(path)), {"mtime", "ctime"})


@case("unlink")
def of_a_directory(t: Scene) -> None:
    fails({EISDIR, EPERM}, os.unlink, t.directory())


@case("unlink")
def of_every_kind(t: Scene) -> None:
    for kind in KINDS:
        if kind != "directory":
            os.unlink(t.make(kind, kind))
    same(os.listdir(t.top), [])


@case("unlink")
def sticky_directory(t: Scene) -> None:
    t.directory("sticky", 0o1777)
    path = t.file("sticky/file", uid=t.alice.uid, mode=0o666)
    t.bob.fails({EPERM, EACCES}, os.unlink, path)
    t.alice(os.unlink, path)


@case("unlink")
def then_create_is_a_new_file(t: Scene) -> None:
    path = t.file(data=b"old", mode=0o600)
    fd = os.open(path, os.O_RDONLY)
    os.unlink(path)
    t.file(data=b"newer")
    same(os.pread(fd, 10, 0), b"old")
    same(read_file(path), b"newer")
    os.close(fd)


@case("rmdir")
def of_an_empty_directory(t: Scene) -> None:
    path = t.directory()
    links = os.stat(t.top).st_nlink
    os.rmdir(path)
    fails(ENOENT, os.stat, path)
    same(os.stat(t.top).st_nlink, links - 1)


@case("rmdir")
def of_a_full_directory(t: Scene) -> None:
    for kind in KINDS:
        path = t.directory(f"dir_{kind}")
        t.make(kind, f"dir_{kind}/inside")
        fails({ENOTEMPTY, EEXIST}, os.rmdir, path)


@case("rmdir")
def of_what_is_no_directory(t: Scene) -> None:
    for kind in KINDS:
        if kind != "directory":
            fails(ENOTDIR, os.rmdir, t.make(kind, kind))


@case("rmdir")
def dot_and_dot_dot(t: Scene) -> None:
    path = t.directory()
    fails(EINVAL, os.rmdir, path + b"/.")
    fails({ENOTEMPTY, EEXIST, EBUSY}, os.rmdir, path + b"/..")


@case("rmdir")
def moves_times_of_the_parent(t: Scene) -> None:
    path = t.directory()
    same(t.moved(t.top, lambda: os.rmdir(path)), {"mtime", "ctime"})


@case("rmdir")
def sticky_directory(t: Scene) -> None:
    t.directory("sticky", 0o1777)
    path = t.directory("sticky/dir", 0o777, uid=t.alice.uid)
    t.bob.fails({EPERM, EACCES}, os.rmdir, path)
    t.alice(os.rmdir, path)


@case("rmdir")
def of_the_current_directory(t: Scene) -> None:
    path = t.directory()

    def work() -> None:
        os.chdir(path)
        os.rmdir(path)
        same(os.listdir(b"."), [])
        fails(ENOENT, os.mkdir, b"inside")
        fails(ENOENT, os.open, b"inside", os.O_CREAT | os.O_WRONLY)

    in_child(lambda: None, work)


@case("rmdir")
def open_directory_reads_empty(t: Scene) -> None:
    path = t.directory()
    fd = os.open(path, os.O_RDONLY)
    os.rmdir(path)
    same(os.listdir(fd), [])
    same(os.fstat(fd).st_nlink, 0)
    os.close(fd)


@case("rmdir")
def directory_link_counts(t: Scene) -> None:
    path = t.directory()
    same(os.stat(path).st_nlink, 2)
    t.directory("dir/one")
    t.directory("dir/two")
    t.file("dir/file")
    same(os.stat(path).st_nlink, 4)
    os.rmdir(t.path("dir/one"))
    same(os.stat(path).st_nlink, 3)


@case("symlink")
def holds_any_target(t: Scene) -> None:
    for number, target in enumerate(
        [b"x", b"/absolute", b"../up", b"\xff\xfe", b"y" * 255, b"dir/" * 1000]
    ):
        path = t.path(f"link{number}")
        os.symlink(target, path)
        same(os.readlink(path), target)
        same(os.lstat(path).st_size, len(target))


@case("symlink")
def target_of_4095_bytes_and_no_more(t: Scene) -> None:
    os.symlink(b"z" * 4095, t.path("long"))
    same(len(os.readlink(t.path("long"))), 4095)
    fails(36, os.symlink, b"z" * 4096, t.path("longer"))


@case("symlink")
def empty_target(t: Scene) -> None:
    fails(ENOENT, os.symlink, b"", t.path("link"))


@case("symlink")
def mode_is_777(t: Scene) -> None:
    same(os.lstat(t.link_to("x")).st_mode & 0o7777, 0o777)


@case("symlink")
def owner_is_the_maker(t: Scene) -> None:
    t.directory("open", 0o777)
    t.alice(os.symlink, b"x", t.path("open/link"))
    status = os.lstat(t.path("open/link"))
    same((status.st_uid, status.st_gid), (t.alice.uid, t.alice.gid))


@case("symlink")
def moves_times_of_the_parent(t: Scene) -> None:
    same(t.moved(t.top, lambda: t.link_to("x")), {"mtime", "ctime"})


@case("symlink")
def readlink_of_other_things(t: Scene) -> None:
    for kind in KINDS:
        if kind != "symlink":
            fails(EINVAL, os.readlink, t.make(kind, kind))


@case("symlink")
def leads_through_directories(t: Scene) -> None:
    t.directory("a")
    t.file("a/file", b"here")
    t.link_to("a", "b")
    same(read_file(t.path("b/file")), b"here")
    os.symlink(b"../a/file", t.path("a/back"))
    same(read_file(t.path("b/back")), b"here")
