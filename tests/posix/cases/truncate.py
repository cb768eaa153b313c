"""truncate and ftruncate."""

from __future__ import annotations

import os
from errno import EACCES, EFBIG, EINVAL, EISDIR

from tests.posix.scene import Scene, add, case, fails, read_file, same

CHUNK = 1 << 20


def _to_size(t: Scene, old: int, new: int) -> None:
    data = bytes(range(1, 256)) * (old // 255 + 1)
    path = t.file(data=b"")
    with open(path, "wb") as stream:
        stream.write(data[:old])
    os.truncate(path, new)
    want = data[: min(old, new)] + bytes(max(0, new - old))
    same(os.stat(path).st_size, new)
    same(read_file(path) == want, True, f"content after {old} -> {new}")


for _old, _new in (
    (0, 1),
    (5, 0),
    (5, 3),
    (5, 5),
    (5, 4096),
    (5000, 4095),
    (CHUNK + 10, CHUNK),
    (CHUNK + 10, CHUNK - 1),
    (CHUNK, CHUNK + 1),
    (10, 3 * CHUNK + 7),
    (3 * CHUNK + 7, 10),
):
    add(
        f"truncate.from_{_old}_to_{_new}",
        lambda t, old=_old, new=_new: _to_size(t, old, new),
    )


@case("truncate")
def cut_bytes_do_not_come_back(t: Scene) -> None:
    path = t.file(data=b"secret data")
    os.truncate(path, 3)
    os.truncate(path, 11)
    same(read_file(path), b"sec" + bytes(8))


@case("truncate")
def cut_bytes_do_not_come_back_by_writing_behind(t: Scene) -> None:
    path = t.file(data=b"secret data")
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, 3)
    os.pwrite(fd, b"!", 10)
    same(os.pread(fd, 20, 0), b"sec" + bytes(7) + b"!")
    os.close(fd)


@case("truncate")
def of_a_read_only_descriptor(t: Scene) -> None:
    fd = os.open(t.file(data=b"123"), os.O_RDONLY)
    fails(EINVAL, os.ftruncate, fd, 0)
    os.close(fd)


@case("truncate")
def negative(t: Scene) -> None:
    fails(EINVAL, os.truncate, t.file(), -1)


@case("truncate")
def to_the_largest_size_or_not_at_all(t: Scene) -> None:
    path, largest = t.file(), (1 << 63) - 1
    try:
        os.truncate(path, largest)
    except OSError as error:
        same(error.errno in (EFBIG, EINVAL), True, f"errno {error.errno}")
        largest = 0
    same(os.stat(path).st_size, largest)


@case("truncate")
def of_a_directory(t: Scene) -> None:
    fails(EISDIR, os.truncate, t.directory(), 0)


@case("truncate")
def of_a_fifo(t: Scene) -> None:
    fails(EINVAL, os.truncate, t.fifo(), 0)


@case("truncate")
def through_a_symlink(t: Scene) -> None:
    path = t.file(data=b"12345")
    os.truncate(t.link_to("file"), 2)
    same(read_file(path), b"12")


@case("truncate")
def without_write_right(t: Scene) -> None:
    path = t.file(data=b"12345")
    t.alice.fails(EACCES, os.truncate, path, 2)


@case("truncate")
def moves_mtime_and_ctime(t: Scene) -> None:
    path = t.file(data=b"12345")
    same(t.moved(path, lambda: os.truncate(path, 2)), {"mtime", "ctime"})
    same(t.moved(path, lambda: os.truncate(path, 10)), {"mtime", "ctime"})


@case("truncate")
def failed_moves_nothing(t: Scene) -> None:
    path = t.file(data=b"12345")
    same(
        t.moved(path, lambda: t.alice.fails(EACCES, os.truncate, path, 2)),
        set(),
    )


@case("truncate")
def by_descriptor_of_a_removed_file(t: Scene) -> None:
    path = t.file(data=b"12345")
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
    os.ftruncate(fd, 2)
    same(os.fstat(fd).st_size, 2)
    same(os.pread(fd, 10, 0), b"12")
    os.close(fd)


@case("truncate")
def is_seen_by_other_descriptors(t: Scene) -> None:
    path = t.file(data=b"12345")
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    os.ftruncate(one, 2)
    same(os.fstat(two).st_size, 2)
    same(os.pread(two, 10, 0), b"12")
    os.pwrite(two, b"x", 5)
    same(os.pread(one, 10, 0), b"12\0\0\0x")
    os.close(one)
    os.close(two)
