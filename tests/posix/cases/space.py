"""fallocate, holes, SEEK_HOLE and SEEK_DATA, st_blocks, copy_file_range, limits."""

from __future__ import annotations

import errno
import mmap
import os
from errno import EBADF, EFBIG, EINVAL, EISDIR, ENOSPC, ENXIO, EOPNOTSUPP

from tests.posix import libc
from tests.posix.scene import Scene, case, fails, in_child, read_file, same, true

MIB = 1 << 20


def _open(t: Scene, size: int = 0, name: str = "file") -> int:
    fd = os.open(t.path(name), os.O_CREAT | os.O_RDWR, 0o644)
    if size:
        os.pwrite(fd, b"d" * size, 0)
    return fd


@case("space")
def allocate_extends_with_zeros(t: Scene) -> None:
    fd = _open(t, 10)
    libc.fallocate(fd, 0, 0, 5000)
    same(os.fstat(fd).st_size, 5000)
    same(os.pread(fd, 6000, 0), b"d" * 10 + bytes(4990))
    os.posix_fallocate(fd, 0, 100)
    same(os.fstat(fd).st_size, 5000)
    os.close(fd)


@case("space")
def allocate_keeping_the_size(t: Scene) -> None:
    fd = _open(t, 10)
    libc.fallocate(fd, libc.KEEP_SIZE, 0, 5000)
    same(os.fstat(fd).st_size, 10)
    os.close(fd)


@case("space")
def punch_hole(t: Scene) -> None:
    fd = _open(t, 3 * MIB)
    libc.fallocate(fd, libc.PUNCH_HOLE | libc.KEEP_SIZE, 1000, MIB + 5000)
    want = b"d" * 1000 + bytes(MIB + 5000) + b"d" * (2 * MIB - 6000)
    same(os.pread(fd, 3 * MIB, 0) == want, True, "content")
    same(os.fstat(fd).st_size, 3 * MIB)
    os.close(fd)


@case("space")
def punch_hole_frees_blocks(t: Scene) -> None:
    fd = _open(t, 4 * MIB)
    os.fsync(fd)
    before = os.fstat(fd).st_blocks
    libc.fallocate(fd, libc.PUNCH_HOLE | libc.KEEP_SIZE, MIB, 2 * MIB)
    os.fsync(fd)
    true(os.fstat(fd).st_blocks <= before - 2 * MIB // 512, "blocks freed")
    os.close(fd)


@case("space")
def punch_hole_beyond_the_end(t: Scene) -> None:
    fd = _open(t, 10)
    libc.fallocate(fd, libc.PUNCH_HOLE | libc.KEEP_SIZE, 5, 5000)
    same(os.fstat(fd).st_size, 10)
    same(os.pread(fd, 20, 0), b"ddddd" + bytes(5))
    os.close(fd)


@case("space")
def punch_without_keep_size_is_refused(t: Scene) -> None:
    fd = _open(t, 10)
    fails({EOPNOTSUPP, EINVAL}, libc.fallocate, fd, libc.PUNCH_HOLE, 0, 5)
    os.close(fd)


@case("space")
def zero_range(t: Scene) -> None:
    fd = _open(t, 100)
    libc.fallocate(fd, libc.ZERO_RANGE, 50, 100)
    same(os.fstat(fd).st_size, 150)
    same(os.pread(fd, 200, 0), b"d" * 50 + bytes(100))
    libc.fallocate(fd, libc.ZERO_RANGE | libc.KEEP_SIZE, 140, 100)
    same(os.fstat(fd).st_size, 150)
    os.close(fd)


@case("space")
def collapse_and_insert_work_or_are_refused(t: Scene) -> None:
    fd = _open(t, 64 * 1024)
    for mode in (libc.COLLAPSE_RANGE, libc.INSERT_RANGE):
        try:
            libc.fallocate(fd, mode, 4096, 4096)
        except OSError as error:
            same(error.errno, EOPNOTSUPP)
    os.close(fd)


@case("space")
def invalid_arguments(t: Scene) -> None:
    fd = _open(t)
    fails(EINVAL, libc.fallocate, fd, 0, 0, 0)
    fails(EINVAL, libc.fallocate, fd, 0, -1, 10)
    fails({EFBIG, ENOSPC}, libc.fallocate, fd, 0, (1 << 63) - 10, 9)
    os.close(fd)
    fd = os.open(t.path("file"), os.O_RDONLY)
    fails(EBADF, libc.fallocate, fd, 0, 0, 10)
    os.close(fd)


@case("space")
def hole_and_data(t: Scene) -> None:
    fd = _open(t)
    os.pwrite(fd, b"x" * MIB, 2 * MIB)
    os.ftruncate(fd, 8 * MIB)
    same(os.lseek(fd, 0, os.SEEK_DATA), 2 * MIB)
    same(os.lseek(fd, 0, os.SEEK_HOLE), 0)
    same(os.lseek(fd, 2 * MIB, os.SEEK_HOLE), 3 * MIB)
    fails(ENXIO, os.lseek, fd, 3 * MIB, os.SEEK_DATA)
    os.close(fd)


@case("space")
def data_written_through_a_mapping_is_found(t: Scene) -> None:
    """As `cp` and `tar -S` look for it, also before anything wrote it back."""
    path = t.file(data=b"start")
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, 8 * MIB)
    os.fsync(fd)
    reading = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, 8 * MIB) as view:
        for at in (7 * MIB, 5 * MIB):
            view[at : at + 5] = b"hello"
            true(os.lseek(reading, 2 * MIB, os.SEEK_DATA) <= at, "after a hole")
        view[6 * MIB] = 1
        true(os.lseek(reading, 6 * MIB, os.SEEK_DATA) == 6 * MIB, "in a hole")
    os.close(reading)
    os.close(fd)


@case("space")
def hole_at_the_end_of_data(t: Scene) -> None:
    fd = _open(t, 100)
    same(os.lseek(fd, 0, os.SEEK_DATA), 0)
    same(os.lseek(fd, 0, os.SEEK_HOLE), 100)
    same(os.lseek(fd, 99, os.SEEK_HOLE), 100)
    fails(ENXIO, os.lseek, fd, 100, os.SEEK_HOLE)
    fails(ENXIO, os.lseek, fd, 100, os.SEEK_DATA)
    fails({ENXIO, EINVAL}, os.lseek, fd, -1, os.SEEK_DATA)
    os.close(fd)


@case("space")
def seek_in_the_plain_ways(t: Scene) -> None:
    fd = _open(t, 100)
    same(os.lseek(fd, -10, os.SEEK_END), 90)
    same(os.lseek(fd, 5, os.SEEK_CUR), 95)
    fails(EINVAL, os.lseek, fd, -1, os.SEEK_SET)
    same(os.lseek(fd, 500, os.SEEK_SET), 500)
    same(os.read(fd, 10), b"")
    same(os.fstat(fd).st_size, 100)
    os.close(fd)


@case("space")
def blocks_of_a_sparse_file(t: Scene) -> None:
    fd = _open(t)
    os.ftruncate(fd, 1 << 30)
    os.fsync(fd)
    same(os.fstat(fd).st_blocks, 0)
    os.pwrite(fd, b"x" * MIB, 512 * MIB)
    os.fsync(fd)
    blocks = os.fstat(fd).st_blocks
    true(2048 <= blocks <= 2 * 2048 + 64, f"blocks {blocks} of 1 MiB data")
    os.close(fd)


@case("space")
def blocks_of_a_plain_file(t: Scene) -> None:
    fd = _open(t, 100_000)
    os.fsync(fd)
    blocks = os.fstat(fd).st_blocks
    true(195 <= blocks <= 272, f"blocks {blocks} of 100,000 bytes")
    os.close(fd)


@case("space")
def one_tib_sparse(t: Scene) -> None:
    fd = _open(t)
    os.pwrite(fd, b"end", (1 << 40) - 3)
    same(os.fstat(fd).st_size, 1 << 40)
    same(os.pread(fd, 10, (1 << 40) - 3), b"end")
    same(os.pread(fd, 10, 1 << 39), bytes(10))
    os.close(fd)
    same(os.stat(t.path("file")).st_size, 1 << 40)
    os.truncate(t.path("file"), 1)


@case("space")
def huge_offsets(t: Scene) -> None:
    fd = _open(t)
    fails({EFBIG, EINVAL}, os.pwrite, fd, b"xx", (1 << 63) - 2)
    same(os.fstat(fd).st_size, 0)
    os.close(fd)


@case("space")
def file_size_limit(t: Scene) -> None:
    import resource
    import signal

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        fd = _open(t)
        same(os.write(fd, b"x" * 2000), 1000)
        fails(EFBIG, os.write, fd, b"x")
        fails(EFBIG, os.ftruncate, fd, 2000)
        os.close(fd)

    in_child(lambda: None, work)


@case("copy_range")
def whole_file(t: Scene) -> None:
    data = os.urandom(3 * MIB + 77)
    t.file("source")
    with open(t.path("source"), "wb") as stream:
        stream.write(data)
    source = os.open(t.path("source"), os.O_RDONLY)
    target = _open(t, name="target")
    left = len(data)
    while left:
        done = os.copy_file_range(source, target, left)
        true(done > 0, "progress")
        left -= done
    same(os.copy_file_range(source, target, 10), 0, "at the end")
    os.close(source)
    os.close(target)
    same(read_file(t.path("target")) == data, True, "content")


@case("copy_range")
def with_offsets_inside_one_file(t: Scene) -> None:
    fd = _open(t)
    os.write(fd, b"0123456789")
    same(os.copy_file_range(fd, fd, 4, 0, 20), 4)
    same(os.pread(fd, 100, 0), b"0123456789" + bytes(10) + b"0123")
    fails(EINVAL, os.copy_file_range, fd, fd, 5, 0, 3)
    os.close(fd)


@case("copy_range")
def unaligned_between_files(t: Scene) -> None:
    data = os.urandom(2 * MIB)
    source = _open(t, name="source")
    os.pwrite(source, data, 0)
    target = _open(t, 2 * MIB, name="target")
    done = 0
    while done < MIB:
        done += os.copy_file_range(source, target, MIB - done, 333 + done, 777 + done)
    want = b"d" * 777 + data[333 : 333 + MIB] + b"d" * (MIB - 777)
    same(os.pread(target, 2 * MIB, 0) == want, True, "content")
    os.close(source)
    os.close(target)


@case("copy_range")
def wrong_descriptors(t: Scene) -> None:
    fd = _open(t, 10)
    reading = os.open(t.path("file"), os.O_RDONLY)
    other = _open(t, 10, "other")
    fails(EBADF, os.copy_file_range, other, reading, 5)
    appending = os.open(t.path("other"), os.O_WRONLY | os.O_APPEND)
    fails(EBADF, os.copy_file_range, fd, appending, 5)
    directory = os.open(t.top, os.O_RDONLY)
    fails({EISDIR, EINVAL, EBADF}, os.copy_file_range, directory, fd, 5)
    for one in (fd, reading, other, appending, directory):
        os.close(one)


@case("space")
def statvfs_tells_the_truth(t: Scene) -> None:
    found = os.statvfs(t.top)
    true(found.f_bsize > 0 and found.f_frsize > 0, "block sizes")
    true(found.f_blocks >= found.f_bfree >= found.f_bavail >= 0, "block counts")
    true(found.f_blocks > 0, "a size")
    same(found.f_namemax, 255)


@case("space")
def reflink_works_or_is_refused(t: Scene) -> None:
    import fcntl

    source = _open(t, 100, "source")
    target = _open(t, name="target")
    try:
        fcntl.ioctl(target, 0x40049409, source)  # FICLONE
    except OSError as error:
        allowed = {EOPNOTSUPP, EINVAL, errno.ENOTTY, errno.EXDEV, errno.ENOSYS}
        true(error.errno in allowed, f"errno {error.errno}")
    os.close(source)
    os.close(target)
