"""open with all its flags, mkdir, mknod, mkfifo; umask and set-gid directories."""

from __future__ import annotations

import os
import stat
from errno import (
    EACCES,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    ENOENT,
    ENOTDIR,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
)

from tests.posix import libc
from tests.posix.scene import (
    KINDS,
    SHARED_GID,
    Scene,
    add,
    case,
    fails,
    in_child,
    mode_of,
    read_file,
    same,
    true,
)

_MAKERS = {
    "open": lambda path, mode: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode)),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda path, mode: os.mknod(path, stat.S_IFREG | mode),
}


def _umask(t: Scene, maker: str) -> None:
    for mask in (0o000, 0o022, 0o077, 0o777):
        path = t.path(f"{maker}{mask:o}")

        def work(path: bytes = path, mask: int = mask) -> None:
            os.umask(mask)
            _MAKERS[maker](path, 0o777)

        in_child(lambda: None, work)
        same(mode_of(path), 0o777 & ~mask, f"umask {mask:o}")


def _set_gid_directory(t: Scene, maker: str) -> None:
    t.directory("shared", 0o2777, gid=SHARED_GID)
    path = t.path("shared/new")
    t.bob(_MAKERS[maker], path, 0o755)
    status = os.stat(path)
    same((status.st_uid, status.st_gid), (t.bob.uid, SHARED_GID))
    same(status.st_mode & 0o2000, 0o2000 if maker == "mkdir" else 0)


def _owner(t: Scene, maker: str) -> None:
    t.directory("open", 0o777)
    path = t.path("open/new")
    t.alice(_MAKERS[maker], path, 0o755)
    status = os.stat(path)
    same((status.st_uid, status.st_gid), (t.alice.uid, t.alice.gid))


def _parent_times(t: Scene, maker: str) -> None:
    path = t.path("new")
    same(t.moved(t.top, lambda: _MAKERS[maker](path, 0o644)), {"mtime", "ctime"})
    fails(EEXIST, os.mkdir, path)
    same(t.moved(t.top, lambda: fails(EEXIST, os.mkdir, path)), set())


for _maker in _MAKERS:
    add(f"create.umask_{_maker}", lambda t, m=_maker: _umask(t, m))
    add(f"create.set_gid_{_maker}", lambda t, m=_maker: _set_gid_directory(t, m))
    add(f"create.owner_{_maker}", lambda t, m=_maker: _owner(t, m))
    add(f"create.parent_times_{_maker}", lambda t, m=_maker: _parent_times(t, m))


def _stat_of_kind(t: Scene, kind: str) -> None:
    path = t.make(kind, "new")
    status = os.lstat(path)
    wanted = {
        "regular": stat.S_ISREG,
        "directory": stat.S_ISDIR,
        "fifo": stat.S_ISFIFO,
        "socket": stat.S_ISSOCK,
        "character": stat.S_ISCHR,
        "block": stat.S_ISBLK,
        "symlink": stat.S_ISLNK,
    }
    true(wanted[kind](status.st_mode), f"type of a {kind}")
    if kind == "regular":
        same((status.st_nlink, status.st_size, status.st_blocks), (1, 0, 0))
    if kind == "character":
        same(status.st_rdev, os.makedev(1, 3))
    if kind == "block":
        same(status.st_rdev, os.makedev(7, 0))


for _kind in KINDS:
    add(f"create.stat_{_kind}", lambda t, kind=_kind: _stat_of_kind(t, kind))


@case("create")
def mkdir_strips_what_is_not_permission(t: Scene) -> None:
    old = os.umask(0)
    try:
        os.mkdir(t.path("dir"), 0o7777)
    finally:
        os.umask(old)
    same(mode_of(t.path("dir")), 0o1777)


@case("create")
def mknod_of_devices_needs_root(t: Scene) -> None:
    t.directory("open", 0o777)
    path = t.path("open/device")
    t.alice.fails(EPERM, os.mknod, path, stat.S_IFCHR | 0o644, os.makedev(1, 3))
    t.alice(os.mknod, path, stat.S_IFIFO | 0o644)
    t.alice(os.mknod, t.path("open/socket"), stat.S_IFSOCK | 0o644)


@case("create")
def mknod_of_a_directory_is_refused(t: Scene) -> None:
    fails({EPERM, EINVAL}, os.mknod, t.path("x"), stat.S_IFDIR | 0o755)


@case("create")
def fifo_carries_data(t: Scene) -> None:
    path = t.fifo()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, b"through")
    same(os.read(reader, 10), b"through")
    os.close(reader)
    os.close(writer)
    same(os.stat(path).st_size, 0)


@case("create")
def fifo_without_reader(t: Scene) -> None:
    fails(ENXIO, os.open, t.fifo(), os.O_WRONLY | os.O_NONBLOCK)


@case("create")
def socket_file_cannot_be_opened(t: Scene) -> None:
    fails(ENXIO, os.open, t.make("socket", "socket"), os.O_RDONLY)


@case("create")
def unix_socket_can_be_bound_and_reached(t: Scene) -> None:
    import socket

    here = os.getcwd()
    os.chdir(t.top)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("sock")
            server.listen()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect("sock")
    finally:
        os.chdir(here)
    true(stat.S_ISSOCK(os.stat(t.path("sock")).st_mode), "is a socket")


@case("open")
def excl_on_existing(t: Scene) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    for kind in KINDS:
        fails(EEXIST, os.open, t.make(kind, kind), flags)


@case("open")
def excl_creates_once(t: Scene) -> None:
    path = t.path("lock")

    def try_it() -> bool:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    won = [in_child(lambda: None, try_it) for _ in range(5)]
    same(won.count(True), 1)


@case("open")
def creates_with_mode_0_and_the_descriptor_writes(t: Scene) -> None:
    t.directory("open", 0o777)
    path = t.path("open/new")

    def work() -> None:
        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0)
        os.write(fd, b"1")
        os.close(fd)

    t.alice(work)
    same((mode_of(path), os.stat(path).st_size), (0, 1))


@case("open")
def creates_read_only_with_write_descriptor(t: Scene) -> None:
    t.directory("open", 0o777)
    path = t.path("open/new")

    def work() -> None:
        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o444)
        os.write(fd, b"object")
        os.close(fd)
        fails(EACCES, os.open, path, os.O_WRONLY)

    t.alice(work)
    same(read_file(path), b"object")


@case("open")
def through_dangling_symlink_creates_the_target(t: Scene) -> None:
    link = t.link_to("target")
    os.close(os.open(link, os.O_CREAT | os.O_WRONLY, 0o644))
    true(stat.S_ISREG(os.lstat(t.path("target")).st_mode), "target made")


@case("open")
def nofollow(t: Scene) -> None:
    t.file()
    fails(ELOOP, os.open, t.link_to("file"), os.O_RDONLY | os.O_NOFOLLOW)
    os.close(os.open(t.path("file"), os.O_RDONLY | os.O_NOFOLLOW))


@case("open")
def directory_flag(t: Scene) -> None:
    fails(ENOTDIR, os.open, t.file(), os.O_RDONLY | os.O_DIRECTORY)
    os.close(os.open(t.directory(), os.O_RDONLY | os.O_DIRECTORY))
    fails(ENOENT, os.open, t.path("none"), os.O_RDONLY | os.O_DIRECTORY)


@case("open")
def directory_for_writing(t: Scene) -> None:
    path = t.directory()
    fails(EISDIR, os.open, path, os.O_WRONLY)
    fails(EISDIR, os.open, path, os.O_RDWR)
    fails(EISDIR, os.open, path, os.O_RDONLY | os.O_CREAT)
    fails(EISDIR, os.open, path, os.O_RDONLY | os.O_TRUNC)


@case("open")
def read_of_a_directory(t: Scene) -> None:
    fd = os.open(t.directory(), os.O_RDONLY)
    fails(EISDIR, os.read, fd, 10)
    os.close(fd)


@case("open")
def truncates(t: Scene) -> None:
    path = t.file(data=b"12345")
    fd = os.open(path, os.O_RDWR | os.O_TRUNC)
    same(os.fstat(fd).st_size, 0)
    same(os.read(fd, 5), b"")
    os.close(fd)


@case("open")
def truncate_moves_mtime_and_ctime(t: Scene) -> None:
    path = t.file(data=b"12345")
    same(
        t.moved(path, lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))),
        {"mtime", "ctime"},
    )


@case("open")
def plain_open_moves_nothing(t: Scene) -> None:
    path = t.file(data=b"12345")
    same(t.moved(path, lambda: os.close(os.open(path, os.O_RDWR))), set())
    flags = os.O_RDWR | os.O_CREAT
    same(t.moved(path, lambda: os.close(os.open(path, flags))), set())
    same(t.moved(t.top, lambda: os.close(os.open(path, flags))), set())


@case("open")
def appends(t: Scene) -> None:
    path = t.file(data=b"12345")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    os.write(fd, b"67")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"89")
    same(os.lseek(fd, 0, os.SEEK_CUR), 9)
    os.close(fd)
    same(read_file(path), b"123456789")


@case("open")
def wrong_direction(t: Scene) -> None:
    path = t.file(data=b"1")
    fd = os.open(path, os.O_RDONLY)
    fails(9, os.write, fd, b"x")
    os.close(fd)
    fd = os.open(path, os.O_WRONLY)
    fails(9, os.read, fd, 1)
    os.close(fd)


@case("open")
def path_descriptor(t: Scene) -> None:
    path = t.file(data=b"1")
    fd = os.open(path, os.O_PATH)
    same(os.fstat(fd).st_size, 1)
    fails(9, os.read, fd, 1)
    os.close(fd)


@case("open")
def tmpfile_without_a_name(t: Scene) -> None:
    fd = os.open(t.top, libc.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"anonymous")
    same(os.fstat(fd).st_nlink, 0)
    same(os.listdir(t.top), [])
    same(os.pread(fd, 9, 0), b"anonymous")
    os.close(fd)


@case("open")
def tmpfile_gets_a_name(t: Scene) -> None:
    fd = os.open(t.top, libc.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"named later")
    libc.linkat_fd(fd, t.path("named"))
    same(os.fstat(fd).st_nlink, 1)
    os.close(fd)
    same(
        (read_file(t.path("named")), mode_of(t.path("named"))), (b"named later", 0o640)
    )


@case("open")
def tmpfile_exclusive_never_gets_a_name(t: Scene) -> None:
    fd = os.open(t.top, libc.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    fails({ENOENT, EOPNOTSUPP}, libc.linkat_fd, fd, t.path("named"))
    os.close(fd)


@case("open")
def noatime_is_for_the_owner(t: Scene) -> None:
    path = t.file(mode=0o644)
    t.alice.fails(EPERM, os.open, path, os.O_RDONLY | os.O_NOATIME)
    os.close(os.open(path, os.O_RDONLY | os.O_NOATIME))


@case("open")
def running_program_cannot_be_written(t: Scene) -> None:
    path = t.file("sleep", read_file(b"/bin/sleep"), 0o755)
    pid = os.spawnv(os.P_NOWAIT, os.fsdecode(path), ["sleep", "10"])
    try:
        for _ in range(200):
            if os.readlink(f"/proc/{pid}/exe") == os.fsdecode(path):
                break
            t.tick()
        fails(26, os.open, path, os.O_WRONLY)
        fails(26, os.truncate, path, 0)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@case("open")
def thousand_files_at_once(t: Scene) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    fds = []
    try:
        for number in range(1000):
            flags = os.O_CREAT | os.O_RDWR
            fd = os.open(t.path(f"{number}"), flags, 0o644)
            os.write(fd, b"%d" % number)
            fds.append(fd)
        for number, fd in enumerate(fds):
            same(os.pread(fd, 10, 0), b"%d" % number)
    finally:
        for fd in fds:
            os.close(fd)
