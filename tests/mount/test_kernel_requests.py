"""The kernel binding on a real mount: what each system call becomes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusefs.bindings.kernel import mounting
from fusefs.bindings.kernel import protocol as p
from tests.lib.cluster import wait_until
from tests.lib.kernel_mount import KernelMount, ensure_control

pytestmark = pytest.mark.mount

Make = Callable[..., KernelMount]
SOON_S = 10
"""Far less than what is held is held for."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelMount]:
    ensure_control()
    mount = KernelMount(tmp_path_factory.mktemp("kernel") / "mnt")
    yield mount
    mount.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Mounts of this test alone."""
    ensure_control()
    made: list[KernelMount] = []

    def build(*options: str, state: bool = False) -> KernelMount:
        made.append(KernelMount(tmp_path / f"mnt{len(made)}", *options, state=state))
        return made[-1]

    yield build
    for mount in made:
        mount.close()


def delta(mount: KernelMount, work: Callable[[], object]) -> dict[str, int]:
    """Requests that `work` caused."""
    before = mount.requests()
    work()
    after = mount.requests()
    ignored = {"threads", "known_inodes", "requests"}
    found = {k: v - before.get(k, 0) for k, v in after.items() if k not in ignored}
    return {k: v for k, v in found.items() if v}


# -- names and attributes ------------------------------------------------------------


def test_files_are_made_read_renamed_and_removed(shared: KernelMount) -> None:
    top = shared.path / "names"
    top.mkdir()
    (top / "a").write_bytes(b"hello")
    (top / "a").rename(top / "b")
    (top / "l").symlink_to("b")
    os.link(top / "b", top / "h")
    assert (top / "l").read_bytes() == b"hello"
    assert (top / "h").stat().st_nlink == 2
    assert sorted(os.listdir(top)) == ["b", "h", "l"]
    (top / "b").unlink()
    (top / "h").unlink()
    (top / "l").unlink()
    top.rmdir()
    with pytest.raises(FileNotFoundError):
        top.stat()


def test_names_that_are_not_text_survive(shared: KernelMount) -> None:
    name = os.fsencode(shared.path) + b"/\xff\xfe\x01 x"
    os.mkdir(name)
    assert b"\xff\xfe\x01 x" in os.listdir(os.fsencode(shared.path))
    os.rmdir(name)


def test_special_files_keep_their_device_number(shared: KernelMount) -> None:
    path = shared.path / "dev"
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(300, 70_000))
    os.mknod(shared.path / "fifo", stat.S_IFIFO | 0o600)
    assert path.stat().st_rdev == os.makedev(300, 70_000)
    assert stat.S_ISFIFO((shared.path / "fifo").stat().st_mode)
    path.unlink()


def test_times_before_1970_and_nanoseconds_survive(shared: KernelMount) -> None:
    path = shared.path / "times"
    path.touch()
    os.utime(path, ns=(-5, 1_234_567_890_123_456_789))
    found = path.stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (-5, 1_234_567_890_123_456_789)


def test_exchange_and_noreplace_reach_the_vfs(shared: KernelMount) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    one, two = shared.path / "x1", shared.path / "x2"
    one.write_text("one")
    two.write_text("two")
    a, b = os.fsencode(one), os.fsencode(two)
    assert libc.renameat2(-100, a, -100, b, 2) == 0
    assert (one.read_text(), two.read_text()) == ("two", "one")
    assert libc.renameat2(-100, a, -100, b, 1) == -1
    assert ctypes.get_errno() == errno.EEXIST


def test_long_listings_come_in_pieces_without_loss(shared: KernelMount) -> None:
    top = shared.path / "many"
    top.mkdir()
    names = {f"{'n' * 100}{i:05d}" for i in range(3000)}
    for name in names:
        os.mknod(top / name)
    assert set(os.listdir(top)) == names
    with os.scandir(top) as lines:
        assert {line.name for line in lines if line.stat().st_size == 0} == names


def test_extended_attributes(shared: KernelMount) -> None:
    path = shared.path / "xattr"
    path.touch()
    os.setxattr(path, "user.one", b"1" * 1000)
    os.setxattr(path, "user.two", b"")
    assert os.getxattr(path, "user.one") == b"1" * 1000
    assert sorted(os.listxattr(path)) == ["user.one", "user.two"]
    os.removexattr(path, "user.one")
    with pytest.raises(OSError) as raised:
        os.getxattr(path, "user.one")
    assert raised.value.errno == errno.ENODATA
    with pytest.raises(OSError) as raised:
        os.setxattr(path, "user.two", b"", os.XATTR_CREATE)
    assert raised.value.errno == errno.EEXIST


def test_birth_time_is_shown(shared: KernelMount) -> None:
    path = shared.path / "birth"
    path.touch()
    command = ["stat", "-c", "%W", str(path)]
    shown = subprocess.run(command, capture_output=True, check=True, timeout=10)
    assert abs(int(shown.stdout) - time.time()) < 60


def test_file_system_statistics(shared: KernelMount) -> None:
    found = os.statvfs(shared.path)
    assert (found.f_bsize, found.f_namemax) == (4096, 255)
    assert found.f_bavail == 1 << 28


# -- open files ----------------------------------------------------------------------


def test_large_reads_and_writes_keep_every_byte(shared: KernelMount) -> None:
    path = shared.path / "large"
    data = os.urandom(5 << 20) + b"tail"
    path.write_bytes(data)
    os.posix_fadvise(fd := os.open(path, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert path.read_bytes() == data


def test_writes_come_in_requests_of_a_mebibyte(shared: KernelMount) -> None:
    data = b"x" * (8 << 20)
    fd = os.open(shared.path / "big", os.O_CREAT | os.O_WRONLY)
    assert delta(shared, lambda: os.write(fd, data))["write"] == 8
    os.close(fd)


def test_append_truncate_and_holes(shared: KernelMount) -> None:
    path = shared.path / "grow"
    with path.open("ab") as file:
        file.write(b"ab")
        file.flush()
        file.write(b"cd")
    assert path.read_bytes() == b"abcd"
    os.truncate(path, 2)
    assert path.read_bytes() == b"ab"
    with path.open("r+b") as file:
        file.truncate(5)
        assert file.read() == b"ab\0\0\0"
    with path.open("wb"):
        pass
    assert path.stat().st_size == 0


def test_fallocate_lseek_and_copy_file_range(shared: KernelMount) -> None:
    path = shared.path / "ranges"
    with path.open("w+b") as file:
        file.write(b"0123456789")
        file.flush()
        fd = file.fileno()
        os.posix_fallocate(fd, 0, 20)
        assert os.fstat(fd).st_size == 20
        assert os.lseek(fd, 3, os.SEEK_DATA) == 3
        assert os.lseek(fd, 3, os.SEEK_HOLE) == 20
        with pytest.raises(OSError) as raised:
            os.lseek(fd, 30, os.SEEK_DATA)
        assert raised.value.errno == errno.ENXIO
        with (shared.path / "copy").open("wb") as other:
            assert os.copy_file_range(fd, other.fileno(), 10, 0) == 10
    assert (shared.path / "copy").read_bytes() == b"0123456789"


def test_unlinked_open_file_is_readable_and_forgotten_later(make: Make) -> None:
    mount = make()
    path = mount.path / "gone"
    path.write_bytes(b"still here")
    ino = path.stat().st_ino
    with path.open("r+b") as file:
        path.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == b"still here"
        file.write(b"!")
        assert os.listdir(mount.path) == ["d"]
    wait_until(
        lambda: ino in mount.do("seen")["forgotten"],  # type: ignore[index]
        "it is forgotten",
    )


def test_unnamed_temporary_file_can_be_linked(shared: KernelMount) -> None:
    fd = os.open(shared.path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"made")
    target = shared.path / "linked"
    libc = ctypes.CDLL(None, use_errno=True)
    name = f"/proc/self/fd/{fd}".encode()
    assert libc.linkat(-100, name, -100, os.fsencode(target), 0x400) == 0
    os.close(fd)
    assert target.read_bytes() == b"made"


def test_mapped_memory_is_written_back(shared: KernelMount) -> None:
    import mmap

    path = shared.path / "mapped"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        memory[4000:4004] = b"mmap"
        memory.flush()
    assert path.read_bytes()[4000:4004] == b"mmap"


# -- requests that are not made ------------------------------------------------------


def test_warm_tree_is_served_by_the_kernel(make: Make) -> None:
    mount = make("--files", "300")
    top = mount.path / "d"

    def walk() -> None:
        for name in sorted(os.listdir(top)):
            (top / name).stat()
        assert not (top / "absent").exists()

    # Not at once: listing moves the access time, and what is released comes later.
    wait_until(lambda: delta(mount, walk) == {}, "walking it asks nothing")

    def read() -> None:
        for name in sorted(os.listdir(top)):
            (top / name).read_bytes()

    usual = {"open", "flush", "release", "ioctl"}
    wait_until(lambda: delta(mount, read).keys() <= usual, "reading it reads nothing")


def test_reading_sends_no_flush_where_locks_are_local(make: Make) -> None:
    mount = make("--local-locks")
    path = mount.path / "d" / "f0001"
    path.read_bytes()
    path.read_bytes()
    assert set(delta(mount, path.read_bytes)) <= {"open", "release", "ioctl"}


def test_writes_cost_no_getxattr_but_the_first(make: Make) -> None:
    mount = make()
    fd = os.open(mount.path / "plain", os.O_CREAT | os.O_WRONLY)

    def write() -> None:
        for _ in range(5):
            os.write(fd, b"x")

    os.write(fd, b"x")
    assert delta(mount, write) == {"write": 5}
    os.close(fd)


# -- waiting -------------------------------------------------------------------------


def test_many_waiting_flushes_hold_up_nobody(make: Make) -> None:
    mount = make()
    mount.do("hold", "flush")
    script = "import sys; f = open(sys.argv[1], 'wb'); f.write(b'x'); f.close()"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(mount.path / f"w{i}")])
        for i in range(8)
    ]
    assert mount.do("waiting", "flush", 8)
    started = time.monotonic()
    (mount.path / "d" / "f0003").stat()
    (mount.path / "other").mkdir()
    assert time.monotonic() - started < SOON_S
    mount.do("release", "flush")
    assert [w.wait(30) for w in writers] == [0] * 8


def test_silent_waits_of_all_readers_hold_up_others_only_briefly(make: Make) -> None:
    mount = make()
    os.stat(mount.path / "d")
    mount.do("hold", "mkdir")
    wanted = [mount.path / "d" / "x", mount.path / "y"]
    makers = [subprocess.Popen(["mkdir", str(path)]) for path in wanted]
    assert mount.do("waiting", "mkdir", 2)
    started = time.monotonic()
    os.statvfs(mount.path)
    assert time.monotonic() - started < SOON_S
    mount.do("release", "mkdir")
    assert [m.wait(30) for m in makers] == [0, 0]


def test_read_of_bytes_that_do_not_come_is_interrupted(make: Make) -> None:
    mount = make()
    mount.do("mark", "d/f0002", "user.stuck")
    cat = subprocess.Popen(["cat", str(mount.path / "d" / "f0002")])
    wait_until(lambda: mount.requests().get("read", 0) > 0, "it reads")
    assert cat.poll() is None
    cat.send_signal(signal.SIGINT)
    cat.wait(SOON_S)


_LOCKER = """
import fcntl, os, sys, time
f = open(sys.argv[1], 'r+b')
(fcntl.flock if sys.argv[2] == 'flock' else fcntl.lockf)(f, fcntl.LOCK_EX)
print('locked', flush=True)
time.sleep(60)
"""


def says_locked(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 30)
    return bool(ready) and process.stdout.readline() == b"locked\n"


def locker(path: Path, how: str) -> subprocess.Popen[bytes]:
    """A program that takes the lock, says so and holds it."""
    command = [sys.executable, "-c", _LOCKER, str(path), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_locks_exclude_block_and_are_interrupted(make: Make, how: str) -> None:
    mount = make()
    path = mount.path / "d" / "f0001"
    holder = locker(path, how)
    assert says_locked(holder)
    take = fcntl.flock if how == "flock" else fcntl.lockf
    with path.open("r+b") as file:
        with pytest.raises(BlockingIOError):
            take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (waiter,) = waiting_for(mount, 1, lambda: locker(path, how))
        waiter.send_signal(signal.SIGINT)
        assert waiter.wait(30) != 0
        (second,) = waiting_for(mount, 1, lambda: locker(path, how))
        holder.kill()
        assert says_locked(second)
        second.kill()
        holder.wait(30)
        second.wait(30)
    assert "setlk" in mount.do("seen")["cancelled"]  # type: ignore[index]


def waiting_for(
    mount: KernelMount, count: int, start: Callable[[], subprocess.Popen[bytes]]
) -> list[subprocess.Popen[bytes]]:
    """So many programs that the worker has seen wait for a lock."""
    wanted = mount.requests().get("setlkw", 0) + count
    waiters = [start() for _ in range(count)]
    wait_until(
        lambda: mount.requests().get("setlkw", 0) >= wanted, "their requests are read"
    )
    return waiters


def flock(path: Path) -> subprocess.Popen[bytes]:
    """A program that takes the lock and gives it back."""
    return subprocess.Popen(["flock", str(path), "true"])


def test_who_holds_a_lock_is_served_however_many_wait_for_it(make: Make) -> None:
    mount = make("--most-threads", "3")
    path = mount.path / "d" / "f0001"
    holder = locker(path, "flock")
    assert says_locked(holder)
    waiters = waiting_for(mount, 8, lambda: flock(path))
    subprocess.run(["stat", "-f", str(mount.path)], timeout=30, check=True)
    holder.kill()
    assert [w.wait(30) for w in waiters] == [0] * 8
    holder.wait(30)


def test_locks_that_too_many_wait_for_are_refused(make: Make) -> None:
    mount = make("--most-parked", "4")
    path = mount.path / "d" / "f0001"
    holder = locker(path, "flock")
    assert says_locked(holder)
    waiters = waiting_for(mount, 8, lambda: flock(path))
    wait_until(lambda: sum(w.poll() is None for w in waiters) <= 4, "four are refused")
    subprocess.run(["stat", "-f", str(mount.path)], timeout=30, check=True)
    with (mount.path / "d" / "f0002").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_UN)
    holder.kill()
    assert sum(w.wait(30) == 0 for w in waiters) == 4
    holder.wait(30)


# -- mounting ------------------------------------------------------------------------


def test_mount_is_shown_with_its_name_and_type(shared: KernelMount) -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    (line,) = [one for one in lines if f" {shared.path} " in one]
    assert " - fuse.dfs dfs@test rw" in line
    assert "nosuid,nodev" in line


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user can reach and owns."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        where = Path(top) / "mnt"
        where.mkdir()
        os.chown(where, 65534, 65534)
        yield where
        subprocess.run(["umount", "-l", str(where)], capture_output=True, check=False)


def test_ordinary_user_mounts_by_fusermount(open_directory: Path) -> None:
    where = open_directory
    if not Path("/usr/bin/python3").exists():
        pytest.skip("no interpreter that another user may run")
    script = (
        "import os, sys\n"
        "from fusefs.bindings.kernel import mounting, protocol as p\n"
        "fd = mounting.mount(sys.argv[1], fsname='me')\n"
        "head = os.read(fd, 1 << 21)\n"
        "print(p.IN_START.unpack_from(head)[1])\n"
        "mounting.unmount(sys.argv[1])\n"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script, str(where)],
        user=65534, group=65534, extra_groups=[], capture_output=True, text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])}, timeout=20, check=False,
    )  # fmt: skip
    if "Permission denied" in done.stderr:
        pytest.skip(f"not allowed here: {done.stderr.strip()[-200:]}")
    assert done.stdout == "26\n", done.stderr


def test_fusermount_hands_over_the_descriptor(tmp_path: Path) -> None:
    """The way of ordinary users, which works for root too."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    words = ["ro", "nodev", "relatime", "nodiratime"]
    fd = mounting._mount_by_fusermount(str(tmp_path), "dfs@me,you", words)
    try:
        assert p.IN_START.unpack_from(os.read(fd, 1 << 21))[1] == p.Op.INIT
        assert not os.get_inheritable(fd)
        shown = Path("/proc/self/mountinfo").read_text()
        (line,) = [one for one in shown.splitlines() if f" {tmp_path} " in one]
        assert " - fuse.dfs dfs@me,you ro" in line
    finally:
        mounting.unmount(tmp_path, lazy=True)
        os.close(fd)


def test_root_may_keep_others_out(tmp_path: Path) -> None:
    for flags, shown in (([], True), (["allow_root"], False)):
        fd = mounting.mount(tmp_path, flags=flags)
        try:
            table = Path("/proc/self/mountinfo").read_text().splitlines()
            (line,) = [one for one in table if f" {tmp_path} " in one]
            assert ("allow_other" in line) == shown
        finally:
            mounting.unmount(tmp_path, lazy=True)
            os.close(fd)


def test_fusermount_says_why_it_refuses(tmp_path: Path) -> None:
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    with pytest.raises(PermissionError, match="fusermount3: "):
        mounting._mount_by_fusermount(str(tmp_path / "absent"), "dfs", [])
