"""Requests as bytes, served without a kernel: what a mount cannot provoke."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time

import pytest

from fusefs.bindings.kernel import encode, names
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.channel import Channel
from fusefs.bindings.kernel.connection import Settings
from fusefs.bindings.kernel.protocol import Op
from fusefs.errors import Corrupt, FsError, Stale
from fusefs.model.ids import Ino
from fusefs.vfs.types import Caller
from tests.lib.desk import WHO, Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_lookup_of_a_dot_gives_the_inode_itself(desk: Desk) -> None:
    """So the kernel's NFS server finds an inode it has forgotten."""
    made = desk.fs.mkdir(Ino(1), b"top", 0o755, WHO)
    reply = desk.ask(Op.LOOKUP, made.ino, b".\0")
    assert reply is not None
    assert int.from_bytes(reply[1][:8], "little") == made.ino
    reply = desk.ask(Op.LOOKUP, made.ino, b"..\0")
    assert reply is not None
    assert int.from_bytes(reply[1][:8], "little") == 1


def test_lookup_in_a_directory_that_a_peer_removed_is_stale_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel asks twice, and `rm -rf` on two machines would fail at the second."""
    adopted: list[Ino] = []

    def look(step: str) -> None:
        if not adopted:
            raise Stale("the directory is gone")

    def adopt(ino: Ino) -> bool:
        adopted.append(ino)
        return True

    monkeypatch.setattr(desk.fs, "before", look)
    monkeypatch.setattr(desk.fs, "adopt_directory", adopt)
    assert desk.ask(Op.LOOKUP, 1, b"..\0") == (errno.ESTALE, b"")
    assert not adopted
    assert desk.ask(Op.LOOKUP, 1, b"x\0") == (errno.ESTALE, b"")
    assert adopted == [1]
    reply = desk.ask(Op.LOOKUP, 1, b"x\0")
    assert reply is not None
    assert reply[0] == errno.ENOENT or reply[1][:8] == bytes(8)


def test_lookup_that_a_change_overtook_is_valid_for_no_time(desk: Desk) -> None:
    desk.fs.mkdir(Ino(1), b"top", 0o755, WHO)
    desk.fs.before = lambda name: desk.connection.raise_epoch()
    for name in (b"top", b"absent"):
        reply = desk.ask(Op.LOOKUP, 1, name + b"\0")
        assert reply is not None
        assert reply[1][16:32] == bytes(16)


def test_listing_that_a_change_overtook_is_valid_for_no_time(desk: Desk) -> None:
    desk.fs.mkdir(Ino(1), b"top", 0o755, WHO)
    desk.fs.before = lambda name: desk.connection.raise_epoch()
    reply = desk.ask(Op.READDIRPLUS, 1, p.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0))
    assert reply is not None
    line = reply[1][2 * 160 :]
    assert int.from_bytes(line[:8], "little") in desk.connection.lookups.table
    assert line[16:32] == bytes(16)


def test_listing_counts_only_what_was_sent(desk: Desk) -> None:
    for i in range(30):
        desk.fs.mkdir(Ino(1), b"n%d" % i, 0o755, WHO)
    reply = desk.ask(Op.READDIRPLUS, 1, p.READ_IN.pack(0, 0, 1000, 0, 0, 0, 0))
    assert reply is not None
    assert len(reply[1]) <= 1000
    assert len(desk.connection.lookups) == len(reply[1]) // 160 - 2


@pytest.mark.parametrize("thread", [9, 10])
@pytest.mark.parametrize("known", [True, False])
def test_listing_on_its_way_does_not_bring_back_attributes_of_before_a_change(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, thread: int, known: bool
) -> None:
    top = desk.fs.mkdir(Ino(1), b"top", 0o755, WHO).ino
    told: list[tuple[Ino, int, int]] = []
    monkeypatch.setattr(desk.connection, "send_back", lambda *given: told.append(given))
    desk.ask(Op.READDIRPLUS, 1, p.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0), thread=9)
    if not known:  # a worker that took over does not know where it is
        desk.connection.places.clear()

    def make(name: bytes) -> list[tuple[Ino, int, int]]:
        told.clear()
        body = p.MKDIR_IN.pack(0o755, 0) + name + b"\0"
        reply = desk.ask(Op.MKDIR, top, body, thread=thread)
        assert reply is not None
        assert reply[0] == 0
        return list(told)

    # Who listed has taken it in; others may make the kernel forget too early.
    expected = [(top, -1, 0)] if thread == 10 else []
    assert make(b"1") == expected
    desk.connection.tick()
    assert make(b"2") == expected
    desk.connection.tick()
    assert make(b"3") == []


def test_reply_the_kernel_did_not_want_does_not_count(desk: Desk) -> None:
    for i in range(5):
        desk.fs.mkdir(Ino(1), b"n%d" % i, 0o755, WHO)
    body = p.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0)
    listing = desk.ask(Op.READDIRPLUS, 1, body)
    entry = desk.ask(Op.LOOKUP, 1, b"n1\0")
    assert listing is not None
    assert entry is not None
    gone = OSError(errno.ENOENT, "interrupted")
    for op, payload in ((Op.READDIRPLUS, listing[1]), (Op.LOOKUP, entry[1])):
        desk.channel._unsent(gone, op, 2, bytes(16) + payload)
    assert len(desk.connection.lookups) == 0


def test_made_entries_of_known_inodes_are_not_believed(desk: Desk) -> None:
    """CREATE of a file that the kernel holds already: attributes for 0 s."""
    body = p.CREATE_IN.pack(os.O_CREAT | os.O_RDWR, stat.S_IFREG | 0o600, 0, 0)
    first = desk.ask(Op.CREATE, 1, body + b"file\0")
    second = desk.ask(Op.CREATE, 1, body + b"file\0")
    assert first is not None
    assert second is not None
    assert int.from_bytes(first[1][24:32], "little") == encode.FOREVER_S
    assert int.from_bytes(second[1][24:32], "little") == 0


def test_forgets_have_no_reply_and_count(desk: Desk) -> None:
    ino = desk.fs.mkdir(Ino(1), b"top", 0o755, WHO).ino
    for _ in range(3):
        desk.ask(Op.LOOKUP, 1, b"top\0")
    assert desk.ask(Op.FORGET, ino, p.FORGET_IN.pack(1)) is None
    assert desk.fs.forgotten == []
    body = p.BATCH_FORGET_IN.pack(2, 0) + p.FORGET_ONE.pack(ino, 2)
    assert desk.ask(Op.BATCH_FORGET, 0, body + p.FORGET_ONE.pack(99, 1)) is None
    assert desk.fs.forgotten == [ino, 99]


@pytest.mark.parametrize("opcode", [Op.BMAP, Op.POLL, 62, 4096, 1 << 31])
def test_what_we_do_not_know_is_not_implemented(desk: Desk, opcode: int) -> None:
    assert desk.ask(opcode) == (errno.ENOSYS, b"")


def test_own_errors_keep_their_errno(desk: Desk) -> None:
    def fail(name: str) -> None:
        raise FsError("full", errno=errno.EDQUOT)

    desk.fs.before = fail
    assert desk.ask(Op.GETATTR) == (errno.EDQUOT, b"")


@pytest.mark.parametrize("bug", [KeyError("x"), OSError(errno.ENOENT, "of the host")])
def test_bug_is_eio_with_a_traceback(
    desk: Desk, bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> None:
        raise bug

    desk.fs.before = fail
    with caplog.at_level(logging.ERROR, "dfs.kernel"):
        assert desk.ask(Op.GETATTR) == (errno.EIO, b"")
    assert "getattr" in caplog.text
    assert "Traceback" in caplog.text


def test_damage_is_eio_and_its_reason_is_said_once(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> None:
        raise Corrupt("meta.db: database disk image is malformed; run `dfs fsck`")

    desk.fs.before = fail
    with caplog.at_level(logging.WARNING, "dfs.kernel"):
        for _ in range(3):
            assert desk.ask(Op.GETATTR) == (errno.EIO, b"")
    (said,) = caplog.messages
    assert said.startswith("getattr failed: ")
    assert said.endswith("image is malformed; run `dfs fsck`")


def test_truncated_request_is_eio_not_a_crash(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    assert desk.ask(Op.LOOKUP, 1, b"\0") is not None
    assert caplog.text == ""


def test_interrupt_of_nobody_is_asked_again(desk: Desk) -> None:
    body = p.INTERRUPT_IN.pack(1234)
    assert desk.ask(Op.INTERRUPT, 0, body, unique=1235) == (errno.EAGAIN, b"")


def test_interrupt_cancels_the_request_and_no_later_one(desk: Desk) -> None:
    channel = desk.channel
    channel.unique = 40
    assert not channel.cancelled()
    other = Channel(desk.connection, channel.handlers, lambda: None)
    other.buffer[40:48] = p.INTERRUPT_IN.pack(40)
    other.length = 48
    assert other.serve(Op.INTERRUPT, 41, Ino(0)) is None
    assert channel.cancelled()
    channel.unique = 42
    assert not channel.cancelled()


def test_room_is_made_once_per_waiting_request(desk: Desk) -> None:
    desk.channel.unique = 8
    for _ in range(5):
        desk.channel.cancelled()
    assert desk.rooms == 1
    desk.channel.unique = 10
    desk.channel.about_to_wait()
    assert desk.rooms == 2


def test_flush_makes_room_only_after_a_write(desk: Desk) -> None:
    made = desk.fs.create(Ino(1), b"f", 0o644, 0, WHO)
    flush = p.FLUSH_IN.pack(made.handle, 0, 0, 1)
    desk.ask(Op.FLUSH, made.attr.ino, flush)
    assert desk.rooms == 0
    body = p.READ_IN.pack(made.handle, 0, 3, 0, 0, 0, 0) + b"abc"
    assert desk.ask(Op.WRITE, made.attr.ino, body) == (0, b"\x03" + bytes(7))
    desk.ask(Op.FLUSH, made.attr.ino, flush, unique=4)
    assert desk.rooms == 1


@pytest.mark.parametrize(
    ("opened", "flags", "appends"),
    [(os.O_APPEND, 0, True), (0, 0, False), (os.O_APPEND, p.WRITE_CACHE, False)],
)
def test_write_appends_as_its_descriptor_does_now(
    desk: Desk, opened: int, flags: int, appends: bool
) -> None:
    """fcntl(F_SETFL) sets and clears O_APPEND; pages of a mapping never move."""
    given: list[object] = []
    desk.fs.write = lambda *args: given.append(args[5]) or 3  # type: ignore[func-returns-value,method-assign]
    body = p.READ_IN.pack(1, 0, 3, flags, 0, os.O_WRONLY | opened, 0) + b"abc"
    assert desk.ask(Op.WRITE, 1, body) == (0, b"\x03" + bytes(7))
    assert given == [appends]


@pytest.mark.parametrize("waits", [True, False])
def test_changes_make_room_where_they_wait_for_peers(waits: bool) -> None:
    desk = Desk(settings=Settings(changes_wait=waits))
    desk.ask(Op.MKDIR, 1, p.MKDIR_IN.pack(0o755, 0) + b"d\0")
    assert desk.rooms == int(waits)


def test_attribute_value_may_hold_zeros(desk: Desk) -> None:
    body = p.SETXATTR_IN.pack(4, 0, 0, 0) + b"user.a\0\0b\0c"
    assert desk.ask(Op.SETXATTR, 1, body) == (0, b"")
    assert desk.fs.getxattr(Ino(1), b"user.a") == b"\0b\0c"


def test_attribute_larger_than_the_room_is_erange(desk: Desk) -> None:
    desk.fs.setxattr(Ino(1), b"user.a", b"12345", 0, WHO)
    ask = p.GETXATTR_IN.pack(4, 0) + b"user.a\0"
    assert desk.ask(Op.GETXATTR, 1, ask) == (errno.ERANGE, b"")
    ask = p.GETXATTR_IN.pack(0, 0) + b"user.a\0"
    assert desk.ask(Op.GETXATTR, 1, ask) == (0, b"\x05" + bytes(7))


def test_access_lists_are_refused_without_asking_the_vfs(desk: Desk) -> None:
    ask = p.GETXATTR_IN.pack(0, 0) + b"system.posix_acl_access\0"
    assert desk.ask(Op.GETXATTR, 1, ask) == (errno.EOPNOTSUPP, b"")


def test_copies_beyond_32_bits_need_the_long_form(desk: Desk) -> None:
    one = desk.fs.create(Ino(1), b"1", 0o644, 0, WHO)
    two = desk.fs.create(Ino(1), b"2", 0o644, 0, WHO)
    asked: list[int] = []

    def copy(
        a: int, b: int, c: int, d: int, length: int, caller: Caller
    ) -> int:  # fmt: skip
        asked.append(length)
        return length

    desk.fs.copy_file_range = copy  # type: ignore[method-assign]
    body = p.COPY_IN.pack(one.handle, 0, two.attr.ino, two.handle, 0, 1 << 40, 0)
    short = desk.ask(Op.COPY_FILE_RANGE, one.attr.ino, body)
    long = desk.ask(Op.COPY_FILE_RANGE_64, one.attr.ino, body)
    assert short == (0, (0xFFFFF000).to_bytes(8, "little"))
    assert long == (0, (1 << 40).to_bytes(8, "little"))


@pytest.mark.parametrize("lock", ["of the mount", "of the directory it was in"])
def test_directory_that_a_peer_moved_waits_for_the_locks_to_move_it(
    desk: Desk, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tries them, and says ESTALE when a request of ours holds one."""
    monkeypatch.setattr(names, "MOVE_WAIT_S", 30.0)
    old, new = (desk.fs.mkdir(Ino(1), name, 0o755, WHO).ino for name in (b"p", b"q"))
    desk.fs.mkdir(old, b"d", 0o755, WHO)
    desk.ask(Op.LOOKUP, old, b"d\0")
    desk.fs.rename(old, b"d", new, b"d", 0, WHO)  # elsewhere
    connection = desk.connection
    held = connection.crossing() if lock == "of the mount" else connection.holding(old)
    ended: list[float] = []

    def end() -> None:
        ended.append(time.monotonic())
        held.__exit__(None, None, None)

    held.__enter__()
    threading.Timer(0.01, end).start()
    desk.ask(Op.LOOKUP, new, b"d\0")
    assert time.monotonic() >= ended[0]
    assert desk.rooms == 1  # others are served meanwhile
    with connection.holding(new):
        desk.ask(Op.LOOKUP, new, b"d\0")
    assert desk.rooms == 1
