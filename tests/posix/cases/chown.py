"""chown, fchown, lchown."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EPERM

from tests.posix.scene import (
    KINDS,
    SHARED_GID,
    Scene,
    add,
    case,
    mode_of,
    same,
)


def _owner(path: bytes) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_uid, status.st_gid


def _any_kind(t: Scene, kind: str) -> None:
    path = t.make(kind, kind)
    os.lchown(path, 123, 456)
    same(_owner(path), (123, 456))
    os.lchown(path, -1, 789)
    same(_owner(path), (123, 789))
    os.lchown(path, 321, -1)
    same(_owner(path), (321, 789))


for _kind in KINDS:
    add(f"chown.{_kind}", lambda t, kind=_kind: _any_kind(t, kind))


@case("chown")
def follows_symlink_and_lchown_does_not(t: Scene) -> None:
    path = t.file()
    link = t.link_to("file")
    os.chown(link, 5, 6)
    same((_owner(path), _owner(link)), ((5, 6), (0, 0)))
    os.lchown(link, 7, 8)
    same((_owner(path), _owner(link)), ((5, 6), (7, 8)))


@case("chown")
def by_descriptor(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_RDONLY)
    os.fchown(fd, 5, 6)
    os.close(fd)
    same(_owner(path), (5, 6))


@case("chown")
def moves_ctime_only(t: Scene) -> None:
    path = t.file()
    same(t.moved(path, lambda: os.chown(path, 5, 6)), {"ctime"})


@case("chown")
def large_ids(t: Scene) -> None:
    path = t.file()
    os.chown(path, 4_000_000_000, 4_000_000_001)
    same(_owner(path), (4_000_000_000, 4_000_000_001))


@case("chown")
def owner_may_give_the_file_to_an_own_group(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid)
    t.alice(os.chown, path, -1, SHARED_GID)
    same(_owner(path), (t.alice.uid, SHARED_GID))
    t.alice(os.chown, path, t.alice.uid, t.alice.gid)
    same(_owner(path), (t.alice.uid, t.alice.gid))


@case("chown")
def owner_may_not_give_the_file_to_a_foreign_group(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid)
    t.alice.fails(EPERM, os.chown, path, -1, t.bob.gid)
    same(_owner(path), (t.alice.uid, t.alice.gid))


@case("chown")
def owner_may_not_give_the_file_away(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid)
    t.alice.fails(EPERM, os.chown, path, t.bob.uid, -1)
    same(_owner(path), (t.alice.uid, t.alice.gid))


@case("chown")
def others_may_not(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid)
    t.bob.fails(EPERM, os.chown, path, t.bob.uid, -1)
    t.bob.fails(EPERM, os.chown, path, -1, t.bob.gid)


@case("chown")
def other_group_member_may_not(t: Scene) -> None:
    path = t.file(uid=t.bob.uid, gid=SHARED_GID, mode=0o664)
    t.alice.fails(EPERM, os.chown, path, -1, t.alice.gid)


@case("chown")
def by_user_drops_set_id_of_an_executable(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid, mode=0o6755)
    t.alice(os.chown, path, -1, SHARED_GID)
    same(mode_of(path), 0o755)


@case("chown")
def by_root_drops_set_id_of_an_executable(t: Scene) -> None:
    path = t.file(mode=0o6755)
    os.chown(path, 5, 6)
    same(mode_of(path), 0o755)


@case("chown")
def to_nobody_by_others_keeps_set_id(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=SHARED_GID, mode=0o6755)
    for user in (t.bob, t.alice):
        same(mode_of(path), 0o6755)
        with suppress(PermissionError):
            user(os.chown, path, -1, -1)
    same(mode_of(path), 0o755)


@case("chown")
def keeps_setgid_without_group_execute(t: Scene) -> None:
    path = t.file(mode=0o2745)
    os.chown(path, 5, 6)
    same(mode_of(path), 0o2745)


@case("chown")
def keeps_setgid_of_a_directory(t: Scene) -> None:
    path = t.directory(mode=0o2755)
    os.chown(path, 5, 6)
    same(mode_of(path), 0o2755)


@case("chown")
def symlink_by_user(t: Scene) -> None:
    link = t.link_to("nowhere")
    os.lchown(link, t.alice.uid, t.alice.gid)
    t.alice(os.lchown, link, -1, SHARED_GID)
    same(_owner(link), (t.alice.uid, SHARED_GID))
    t.bob.fails(EPERM, os.lchown, link, -1, t.bob.gid)


@case("chown")
def new_owner_has_the_rights(t: Scene) -> None:
    path = t.file(mode=0o600, data=b"secret")
    t.alice.fails(13, os.open, path, os.O_RDONLY)
    os.chown(path, t.alice.uid, -1)
    fd = os.open(path, os.O_RDONLY)
    os.close(fd)
    t.alice(lambda: os.close(os.open(path, os.O_RDONLY)))
