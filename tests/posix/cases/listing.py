"""readdir: every name once, d_type, inode numbers, positions over a changing list."""

from __future__ import annotations

import os
import stat
from errno import EACCES, ENOTDIR

from tests.posix import libc
from tests.posix.scene import KINDS, Scene, case, fails, same, true


@case("listing")
def empty_has_dot_and_dot_dot(t: Scene) -> None:
    path = t.directory()
    with libc.Directory(path) as listing:
        names = []
        while (entry := listing.next()) is not None:
            names.append((entry[0], entry[2]))
    want = {
        b".": os.stat(path).st_ino,
        b"..": os.stat(t.top).st_ino,
    }
    same(dict(names), want)


@case("listing")
def type_and_inode_of_every_kind(t: Scene) -> None:
    for kind in KINDS:
        t.make(kind, kind)
    with libc.Directory(t.top) as listing:
        while (entry := listing.next()) is not None:
            if entry[0] in (b".", b".."):
                continue
            status = os.lstat(t.path(entry[0]))
            same(entry[1], stat.S_IFMT(status.st_mode) >> 12, f"d_type {entry[0]!r}")
            same(entry[2], status.st_ino, f"d_ino {entry[0]!r}")


@case("listing")
def two_thousand_names_once_each(t: Scene) -> None:
    wanted = set()
    for number in range(2000):
        name = b"name-%04d-%s" % (number, b"x" * (number % 40))
        os.mknod(t.path(name), stat.S_IFREG | 0o644)
        wanted.add(name)
    listed = os.listdir(t.top)
    same(len(listed), 2000)
    same(set(listed) == wanted, True, "the names")


@case("listing")
def removing_while_reading(t: Scene) -> None:
    for number in range(1000):
        os.mknod(t.path(f"f{number}"), stat.S_IFREG | 0o644)
    seen = []
    with libc.Directory(t.top) as listing:
        while (entry := listing.next()) is not None:
            if entry[0] in (b".", b".."):
                continue
            seen.append(entry[0])
            os.unlink(t.path(entry[0]))
    same(len(seen), 1000, "every name seen")
    same(len(set(seen)), 1000, "no name twice")
    same(os.listdir(t.top), [])


@case("listing")
def old_names_are_seen_once_while_others_come_and_go(t: Scene) -> None:
    stable = {b"stable%03d" % number for number in range(400)}
    for name in stable:
        os.mknod(t.path(name), stat.S_IFREG | 0o644)
    seen = []
    with libc.Directory(t.top) as listing:
        count = 0
        while (entry := listing.next()) is not None:
            seen.append(entry[0])
            count += 1
            if count % 5 == 0:
                os.mknod(t.path(f"new{count}"), stat.S_IFREG | 0o644)
            if count % 10 == 0:
                os.unlink(t.path(f"new{count}"))
            true(count < 5000, "the listing ends")
    same(sorted(n for n in seen if n in stable), sorted(stable))


@case("listing")
def rewind_sees_what_changed(t: Scene) -> None:
    t.file("one")
    with libc.Directory(t.top) as listing:
        same(listing.names(), [b"one"])
        t.file("two")
        os.unlink(t.path("one"))
        listing.rewind()
        same(listing.names(), [b"two"])


@case("listing")
def seek_returns_to_the_position(t: Scene) -> None:
    for number in range(500):
        os.mknod(t.path(f"f{number:03}"), stat.S_IFREG | 0o644)
    with libc.Directory(t.top) as listing:
        for _ in range(250):
            listing.next()
        position = listing.tell()
        rest = listing.names()
        listing.seek(position)
        same(listing.names(), rest)


@case("listing")
def seek_over_a_changing_directory(t: Scene) -> None:
    for number in range(500):
        os.mknod(t.path(f"f{number:03}"), stat.S_IFREG | 0o644)
    with libc.Directory(t.top) as listing:
        early = [listing.next() for _ in range(250)]
        position = listing.tell()
        rest = listing.names()
        for entry in early:
            if entry is not None and entry[0] not in (b".", b".."):
                os.unlink(t.path(entry[0]))
        listing.seek(position)
        same(listing.names(), rest)


@case("listing")
def long_names(t: Scene) -> None:
    names = {
        bytes([65 + number % 26]) * 250 + b"%04d" % number for number in range(200)
    }
    for name in names:
        os.mknod(t.path(name), stat.S_IFREG | 0o644)
    same(set(os.listdir(t.top)) == names, True, "the names")


@case("listing")
def of_a_file(t: Scene) -> None:
    fails(ENOTDIR, os.listdir, t.file())


@case("listing")
def without_read_right(t: Scene) -> None:
    path = t.directory(mode=0o711)
    t.alice.fails(EACCES, os.listdir, path)


@case("listing")
def does_not_move_times(t: Scene) -> None:
    t.file("dir_entry")
    same(t.moved(t.top, lambda: os.listdir(t.top)), set())


@case("listing")
def of_a_removed_directory_is_empty(t: Scene) -> None:
    path = t.directory()
    with libc.Directory(path) as listing:
        os.rmdir(path)
        listing.rewind()
        same(listing.names(), [])


@case("listing")
def directory_can_be_synced(t: Scene) -> None:
    fd = os.open(t.directory(), os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
