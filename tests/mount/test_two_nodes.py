"""One tree on two and three machines: what is done on one is seen on the others."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import stat
from pathlib import Path

import pytest

from tests.lib.cluster import Cluster, Node, errno_of, holds, wait_until

pytestmark = pytest.mark.mount

MIB = 1 << 20
SIZES = [0, 1, 4096, MIB - 1, MIB, MIB + 1, 100 * MIB]


def content(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def sha(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def appears(path: Path) -> None:
    wait_until(path.exists, f"{path} exists")


def _size(path: Path) -> int:
    """-1 where there is none."""
    return path.stat().st_size if path.exists() else -1


def test_files_of_every_size_are_identical_on_three_nodes(fresh: Cluster) -> None:
    a, b, c = fresh.start(3)
    for size in SIZES:
        data = content(size, size)
        (a.mnt / f"{size}").write_bytes(data)
        for other in (b, c):
            path = other.mnt / f"{size}"
            wait_until(lambda p=path, n=size: _size(p) == n, "it is there")  # type: ignore[misc]
            assert (other.mnt / f"{size}").stat().st_size == size
            assert sha(other.mnt / f"{size}") == hashlib.sha256(data).hexdigest()
    fresh.wait_equal()


def test_close_is_seen_by_the_next_open_on_the_peer(pair: list[Node]) -> None:
    """No waiting in this test: close-to-open between near connected peers."""
    a, b = pair
    path, there = a.mnt / "now", b.mnt / "now"
    for number in range(300):
        writer, reader = (path, there) if number % 2 else (there, path)
        data = f"round {number}".encode() * (number % 5 + 1)
        writer.write_bytes(data)
        assert reader.read_bytes() == data
        assert reader.stat().st_size == len(data)


def test_a_file_changed_in_many_places_is_seen_by_the_next_open_on_the_peer(
    pair: list[Node],
) -> None:
    """As a database or a disk image is: its chunks become small, and each close has
    more of them than one message takes along."""
    a, b = pair
    data = bytearray(content(4 * MIB, 0))
    rng = random.Random(0)
    (a.mnt / "image").write_bytes(data)
    for _ in range(25):
        with (a.mnt / "image").open("r+b", buffering=0) as image:
            for _ in range(24):
                at = rng.randrange(len(data) // 65536) * 65536
                part = rng.randbytes(rng.choice((100, 4096, 50_000)))
                os.pwrite(image.fileno(), part, at)
                data[at : at + len(part)] = part
        assert (b.mnt / "image").read_bytes() == data
    log = (a.store / "run" / "worker.log").read_text()
    assert "the link to the node broke" not in log


@pytest.mark.parametrize("where", [0, 1])
def test_names_that_change_while_they_are_listed_show_what_they_are(
    pair: list[Node], where: int
) -> None:
    """A listing that brings attributes fills the kernel's names, for ever."""
    a, reader = pair[0].mnt / f"many-{where}", pair[where].mnt / f"many-{where}"
    a.mkdir()
    for number in range(1100):
        (a / f"file-with-a-longer-name-{number:05}").touch()
    wait_until(lambda: len(os.listdir(reader)) == 1100, "all are there")
    late = [entry.name for entry in os.scandir(reader)][-45:]
    (a / "one-more").touch()  # the listing kept is not used
    wait_until((reader / "one-more").exists, "it is there")
    Path("/proc/sys/vm/drop_caches").write_text("2")
    listing = os.scandir(reader)
    for _, entry in zip(range(200), listing, strict=False):
        os.stat(entry.path)
    moved, replaced, linked = late[:15], late[15:30], late[30:]
    for name in moved:
        (a / name).rename(a / f"moved-{name}")
    for name in replaced:
        (a / "new").write_text("new")
        (a / "new").rename(a / name)
    for name in linked:
        os.link(a / name, a / f"other-{name}")
        (a / name).unlink()
    (a / "last").touch()
    wait_until((reader / "last").exists, "it is there")
    for entry in listing:
        try:
            os.stat(entry.path)
        except FileNotFoundError:
            continue
    # Not at once: "last" is looked up, and of the others the kernel is told.
    gone = (*moved, *linked)
    wait_until(lambda: not any((reader / n).exists() for n in gone), "the old is gone")
    wait_until(
        lambda: {(reader / name).read_text() for name in replaced} == {"new"},
        "the new is shown",
    )


def test_overwrite_append_truncate_rename_delete_arrive(pair: list[Node]) -> None:
    a, b = pair
    mine, theirs = a.mnt / "ops", b.mnt / "ops"
    mine.write_bytes(b"0123456789")
    assert theirs.read_bytes() == b"0123456789"
    with mine.open("r+b") as out:
        out.seek(3)
        out.write(b"abc")
    assert theirs.read_bytes() == b"012abc6789"
    with mine.open("ab") as out:
        out.write(b"tail")
    assert theirs.read_bytes() == b"012abc6789tail"
    with mine.open("r+b") as out:
        out.truncate(5)
    assert theirs.read_bytes() == b"012ab"
    os.rename(mine, a.mnt / "ops2")
    wait_until(lambda: not theirs.exists(), "the old name is gone")
    assert (b.mnt / "ops2").read_bytes() == b"012ab"
    os.unlink(a.mnt / "ops2")
    wait_until(lambda: not (b.mnt / "ops2").exists(), "the file is gone")


def test_replace_by_rename_is_never_half_seen(pair: list[Node]) -> None:
    a, b = pair
    target = a.mnt / "replaced"
    target.write_bytes(b"old")
    assert (b.mnt / "replaced").read_bytes() == b"old"
    for number in range(50):
        fresh_file = a.mnt / "replaced.new"
        fresh_file.write_bytes(b"new %d" % number)
        os.replace(fresh_file, target)
        wait_until(
            lambda n=number: (b.mnt / "replaced").read_bytes() == b"new %d" % n,
            "the new content",
        )


def test_directories_links_modes_and_times_arrive(pair: list[Node]) -> None:
    a, b = pair
    top = a.mnt / "tree"
    (top / "sub").mkdir(parents=True)
    file = top / "sub" / "file"
    file.write_bytes(b"data")
    os.symlink("sub/file", top / "symlink")
    os.link(file, top / "hard")
    os.chmod(file, 0o640)
    os.chmod(top / "sub", 0o2750)
    os.utime(file, ns=(1_500_000_000_123_456_789, 1_400_000_000_987_654_321))
    if os.geteuid() == 0:
        os.chown(file, 1234, 5678)
    os.setxattr(file, "user.colour", b"blue")
    os.mkfifo(top / "fifo")
    there = b.mnt / "tree"
    appears(there / "fifo")
    assert os.readlink(there / "symlink") == "sub/file"
    seen, hard = os.stat(there / "sub" / "file"), os.stat(there / "hard")
    assert (seen.st_ino, seen.st_nlink) == (hard.st_ino, 2)
    assert stat.S_IMODE(seen.st_mode) == 0o640
    assert stat.S_IMODE(os.stat(there / "sub").st_mode) == 0o2750
    assert seen.st_mtime_ns == 1_400_000_000_987_654_321
    assert stat.S_ISFIFO(os.stat(there / "fifo").st_mode)
    assert os.getxattr(there / "sub" / "file", "user.colour") == b"blue"
    if os.geteuid() == 0:
        assert (seen.st_uid, seen.st_gid) == (1234, 5678)
    assert os.stat(file).st_ino == seen.st_ino
    assert sorted(os.listdir(there)) == ["fifo", "hard", "sub", "symlink"]


def test_names_are_any_bytes(pair: list[Node]) -> None:
    a, b = pair
    names = [b"latin-\xe9", "ünïcödé-文".encode(), b"new\nline", b"-rf", b"x" * 255]
    here, there = os.fsencode(a.mnt) + b"/names", os.fsencode(b.mnt) + b"/names"
    os.mkdir(here)
    for name in names:
        with open(here + b"/" + name, "wb") as out:
            out.write(name)
    wait_until(lambda: len(os.listdir(there)) == len(names), "all names")
    assert sorted(os.listdir(there)) == sorted(names)
    for name in names:
        with open(there + b"/" + name, "rb") as source:
            assert source.read() == name


def test_an_open_file_follows_remote_appends(pair: list[Node]) -> None:
    a, b = pair
    (a.mnt / "log").write_bytes(b"one\n")
    with (b.mnt / "log").open("rb", buffering=0) as reader:
        assert reader.read() == b"one\n"
        with (a.mnt / "log").open("ab") as out:
            out.write(b"two\n")
        assert reader.read() == b"two\n"


def test_both_write_different_files_at_once(pair: list[Node]) -> None:
    a, b = pair
    for node in pair:
        (node.mnt / f"from-{node.name}").mkdir()
    for number in range(100):
        for node in pair:
            (node.mnt / f"from-{node.name}" / f"{number}").write_text(node.name)
    for node, other in ((a, b), (b, a)):
        there = node.mnt / f"from-{other.name}"
        wait_until(lambda t=there: len(os.listdir(t)) == 100, "all are there")
        assert {p.read_text() for p in there.iterdir()} == {other.name}


def test_status_knows_peers_and_equal_digests(fresh: Cluster) -> None:
    a, b = fresh.start(2)
    (a.mnt / "file").write_bytes(b"x" * 5000)
    fresh.wait_equal()
    status = a.status()
    peers = status["peers"]
    assert isinstance(peers, list)
    assert [p["name"] for p in peers] == ["B"]
    assert peers[0]["connected"] is True
    for key in ("node_id", "name", "mountpoint", "vector", "digest", "inodes"):
        assert status[key], key
    wait_until(lambda: a.status()["digest"] == b.status()["digest"], "equal digests")
    assert status["mountpoint"] == str(a.mnt)


def test_a_third_joins_through_any_member_and_knows_all(fresh: Cluster) -> None:
    a, b = fresh.start(2)
    (a.mnt / "early").write_text("from a")
    c = fresh.add().mount(token=b.token())
    fresh.wait_connected()
    wait_until(lambda: holds(c.mnt / "early", b"from a"), "it is there")
    assert a.connected() == {"B", "C"}


def test_statfs_tells_real_numbers(pair: list[Node]) -> None:
    a, _ = pair
    here, disk = os.statvfs(a.mnt), os.statvfs(a.store)
    assert here.f_namemax == 255
    assert 0 < here.f_bavail * here.f_frsize <= disk.f_blocks * disk.f_frsize


def test_errors_are_those_of_posix(pair: list[Node]) -> None:
    import errno

    a, _ = pair
    (a.mnt / "dir").mkdir()
    (a.mnt / "dir" / "file").touch()
    cases = [
        (lambda: os.rmdir(a.mnt / "dir"), errno.ENOTEMPTY),
        (lambda: os.unlink(a.mnt / "dir"), errno.EISDIR),
        (lambda: os.mkdir(a.mnt / "dir"), errno.EEXIST),
        (lambda: os.open(a.mnt / "none", os.O_RDONLY), errno.ENOENT),
        (lambda: os.stat(a.mnt / "dir" / "file" / "x"), errno.ENOTDIR),
        (lambda: os.mkdir(a.mnt / ("x" * 256)), errno.ENAMETOOLONG),
        (lambda: os.getxattr(a.mnt / "dir", "user.none"), errno.ENODATA),
    ]
    assert [errno_of(call) for call, _ in cases] == [wanted for _, wanted in cases]


def test_directory_moved_while_it_is_in_use_elsewhere_lives_on(
    pair: list[Node],
) -> None:
    """The kernel there is told of another name, not of a delete."""
    a, b = pair
    (a.mnt / "moved").mkdir()
    (a.mnt / "moved" / "f").write_text("here")
    inside = os.open(b.mnt / "moved", os.O_RDONLY)  # as a shell with its cwd there
    try:
        (a.mnt / "moved").rename(a.mnt / "moved-on")
        there = b.mnt / "moved-on"
        appears(there / "f")
        assert os.listdir(there) == os.listdir(inside) == ["f"]
        (there / "g").write_text("made there")
        assert (a.mnt / "moved-on" / "g").read_text() == "made there"
    finally:
        os.close(inside)


def test_one_of_two_names_removed_elsewhere_leaves_one_link(pair: list[Node]) -> None:
    a, b = pair
    (a.mnt / "first").write_text("x")
    os.link(a.mnt / "first", a.mnt / "second")
    appears(b.mnt / "second")
    for _ in range(20):
        assert (b.mnt / "first").stat().st_nlink == 2
        assert (b.mnt / "second").stat().st_nlink == 2
        (a.mnt / "first").unlink()
        there = b.mnt / "first"
        wait_until(lambda there=there: not there.exists(), "the name is gone")
        wait_until(lambda: (b.mnt / "second").stat().st_nlink == 1, "one is left")
        os.link(b.mnt / "second", b.mnt / "first")
        appears(a.mnt / "first")


def test_new_directory_opened_as_soon_as_it_is_there_lives_on(pair: list[Node]) -> None:
    """Whoever looks between the change and what the kernel is told of it has the
    directory it is."""
    a, b = pair
    for number in range(80):
        new = a.mnt / f"new-{number}"
        new.mkdir()
        (new / "f").write_text("here")
        there = b.mnt / new.name
        appears(there)
        inside = os.open(there, os.O_RDONLY)
        (b.mnt / f"tick-{number}").touch()  # some time for what is told late
        os.stat(there / "f")
        try:
            assert os.listdir(inside) == ["f"]
            os.close(os.open("g", os.O_CREAT | os.O_WRONLY, dir_fd=inside))
        finally:
            os.close(inside)


@pytest.mark.parametrize("made_again", [False, True])
def test_who_is_in_a_directory_that_a_peer_removed_sees_an_empty_one(
    pair: list[Node], made_again: bool
) -> None:
    """As where it was removed."""
    a, b = pair
    gone = f"gone-{made_again}"
    (a.mnt / gone).mkdir()
    appears(b.mnt / gone)
    insides = [os.open(node.mnt / gone, os.O_RDONLY) for node in (a, b)]
    (a.mnt / gone).rmdir()
    if made_again:
        (a.mnt / gone).mkdir()
        (a.mnt / gone / "f").touch()
        appears(b.mnt / gone / "f")
    else:
        wait_until(lambda: not (b.mnt / gone).exists(), "it is gone")
    for inside in insides:
        wait_until(lambda fd=inside: os.fstat(fd).st_nlink == 0, "it is known")  # type: ignore[misc]
        assert os.listdir(inside) == []
        with pytest.raises(FileNotFoundError):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=inside)
        os.close(inside)
    if made_again:
        assert os.listdir(b.mnt / gone) == ["f"]


def test_directory_that_comes_back_lives_where_it_was_removed(
    pair: list[Node],
) -> None:
    """Somebody there still has the removed one open, which the kernel keeps dead."""
    a, b = pair
    (a.mnt / "returns").mkdir()
    appears(b.mnt / "returns")
    inside = os.open(a.mnt / "returns", os.O_RDONLY)
    node = b.node_pid()
    os.kill(node, signal.SIGSTOP)
    try:
        (b.mnt / "returns" / "f").write_text("precious")
        (a.mnt / "returns").rmdir()
    finally:
        os.kill(node, signal.SIGCONT)
    try:
        appears(a.mnt / "returns" / "f")
        assert os.listdir(a.mnt / "returns") == ["f"]
        (a.mnt / "returns" / "g").write_text("made here")
        appears(b.mnt / "returns" / "g")
        assert (b.mnt / "returns" / "g").read_text() == "made here"
    finally:
        os.close(inside)
