"""Reading and writing: two handles, many processes, mmap, O_DIRECT, open-unlinked."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
from collections.abc import Callable
from errno import EBADF, EINVAL
from functools import partial

from tests.posix.scene import (
    Child,
    Scene,
    case,
    fails,
    in_child,
    read_file,
    same,
    true,
    write_file,
)

MIB = 1 << 20


def _all(call: Callable[[int], object], count: int) -> None:
    """The call in `count` processes at once, each with its number."""
    children = [Child(partial(call, number)) for number in range(count)]
    for child in children:
        child.join()


@case("io")
def empty_file_reads_nothing(t: Scene) -> None:
    fd = os.open(t.file(), os.O_RDONLY)
    same(os.read(fd, 100), b"")
    same(os.pread(fd, 100, 1000), b"")
    os.close(fd)


@case("io")
def what_is_written_is_read_at_once(t: Scene) -> None:
    path = t.file()
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    os.write(one, b"hello")
    same(os.read(two, 10), b"hello")
    os.pwrite(two, b"HE", 0)
    same(os.pread(one, 10, 0), b"HEllo")
    same(os.stat(path).st_size, 5)
    os.close(one)
    os.close(two)
    same(read_file(path), b"HEllo")


@case("io")
def gap_reads_zeros(t: Scene) -> None:
    path = t.file(data=b"start")
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"end", 2 * MIB + 5)
    same(os.pread(fd, 10, 5), bytes(10))
    same(os.fstat(fd).st_size, 2 * MIB + 8)
    os.close(fd)
    same(read_file(path) == b"start" + bytes(2 * MIB) + b"end", True, "content")


@case("io")
def overlapping_random_writes(t: Scene) -> None:
    path = t.file()
    rng = random.Random(1)
    model = bytearray()
    fd = os.open(path, os.O_RDWR)
    for _ in range(150):
        offset, size = rng.randrange(3 * MIB), rng.randrange(1, 200_000)
        data = rng.randbytes(size)
        os.pwrite(fd, data, offset)
        if len(model) < offset + size:
            model.extend(bytes(offset + size - len(model)))
        model[offset : offset + size] = data
        offset = rng.randrange(len(model))
        same(os.pread(fd, 5000, offset) == model[offset : offset + 5000], True, "read")
    os.close(fd)
    same(read_file(path) == model, True, "content")


@case("io")
def vectors(t: Scene) -> None:
    fd = os.open(t.file(), os.O_RDWR)
    same(os.writev(fd, [b"one", b"", b"two"]), 6)
    first, second = bytearray(2), bytearray(10)
    same(os.preadv(fd, [first, second], 0), 6)
    same(bytes(first) + bytes(second[:4]), b"onetwo")
    os.close(fd)


@case("io")
def appending_processes_lose_nothing(t: Scene) -> None:
    path = t.file()

    def append(number: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for _ in range(50):
            os.write(fd, bytes([65 + number]) * 100)
        os.close(fd)

    _all(append, 8)
    data = read_file(path)
    same(len(data), 8 * 50 * 100)
    records = [data[at : at + 100] for at in range(0, len(data), 100)]
    true(all(len(set(record)) == 1 for record in records), "no record is torn")
    for number in range(8):
        same(records.count(bytes([65 + number]) * 100), 50)


@case("io")
def append_flag_can_be_taken_away_and_given(t: Scene) -> None:
    path = t.file(data=b"0123456789")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"AB", 2)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.write(fd, b"end")
    os.close(fd)
    same(read_file(path), b"01AB456789end")


@case("io")
def two_processes_write_their_halves(t: Scene) -> None:
    path = t.file()

    def write(half: int) -> None:
        fd = os.open(path, os.O_WRONLY)
        for step in range(100):
            offset = half * MIB + step * 10_000
            os.pwrite(fd, bytes([65 + half]) * 10_000, offset)
        os.close(fd)

    _all(write, 2)
    data = read_file(path)
    same(len(data), 2 * MIB - MIB + 1_000_000)
    same(data[:1_000_000] == b"A" * 1_000_000, True, "first half")
    same(data[MIB:] == b"B" * 1_000_000, True, "second half")


@case("io")
def shared_mapping_writes_the_file(t: Scene) -> None:
    path = t.file(data=b"x" * 10_000)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 10_000) as view:
        view[5000:5005] = b"HELLO"
        view.flush()
        same(os.pread(fd, 5, 5000), b"HELLO")
    os.close(fd)
    same(read_file(path)[4999:5006], b"xHELLOx")


@case("io")
def shared_mapping_after_close_of_the_descriptor(t: Scene) -> None:
    path = t.file(data=b"x" * 10_000)
    fd = os.open(path, os.O_RDWR)
    view = mmap.mmap(fd, 10_000)
    os.close(fd)
    view[0:4] = b"late"
    view.close()
    os.sync()
    same(read_file(path)[:5], b"latex")


@case("io")
def write_is_seen_through_a_mapping(t: Scene) -> None:
    path = t.file(data=b"x" * 10_000)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 10_000) as view:
        same(view[:3], b"xxx")
        os.pwrite(fd, b"new", 0)
        same(view[:3], b"new")
    os.close(fd)


@case("io")
def private_mapping_leaves_the_file(t: Scene) -> None:
    path = t.file(data=b"x" * 100)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 100, flags=mmap.MAP_PRIVATE) as view:
        view[0:3] = b"own"
        view.flush()
    os.close(fd)
    same(read_file(path), b"x" * 100)


@case("io")
def mapping_of_a_removed_file(t: Scene) -> None:
    path = t.file(data=b"x" * 10_000)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 10_000) as view:
        os.unlink(path)
        view[0:3] = b"own"
        view.flush()
        same(os.pread(fd, 4, 0), b"ownx")
    os.close(fd)


@case("io")
def mapping_of_part_of_a_page(t: Scene) -> None:
    path = t.file(data=b"x" * 100)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 100) as view:
        view[50:60] = b"y" * 10
        view.flush()
    os.ftruncate(fd, 200)
    same(os.pread(fd, 300, 0), b"x" * 50 + b"y" * 10 + b"x" * 40 + bytes(100))
    os.close(fd)


@case("io")
def direct(t: Scene) -> None:
    path = t.path("direct")
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o644)
    buffer = mmap.mmap(-1, 64 * 1024)
    buffer[:] = os.urandom(64 * 1024)
    same(os.pwritev(fd, [buffer], 0), 64 * 1024)
    same(os.pwritev(fd, [buffer], 64 * 1024), 64 * 1024)
    back = mmap.mmap(-1, 128 * 1024)
    same(os.preadv(fd, [back], 0), 128 * 1024)
    same(back[: 64 * 1024] == buffer[:], True, "what was written")
    os.close(fd)
    same(read_file(path) == buffer[:] * 2, True, "through the page cache")


@case("io")
def direct_and_cached_see_each_other(t: Scene) -> None:
    path = t.file(data=b"a" * 8192)
    cached = os.open(path, os.O_RDWR)
    same(os.pread(cached, 8192, 0), b"a" * 8192)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4096)
    buffer[:] = b"b" * 4096
    os.pwritev(fd, [buffer], 4096)
    same(os.pread(cached, 8192, 0) == b"a" * 4096 + b"b" * 4096, True, "cached read")
    os.pwrite(cached, b"c" * 4096, 0)
    os.preadv(fd, [buffer], 0)
    same(buffer[:] == b"c" * 4096, True, "direct read")
    os.close(fd)
    os.close(cached)


@case("io")
def synchronous_flags(t: Scene) -> None:
    for flags in (os.O_SYNC, os.O_DSYNC):
        path = t.path(f"sync{flags}")
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | flags, 0o644)
        os.write(fd, b"durable")
        os.close(fd)
        same(read_file(path), b"durable")


@case("io")
def sync_calls(t: Scene) -> None:
    fd = os.open(t.file(), os.O_RDWR)
    os.write(fd, b"1")
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    os.sync()


@case("io")
def descriptor_outlives_the_name(t: Scene) -> None:
    path = t.file(data=b"data")
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
    same(os.listdir(t.top), [])
    os.pwrite(fd, b"more", 4)
    same(os.pread(fd, 100, 0), b"datamore")
    status = os.fstat(fd)
    same((status.st_nlink, status.st_size), (0, 8))
    os.fchmod(fd, 0o600)
    same(os.fstat(fd).st_mode & 0o777, 0o600)
    os.utime(fd, ns=(5, 6))
    same(os.fstat(fd).st_mtime_ns, 6)
    os.fsync(fd)
    os.close(fd)
    same(os.listdir(t.top), [])


@case("io")
def directory_of_a_removed_open_file_can_go(t: Scene) -> None:
    directory = t.directory()
    fd = os.open(t.file("dir/file", b"data"), os.O_RDWR)
    os.unlink(t.path("dir/file"))
    os.rmdir(directory)
    same(os.pread(fd, 10, 0), b"data")
    os.pwrite(fd, b"more", 4)
    same(os.pread(fd, 10, 0), b"datamore")
    os.close(fd)


@case("io")
def removed_open_file_through_its_other_name(t: Scene) -> None:
    path, other = t.file("one", b"data"), t.path("two")
    os.link(path, other)
    fd = os.open(path, os.O_RDWR)
    os.unlink(path)
    os.pwrite(fd, b"DATA", 0)
    same(os.fstat(fd).st_nlink, 1)
    os.close(fd)
    same(read_file(other), b"DATA")


@case("io")
def write_through_one_name_is_read_through_the_other(t: Scene) -> None:
    path, other = t.file("one", b"first"), t.path("two")
    os.link(path, other)
    reading = os.open(other, os.O_RDONLY)
    same(os.pread(reading, 10, 0), b"first")
    write_file(path, b"second value")
    same(os.fstat(reading).st_size, 12)
    same(os.pread(reading, 20, 0), b"second value")
    write_file(path, b"THIRD! VALUE")
    same(os.pread(reading, 20, 0), b"THIRD! VALUE")
    os.close(reading)


@case("io")
def duplicate_descriptor_shares_the_position(t: Scene) -> None:
    fd = os.open(t.file(data=b"0123456789"), os.O_RDONLY)
    other = os.dup(fd)
    same(os.read(fd, 3), b"012")
    same(os.read(other, 3), b"345")
    os.close(fd)
    same(os.read(other, 3), b"678")
    os.close(other)


@case("io")
def inherited_descriptor_after_close_in_the_parent(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_WRONLY)
    reading, writing = os.pipe()

    def work() -> None:
        os.read(reading, 1)
        os.write(fd, b"from the child")

    child = Child(work)
    os.write(fd, b"from the parent, ")
    os.close(fd)
    os.write(writing, b"x")
    child.join()
    os.close(reading)
    os.close(writing)
    same(read_file(path), b"from the parent, from the child")


@case("io")
def negative_offset(t: Scene) -> None:
    fd = os.open(t.file(), os.O_RDWR)
    fails(EINVAL, os.pread, fd, 1, -1)
    fails(EINVAL, os.pwrite, fd, b"x", -1)
    os.close(fd)
    fails(EBADF, os.read, fd, 1)


@case("io")
def large_file_by_blocks(t: Scene) -> None:
    block = bytes(range(256)) * 1024
    path = t.path("large")
    with open(path, "wb", buffering=0) as stream:
        for _ in range(64):
            stream.write(block)
    same(os.stat(path).st_size, 64 * len(block))
    with open(path, "rb", buffering=0) as stream:
        for _ in range(64):
            same(stream.read(len(block)) == block, True, "block")


@case("io")
def many_small_files_keep_their_content(t: Scene) -> None:
    for number in range(150):
        t.file(f"f{number}", b"%d" % number * (number % 50))
    for number in range(150):
        same(read_file(t.path(f"f{number}")), b"%d" % number * (number % 50))


@case("io")
def sendfile_out(t: Scene) -> None:
    data = os.urandom(300_000)
    source = os.open(t.file(), os.O_RDWR)
    os.write(source, data)
    target = os.open(t.path("out"), os.O_CREAT | os.O_RDWR, 0o644)
    sent = 0
    while sent < len(data):
        sent += os.sendfile(target, source, sent, len(data) - sent)
    same(os.pread(target, len(data), 0) == data, True, "content")
    os.close(source)
    os.close(target)


@case("io")
def advice_is_taken(t: Scene) -> None:
    fd = os.open(t.file(data=b"x" * 10_000), os.O_RDONLY)
    for advice in (os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_WILLNEED):
        os.posix_fadvise(fd, 0, 0, advice)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    same(os.pread(fd, 3, 0), b"xxx")
    os.close(fd)


@case("io")
def sixty_four_processes_at_once(t: Scene) -> None:

    def work(number: int) -> None:
        path = t.path(f"p{number}")
        with open(path, "wb") as stream:
            stream.write(b"%d" % number * 1000)
        same(read_file(path), b"%d" % number * 1000)
        os.rename(path, t.path(f"done{number}"))

    _all(work, 64)
    same(len(os.listdir(t.top)), 64)


@case("io")
def child_reads_what_the_parent_has_not_closed(t: Scene) -> None:
    path = t.file()
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"open still")
    same(in_child(lambda: None, read_file, path), b"open still")
    os.close(fd)
