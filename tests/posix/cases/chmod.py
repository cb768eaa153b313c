"""chmod, fchmod, and what takes set-id bits away."""

from __future__ import annotations

import os
from errno import EPERM, EROFS  # noqa: F401

from tests.posix.scene import KINDS, Scene, add, case, fails, mode_of, same, true


def _all_modes(t: Scene, kind: str) -> None:
    path = t.make(kind, kind)
    for mode in (0o000, 0o111, 0o644, 0o777, 0o4755, 0o2755, 0o1755, 0o7777):
        os.chmod(path, mode)
        same(mode_of(path), mode, f"{kind} {mode:o}")


for _kind in KINDS:
    if _kind != "symlink":
        add(
            f"chmod.every_bit_{_kind}",
            lambda t, kind=_kind: _all_modes(t, kind),
        )


@case("chmod")
def keeps_the_type(t: Scene) -> None:
    for kind in KINDS:
        if kind == "symlink":
            continue
        path = t.make(kind, kind)
        before = os.lstat(path).st_mode & 0o170000
        os.chmod(path, 0o600)
        same(os.lstat(path).st_mode & 0o170000, before)


@case("chmod")
def through_symlink_changes_the_target(t: Scene) -> None:
    path = t.file()
    link = t.link_to("file")
    os.chmod(link, 0o601)
    same(mode_of(path), 0o601)


@case("chmod")
def by_descriptor(t: Scene) -> None:
    fd = os.open(t.file(), os.O_RDONLY)
    os.fchmod(fd, 0o640)
    same(os.fstat(fd).st_mode & 0o7777, 0o640)
    os.close(fd)


@case("chmod")
def moves_ctime_only(t: Scene) -> None:
    path = t.file()
    same(t.moved(path, lambda: os.chmod(path, 0o600)), {"ctime"})
    same(t.moved(t.top, lambda: os.chmod(path, 0o644)), set())


@case("chmod")
def owner_may(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid)
    t.alice(os.chmod, path, 0o600)
    same(mode_of(path), 0o600)


@case("chmod")
def others_may_not_and_nothing_changes(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid)
    before = os.stat(path)
    t.bob.fails(EPERM, os.chmod, path, 0o777)
    after = os.stat(path)
    same((after.st_mode, after.st_ctime_ns), (before.st_mode, before.st_ctime_ns))


@case("chmod")
def setgid_is_dropped_when_not_in_the_group(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.bob.gid)
    t.alice(os.chmod, path, 0o2755)
    same(mode_of(path), 0o755)


@case("chmod")
def setgid_stays_when_in_the_group(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.groups[1])
    t.alice(os.chmod, path, 0o2755)
    same(mode_of(path), 0o2755)


@case("chmod")
def setuid_by_owner(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid)
    t.alice(os.chmod, path, 0o4755)
    same(mode_of(path), 0o4755)


@case("chmod")
def write_by_owner_drops_set_id(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid, mode=0o6777)
    t.alice(_append, path)
    same(mode_of(path), 0o777)


@case("chmod")
def write_by_other_drops_set_id(t: Scene) -> None:
    path = t.file(mode=0o6777)
    t.bob(_append, path)
    same(mode_of(path), 0o777)


@case("chmod")
def write_by_root_keeps_set_id(t: Scene) -> None:
    path = t.file(mode=0o6777)
    _append(path)
    same(mode_of(path), 0o6777)


@case("chmod")
def write_keeps_setgid_without_group_execute(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid, mode=0o2767)
    os.chmod(path, 0o2747)
    t.alice(_append, path)
    same(mode_of(path) & 0o2000, 0o2000)


@case("chmod")
def truncate_by_other_drops_set_id(t: Scene) -> None:
    path = t.file(mode=0o6777, data=b"12345")
    t.bob(os.truncate, path, 1)
    same(mode_of(path), 0o777)


@case("chmod")
def open_truncate_by_other_drops_set_id(t: Scene) -> None:
    path = t.file(mode=0o6777, data=b"12345")
    t.bob(lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))
    same(os.stat(path).st_size, 0)
    same(mode_of(path), 0o777)


@case("chmod")
def open_descriptor_keeps_its_rights(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid, mode=0o600)

    def work() -> None:
        fd = os.open(path, os.O_RDWR)
        os.chmod(path, 0)
        os.write(fd, b"still")
        same(os.pread(fd, 10, 0), b"still")
        fails(13, os.open, path, os.O_RDONLY)
        os.close(fd)

    t.alice(work)


@case("chmod")
def directory_keeps_sticky_and_setgid(t: Scene) -> None:
    path = t.directory()
    os.chmod(path, 0o3777)
    same(mode_of(path), 0o3777)
    t.file("dir/inside")
    same(mode_of(path), 0o3777)


@case("chmod")
def sticky_on_file_by_owner(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid)
    t.alice(os.chmod, path, 0o1644)
    true(mode_of(path) in (0o1644, 0o644), "sticky bit kept or ignored")


def _append(path: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"x")
    os.close(fd)
