"""What the kernel keeps for ever is taken back when it changes elsewhere.

The races of connection.py are forced: a reply is held after the vfs computed it, or
just before it is written, while the change and its notification happen.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib.kernel_mount import KernelMount, ensure_control
from tests.posix import libc

pytestmark = pytest.mark.mount

LONG_S = 20
"""Less than a gate holds a call for."""


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[KernelMount]:
    ensure_control()
    made = KernelMount(tmp_path / "mnt")
    yield made
    made.close()


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[KernelMount]:
    """Whoever changes something waits until the kernel was told, however crowded the
    machine is: it shows at once."""
    ensure_control()
    made = KernelMount(tmp_path / "mnt", f"--notify-wait-s={LONG_S}")
    yield made
    made.close()


class Asked:
    """A system call in another thread, which may be held by a gate."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.result: object = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except OSError as problem:
            self.result = problem

    def wait(self) -> object:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.result


# -- without races -------------------------------------------------------------------


def test_changes_from_elsewhere_show_at_once_through_warm_caches(
    patient: KernelMount,
) -> None:
    mount = patient
    path = mount.path / "d" / "f0001"
    top = mount.path / "d"
    for i in range(200):
        data = b"%d " % i * (i % 50 + 1)
        mount.do("remote_write", "d/f0001", data.decode())
        assert path.stat().st_size == len(data)
        assert path.read_bytes() == data
        new = top / f"new{i}"
        assert not new.exists()
        mount.do("remote_create", f"d/new{i}", "x")
        assert new.read_bytes() == b"x"
        assert new.name in os.listdir(top)
        mount.do("remote_chmod", f"d/new{i}", 0o600)
        assert new.stat().st_mode & 0o777 == 0o600
        mount.do("remote_remove", f"d/new{i}")
        assert not new.exists()
        assert new.name not in os.listdir(top)


def test_open_file_follows_a_replaced_content(patient: KernelMount) -> None:
    mount = patient
    with (mount.path / "d" / "f0002").open("rb", buffering=0) as file:
        assert file.read(4) == b"f000"
        for size in (3, 9000, 100, 0, 50):
            mount.do("remote_write", "d/f0002", "z" * size)
            file.seek(0)
            assert os.fstat(file.fileno()).st_size == size
            assert file.read() == b"z" * size


def test_change_nobody_was_told_of_shows_at_the_next_open(mount: KernelMount) -> None:
    path = mount.path / "d" / "f0003"
    assert path.read_bytes() == b"f0003"[:5] * 1024 or True
    before = path.read_bytes()
    mount.do("quiet_write", "d/f0003", "q" * len(before))
    assert path.read_bytes() == b"q" * len(before)


def test_everything_is_forgotten(mount: KernelMount) -> None:
    path = mount.path / "d" / "f0004"
    with path.open("rb"):  # so that the kernel does not forget it for want of memory
        size = path.stat().st_size
        assert path.stat().st_size == size
        mount.do("quiet_write", "d/f0004", "short")
        assert path.stat().st_size == size
    mount.do("everything")
    assert path.stat().st_size == 5
    assert path.read_bytes() == b"short"


def test_kernel_is_not_told_of_what_it_does_not_know(mount: KernelMount) -> None:
    before = mount.requests()["notifications"]
    mount.do("remote_write", "d/f0005", "new")
    mount.do("remote_chmod", "d/f0005", 0o600)
    assert mount.requests()["notifications"] == before


def test_watchers_hear_of_deletes_from_elsewhere(mount: KernelMount) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    top = mount.path / "d"
    os.stat(top / "f0006")
    in_delete, in_delete_self = 0x200, 0x400
    assert libc.inotify_add_watch(watch, os.fsencode(top), in_delete) > 0
    file = os.fsencode(top / "f0006")
    assert libc.inotify_add_watch(watch, file, in_delete_self) > 0
    mount.do("remote_remove", "d/f0006")
    assert select.select([watch], [], [], LONG_S)[0]
    heard = os.read(watch, 4096)
    masks = set()
    while heard:
        _, mask, _, length = struct.unpack_from("iIII", heard)
        masks.add(mask & 0xFFF)
        heard = heard[16 + length :]
    os.close(watch)
    assert masks & {in_delete, in_delete_self}


@pytest.mark.parametrize(
    ("call", "empty"), [("rmdir", "yes"), ("rename", "yes"), ("rename", "")]
)
def test_directory_that_moved_lives_on_though_its_name_was_taken_here(
    mount: KernelMount, call: str, empty: str
) -> None:
    """The kernel was not told yet, and takes what it had under the name for dead."""
    top = mount.path / "d"
    old, moved = top / "old", top / "moved"
    old.mkdir()
    (old / "in").write_bytes(b"x")
    (top / "other").mkdir()
    with (old / "in").open("rb") as held:  # else the kernel forgets the directory
        mount.do("quiet_move", "d/old", "moved", empty)
        if call == "rmdir":
            old.rmdir()
        else:
            (top / "other").rename(old)
        mount.do("remote_moved", "d/old", "moved")
        assert mount.do("settle")
        assert os.listdir(moved) == ["in"]
        assert (moved / "in").read_bytes() == held.read() == b"x"
        (moved / "more").mkdir()
        (moved / "more").rmdir()


@pytest.mark.parametrize("how", ["rename", "rename twice", "exchange"])
def test_name_given_to_what_a_peer_had_put_there_shows_that(
    mount: KernelMount, how: str
) -> None:
    """The kernel was not told yet, and moves what it had under the old name."""
    top = mount.path / "d"
    old, new, moved = top / "old", top / "new", top / "moved"
    old.mkdir()
    (old / "in").write_bytes(b"x")
    mount.do("quiet_move", "d/old", "moved", "yes")
    if how == "exchange":
        new.mkdir()
        (new / "other").touch()
        libc.renameat2(bytes(old), bytes(new), libc.RENAME_EXCHANGE)
    else:
        old.rename(new)
    if how == "rename twice":
        new.rename(top / "newer")
        new = top / "newer"
    mount.do("remote_moved", "d/old", "moved")
    assert mount.do("settle")
    assert os.listdir(new) == []
    assert os.listdir(moved) == ["in"]
    assert old.exists() == (how == "exchange")


# -- replies that a notification overtakes -------------------------------------------


@pytest.mark.parametrize("held_at", ["looked up", "reply"])
def test_lookup_overtaken_by_a_write_does_not_stay(
    mount: KernelMount, held_at: str
) -> None:
    """held_at "looked up": before the epoch is compared; "reply": after."""
    path = mount.path / "d" / "f0001"
    os.stat(mount.path / "d")
    mount.do("hold", held_at)
    asked = Asked(path.stat)
    assert mount.do("waiting", held_at)
    mount.do("remote_write", "d/f0001", "changed")
    mount.do("release", held_at)
    asked.wait()
    assert mount.do("settle")
    assert path.stat().st_size == 7
    assert path.read_bytes() == b"changed"


@pytest.mark.parametrize("held_at", ["looked up", "reply"])
def test_absence_overtaken_by_a_create_does_not_stay(
    mount: KernelMount, held_at: str
) -> None:
    path = mount.path / "d" / "new"
    os.stat(mount.path / "d")
    mount.do("hold", held_at)
    asked = Asked(path.stat)
    assert mount.do("waiting", held_at)
    mount.do("remote_create", "d/new", "made")
    mount.do("release", held_at)
    assert isinstance(asked.wait(), FileNotFoundError)
    assert mount.do("settle")
    assert path.read_bytes() == b"made"


@pytest.mark.parametrize("held_at", ["listed", "reply"])
def test_listing_overtaken_by_changes_does_not_stay(
    mount: KernelMount, held_at: str
) -> None:
    top = mount.path / "d"
    os.stat(top)
    mount.do("hold", held_at)
    asked = Asked(lambda: os.listdir(top))
    assert mount.do("waiting", held_at)
    mount.do("remote_create", "d/new", "made")
    mount.do("remote_remove", "d/f0002")
    mount.do("remote_write", "d/f0003", "changed")
    mount.do("release", held_at)
    asked.wait()
    assert mount.do("settle")
    names = os.listdir(top)
    assert "new" in names
    assert "f0002" not in names
    assert (top / "f0003").stat().st_size == 7
    assert not (top / "f0002").exists()


@pytest.mark.parametrize("held_at", ["getattr", "reply"])
def test_attributes_overtaken_by_a_change_do_not_stay(
    mount: KernelMount, held_at: str
) -> None:
    path = mount.path / "d" / "f0001"
    path.stat()
    mount.do("remote_chmod", "d/f0001", 0o640)  # the next stat has to ask
    mount.do("hold", held_at)
    asked = Asked(path.stat)
    assert mount.do("waiting", held_at)
    mount.do("remote_chmod", "d/f0001", 0o600)
    mount.do("release", held_at)
    asked.wait()
    assert mount.do("settle")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("held_at", ["setattr", "reply"])
def test_setattr_overtaken_by_a_change_does_not_stay(
    mount: KernelMount, held_at: str
) -> None:
    path = mount.path / "d" / "f0001"
    path.stat()
    mount.do("hold", held_at)
    asked = Asked(lambda: os.utime(path, (1, 1)))
    assert mount.do("waiting", held_at)
    mount.do("remote_chmod", "d/f0001", 0o600)
    mount.do("release", held_at)
    asked.wait()
    assert mount.do("settle")
    assert path.stat().st_mode & 0o777 == 0o600


def test_read_overtaken_by_a_write_does_not_stay(mount: KernelMount) -> None:
    path = mount.path / "d" / "f0001"
    path.stat()
    mount.do("hold", "reply")
    mount.do("release", "reply")
    fd = os.open(path, os.O_RDONLY)
    mount.do("hold", "read")
    asked = Asked(lambda: os.pread(fd, 100, 0))
    assert mount.do("waiting", "read")
    mount.do("remote_write", "d/f0001", "y" * 5120)
    mount.do("release", "read")
    asked.wait()
    assert mount.do("settle")
    assert os.pread(fd, 100, 0) == b"y" * 100
    os.close(fd)


# -- locks of the kernel -------------------------------------------------------------


def test_notification_behind_a_waiting_mkdir_holds_up_nobody(
    patient: KernelMount,
) -> None:
    """With sync=all a mkdir waits for peers under the directory's lock."""
    mount = patient
    top = mount.path / "d"
    os.listdir(top)
    mount.do("hold", "mkdir")
    maker = subprocess.Popen(["mkdir", str(top / "local")])
    assert mount.do("waiting", "mkdir")
    took_s = mount.do("remote_create", "d/remote")
    assert isinstance(took_s, float)
    assert took_s < LONG_S / 2
    mount.do("release", "mkdir")
    assert maker.wait(30) == 0
    assert mount.do("settle")
    assert {"local", "remote"} <= set(os.listdir(top))


def test_notification_behind_a_waiting_read_holds_up_its_caller_briefly(
    mount: KernelMount,
) -> None:
    """A page that is being fetched is locked: the acknowledgement does not wait."""
    path = mount.path / "d" / "f0001"
    fd = os.open(path, os.O_RDONLY)
    mount.do("hold", "read")
    asked = Asked(lambda: os.pread(fd, 10, 0))
    assert mount.do("waiting", "read")
    took_s = mount.do("remote_write", "d/f0001", "new content")
    assert isinstance(took_s, float)
    assert took_s < LONG_S
    mount.do("remote_chmod", "d/f0002", 0o600)
    mount.do("release", "read")
    asked.wait()
    assert mount.do("settle")
    assert path.read_bytes() == b"new content"
    os.close(fd)
