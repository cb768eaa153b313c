"""Who may read, write, search and execute: owner, group, others, root."""

from __future__ import annotations

import os
from errno import EACCES

from tests.posix.scene import SHARED_GID, Scene, User, add, case, fails, same, true


def _open(path: bytes, flags: int) -> None:
    os.close(os.open(path, flags))


_WANTS = {os.O_RDONLY: 4, os.O_WRONLY: 2, os.O_RDWR: 6}


def _check_bits(t: Scene, user: User, owner: int, group: int, shift: int) -> None:
    path = t.file(uid=owner, gid=group)
    for bits in range(8):
        os.chmod(path, bits << shift)
        granted, refused = [], []
        for flags, wanted in _WANTS.items():
            (granted if bits & wanted == wanted else refused).append(flags)
        user(_try, path, granted, refused)
        for mode in (os.R_OK, os.W_OK, os.X_OK):
            want = bool(bits & mode)
            same(user(os.access, path, mode), want, f"access {mode} of {bits}")


def _try(path: bytes, granted: list[int], refused: list[int]) -> None:
    for flags in granted:
        _open(path, flags)
    for flags in refused:
        fails(EACCES, _open, path, flags)


add(
    "access.owner_bits",
    lambda t: _check_bits(t, t.alice, t.alice.uid, t.bob.gid, 6),
)
add("access.group_bits", lambda t: _check_bits(t, t.alice, 0, t.alice.gid, 3))
add(
    "access.supplementary_group_bits",
    lambda t: _check_bits(t, t.alice, 0, SHARED_GID, 3),
)
add("access.other_bits", lambda t: _check_bits(t, t.bob, 0, SHARED_GID, 0))


@case("access")
def owner_bits_come_first(t: Scene) -> None:
    path = t.file(uid=t.alice.uid, gid=t.alice.gid, mode=0o077)
    t.alice.fails(EACCES, _open, path, os.O_RDONLY)
    t.bob(_open, path, os.O_RDONLY)


@case("access")
def group_bits_come_before_others(t: Scene) -> None:
    path = t.file(gid=SHARED_GID, mode=0o607)
    t.alice.fails(EACCES, _open, path, os.O_RDONLY)
    t.bob(_open, path, os.O_RDONLY)


@case("access")
def root_reads_all_but_executes_only_what_somebody_may(t: Scene) -> None:
    path = t.file(mode=0)
    _open(path, os.O_RDWR)
    true(not os.access(path, os.X_OK), "root may not execute mode 0")
    os.chmod(path, 0o001)
    true(os.access(path, os.X_OK), "root may execute mode 1")


@case("access")
def directory_without_read_cannot_be_listed_but_searched(t: Scene) -> None:
    directory = t.directory(mode=0o711)
    t.file("dir/known")
    t.alice.fails(EACCES, os.listdir, directory)
    t.alice(os.stat, directory + b"/known")


@case("access")
def directory_without_search_can_be_listed_only(t: Scene) -> None:
    directory = t.directory(mode=0o744)
    t.file("dir/known")
    same(t.alice(os.listdir, directory), [b"known"])
    t.alice.fails(EACCES, os.stat, directory + b"/known")


@case("access")
def write_to_directory_needs_write_and_search(t: Scene) -> None:
    for mode, may in ((0o777, True), (0o772, False), (0o775, False), (0o773, True)):
        directory = t.directory(f"dir{mode:o}", mode)
        if may:
            t.bob(os.mkdir, directory + b"/new")
        else:
            t.bob.fails(EACCES, os.mkdir, directory + b"/new")


@case("access")
def unlink_needs_no_right_to_the_file(t: Scene) -> None:
    t.directory(mode=0o777)
    path = t.file("dir/of_root", mode=0)
    t.alice(os.unlink, path)


@case("access")
def executes_a_script(t: Scene) -> None:
    path = t.file("script", b"#!/bin/sh\nexit 7\n", 0o755)
    same(os.waitstatus_to_exitcode(os.system(os.fsdecode(path))), 7)


@case("access")
def execute_needs_the_bit(t: Scene) -> None:
    path = t.file("script", b"#!/bin/sh\nexit 0\n", 0o644)
    t.alice.fails(EACCES, os.execv, path, [b"script"])


@case("access")
def chdir_needs_search(t: Scene) -> None:
    directory = t.directory(mode=0o600)
    t.alice.fails(EACCES, os.chdir, directory)


@case("access")
def truncate_needs_write(t: Scene) -> None:
    path = t.file(data=b"123", mode=0o444)
    t.alice.fails(EACCES, os.truncate, path, 0)
    same(os.stat(path).st_size, 3)
