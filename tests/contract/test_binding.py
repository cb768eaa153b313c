"""What every binding promises, whatever it is made of."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from tests.lib.serve import Mount, mounted

MIB = 1 << 20


@pytest.fixture
def top(mount: Mount, request: pytest.FixtureRequest) -> Path:
    """An empty directory on the mount."""
    path = mount.path / request.node.name.replace("/", "_")[:100]
    path.mkdir()
    return path


def mount_line(mount: Mount) -> list[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4] == str(mount.path):
            return line.split()
    raise AssertionError("not mounted")


# -- the mount ---------------------------------------------------------------------


def test_mount_shows_its_type_and_source(mount: Mount) -> None:
    line = mount_line(mount)
    kind, source = line[line.index("-") + 1 : line.index("-") + 3]
    assert (kind, source) == ("fuse.dfs", "dfs@test")


def test_mount_lets_the_kernel_check_permissions(mount: Mount) -> None:
    options = mount_line(mount)[-1].split(",")
    assert {"default_permissions", "allow_other"} <= set(options)


def test_root_is_an_ordinary_directory(mount: Mount) -> None:
    status = mount.path.stat()
    assert stat.S_ISDIR(status.st_mode)
    assert status.st_ino == 1
    assert status.st_nlink >= 2


def test_statvfs_has_room(mount: Mount) -> None:
    found = os.statvfs(mount.path)
    assert found.f_bavail > 0
    assert found.f_namemax == 255


def test_read_only_mount_refuses_every_change(binding: str) -> None:
    with mounted(binding, flags=("ro",)) as made:
        path = made.path
        for change in (
            lambda: os.mkdir(path / "d"),
            lambda: os.mknod(path / "f"),
            lambda: os.symlink("x", path / "l"),
            lambda: os.chmod(path, 0o700),
            lambda: os.utime(path),
            lambda: os.setxattr(path, "user.a", b"1"),
            lambda: os.open(path / "f", os.O_CREAT | os.O_WRONLY),
        ):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno == errno.EROFS
        assert os.listdir(path) == []


def test_unmount_is_refused_while_a_file_is_open(own_mount: Mount) -> None:
    with (own_mount.path / "open").open("w"):
        done = subprocess.run(["umount", own_mount.path], capture_output=True)
        assert done.returncode
    assert (own_mount.path / "open").exists()


def test_sigterm_makes_way_and_keeps_what_was_written(own_mount: Mount) -> None:
    (own_mount.path / "file").write_bytes(b"kept")
    own_mount.process.terminate()
    asked = []
    while own_mount.process.poll() is None and len(asked) < 60:
        command = ["stat", "-f", own_mount.path]
        asked.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        with contextlib.suppress(subprocess.TimeoutExpired):
            own_mount.process.wait(0.5)  # the kernel binding ends at the next request
    assert own_mount.process.poll() is not None
    own_mount.kill()
    for each in asked:
        each.wait(30)
    own_mount.start()
    assert (own_mount.path / "file").read_bytes() == b"kept"


# -- the same tree after a restart ---------------------------------------------------


def describe(top: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        found[str(path.relative_to(top))] = (
            status.st_ino,
            status.st_mode,
            status.st_nlink,
            status.st_uid,
            status.st_gid,
            status.st_size,
            status.st_blocks,
            status.st_mtime_ns,
            status.st_ctime_ns,
            os.listxattr(path, follow_symlinks=False),
            content,
        )
    return found


def make_tree(top: Path) -> None:
    (top / "dir" / "sub").mkdir(parents=True)
    (top / "dir" / "small").write_bytes(b"small")
    (top / "dir" / "empty").touch()
    (top / "large").write_bytes(os.urandom(3 * MIB + 5))
    os.link(top / "large", top / "dir" / "linked")
    os.symlink("dir/small", top / "symlink")
    os.mkfifo(top / "fifo")
    os.setxattr(top / "dir", "user.color", b"blue")
    os.utime(top / "dir" / "small", ns=(1, 2))
    os.chown(top / "dir" / "empty", 5, 6)
    (top / "dir" / "empty").chmod(0o4711)
    with (top / "sparse").open("wb") as stream:
        stream.truncate(10 * MIB)


def test_restart_shows_the_same_tree(own_mount: Mount) -> None:
    make_tree(own_mount.path)
    before = describe(own_mount.path)
    own_mount.restart()
    assert describe(own_mount.path) == before


def test_kill_keeps_what_was_synced(own_mount: Mount) -> None:
    data = os.urandom(2 * MIB + 17)
    fd = os.open(own_mount.path / "synced", os.O_CREAT | os.O_WRONLY)
    os.write(fd, data)
    os.fsync(fd)
    own_mount.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    own_mount.start()
    assert (own_mount.path / "synced").read_bytes() == data


def test_kill_keeps_what_was_closed(own_mount: Mount) -> None:
    make_tree(own_mount.path)
    before = describe(own_mount.path)
    own_mount.kill()
    own_mount.start()
    assert describe(own_mount.path) == before


def test_removed_open_file_is_gone_after_a_kill(own_mount: Mount) -> None:
    stream = (own_mount.path / "removed").open("wb")
    stream.write(b"x" * MIB)
    stream.flush()
    os.unlink(own_mount.path / "removed")
    (own_mount.path / "other").touch()
    own_mount.kill()
    try:
        stream.close()
    except OSError:
        pass
    own_mount.start()
    assert os.listdir(own_mount.path) == ["other"]


# -- open and removed ----------------------------------------------------------------


def test_removed_open_file_is_listed_by_nobody(top: Path) -> None:
    path = top / "file"
    path.write_bytes(b"data")
    with path.open("r+b") as stream:
        path.unlink()
        assert os.listdir(top) == []
        assert os.fstat(stream.fileno()).st_nlink == 0
        stream.seek(0, os.SEEK_END)
        stream.write(b" and more")
        stream.seek(0)
        assert stream.read() == b"data and more"
        assert not path.exists()
    assert os.listdir(top) == []


def test_two_removed_files_of_one_name_stay_apart(top: Path) -> None:
    path = top / "file"
    streams = []
    for number in range(5):
        stream = path.open("w+b")
        stream.write(b"%d" % number)
        stream.flush()
        path.unlink()
        streams.append(stream)
    for number, stream in enumerate(streams):
        stream.seek(0)
        assert stream.read() == b"%d" % number
        stream.close()


def test_removed_open_file_survives_a_rename_of_its_directory(top: Path) -> None:
    (top / "dir").mkdir()
    with (top / "dir" / "file").open("w+b") as stream:
        stream.write(b"before")
        stream.flush()
        (top / "dir" / "file").unlink()
        (top / "dir").rename(top / "moved")
        assert os.fstat(stream.fileno()).st_size == 6
        stream.write(b" after")
        stream.seek(0)
        assert stream.read() == b"before after"


def test_replaced_name_is_never_missing(top: Path, binding: str) -> None:
    path, fresh = top / "name", top / "fresh"
    path.write_bytes(b"0")
    missing: list[OSError] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            try:
                with path.open("rb") as stream:
                    assert len(stream.read()) == 1
            except OSError as error:
                # by path, between two calls, twice in a row: libfuse 2's limit
                if binding == "kernel" or error.errno != errno.ESTALE:
                    missing.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in range(200):
            with path.open("rb"):
                fresh.write_bytes(b"%d" % (number % 10))
                os.rename(fresh, path)
    finally:
        ended.set()
        watcher.join()
    assert not missing
    assert os.listdir(top) == ["name"]


def test_failed_replace_of_an_open_file_leaves_it(top: Path) -> None:
    (top / "file").write_bytes(b"here")
    (top / "dir").mkdir()
    with (top / "file").open("rb") as stream:
        with pytest.raises(OSError):
            os.rename(top / "dir", top / "file")
        assert stream.read() == b"here"
    assert (top / "file").read_bytes() == b"here"


# -- names, lists, sizes ---------------------------------------------------------------


def test_names_of_any_bytes_come_back(top: Path) -> None:
    names = [b"latin-\xe9", b"utf-\xc3\xa9", b"\xff", b"new\nline", b" ", b"-rf"]
    for name in names:
        os.mkdir(os.fsencode(top) + b"/" + name)
        os.symlink(b"to-" + name, os.fsencode(top) + b"/link" + name)
    listed = os.listdir(os.fsencode(top))
    assert sorted(listed) == sorted(names + [b"link" + name for name in names])
    for name in names:
        assert os.readlink(os.fsencode(top) + b"/link" + name) == b"to-" + name


def test_big_directory_lists_types_without_stat(top: Path) -> None:
    for number in range(5_000):
        os.mknod(top / f"file{number}")
    (top / "dir").mkdir()
    with os.scandir(top) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    assert len(found) == 5_001
    assert [name for name, is_dir in found if is_dir] == ["dir"]
    shutil.rmtree(top)
    assert not top.exists()


def test_large_file_round_trip(top: Path) -> None:
    data = os.urandom(1 << 16) * 400
    (top / "large").write_bytes(data)
    assert (top / "large").read_bytes() == data
    assert (top / "large").stat().st_blocks * 512 >= len(data)


def test_copy_by_coreutils_keeps_everything(top: Path) -> None:
    make_tree(top)
    copy = top.parent / (top.name + "-copy")
    subprocess.run(["cp", "-a", "--sparse=always", top, copy], check=True)

    def comparable(tree: Path) -> dict[str, object]:
        return {
            name: (*seen[1:6], seen[7], *seen[9:])  # type: ignore[index]
            for name, seen in describe(tree).items()
        }

    assert comparable(copy) == comparable(top)


def test_tar_round_trip(top: Path) -> None:
    make_tree(top)
    archive = top.parent / (top.name + ".tar")
    subprocess.run(
        ["tar", "--xattrs", "--sparse", "-C", top, "-cf", archive, "."], check=True
    )
    again = top.parent / (top.name + "-again")
    again.mkdir()
    subprocess.run(["tar", "--xattrs", "-C", again, "-xpf", archive], check=True)
    plain = {name: seen[-1] for name, seen in describe(top).items()}  # type: ignore[index]
    assert {name: seen[-1] for name, seen in describe(again).items()} == plain  # type: ignore[index]


# -- many at once ----------------------------------------------------------------------


def test_many_threads_share_the_tree(top: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(30):
                path = top / f"{number}-{step}"
                path.write_bytes(b"%d" % step)
                path.rename(top / f"{number}-{step}-done")
                assert (top / f"{number}-{step}-done").read_bytes() == b"%d" % step
                if step % 3 == 0:
                    (top / f"{number}-{step}-done").unlink()
                os.listdir(top)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(os.listdir(top)) == 12 * 20


def test_directory_renamed_while_its_files_are_used(top: Path) -> None:
    (top / "a").mkdir()
    (top / "a" / "file").write_bytes(b"one")
    for number in range(50):
        old, new = ("a", "b") if number % 2 == 0 else ("b", "a")
        (top / old).rename(top / new)
        assert (top / new / "file").read_bytes() == b"one"
        assert not (top / old).exists()
        (top / old).mkdir()
        assert not (top / old / "file").exists()
        (top / old).rmdir()
