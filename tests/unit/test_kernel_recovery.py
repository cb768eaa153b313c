"""Requests that come again, and handles, at a worker that took a mount over."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator

import pytest

from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel import server
from fusefs.bindings.kernel.protocol import Op
from fusefs.bindings.kernel.session import Session
from fusefs.model.ids import Ino
from fusefs.nodelink import fence
from tests.lib.desk import WHO, Desk
from tests.lib.memory_vfs import MemoryVfs

RESENT = p.UNIQUE_RESEND | 2


@pytest.fixture
def adopted() -> Desk:
    return Desk(adopted=True)


def left_behind(desk: Desk) -> None:
    desk.fs.mkdir(Ino(1), b"left", 0o755, WHO)
    desk.fs.mknod(Ino(1), b"node", stat.S_IFREG | 0o644, 0, WHO)
    desk.fs.setxattr(Ino(1), b"user.there", b"value", 0, WHO)


def shown(desk: Desk) -> dict[bytes, Ino]:
    return {entry.name: entry.ino for entry in desk.fs.readdir_ino(Ino(1), 0)}


def of_names() -> Iterator[tuple[Op, bytes]]:
    yield Op.MKDIR, p.MKDIR_IN.pack(0o755, 0) + b"new\0"
    yield Op.SYMLINK, b"new\0to\0"
    yield Op.MKNOD, p.MKNOD_IN.pack(stat.S_IFREG | 0o644, 0, 0, 0) + b"new\0"
    created = p.CREATE_IN.pack(os.O_CREAT | os.O_EXCL, stat.S_IFREG | 0o644, 0, 0)
    yield Op.CREATE, created + b"new\0"
    yield Op.UNLINK, b"node\0"
    yield Op.RMDIR, b"left\0"
    yield Op.RENAME, p.RENAME_IN.pack(1) + b"node\0new\0"
    yield Op.RENAME2, p.RENAME2_IN.pack(1, 1, 0) + b"node\0new\0"
    yield Op.RENAME2, p.RENAME2_IN.pack(1, 2, 0) + b"node\0left\0"


@pytest.mark.parametrize(("op", "body"), list(of_names()))
def test_what_was_done_to_a_name_is_not_done_again(
    adopted: Desk, op: Op, body: bytes
) -> None:
    left_behind(adopted)
    first = adopted.ask(op, 1, body)
    assert first is not None
    assert first[0] == 0
    after = shown(adopted)
    again = adopted.ask(op, 1, body, unique=RESENT)
    assert again is not None
    assert again[0] == 0
    assert again[1][:8] == first[1][:8]  # the inode, where there is one
    assert shown(adopted) == after


@pytest.mark.parametrize(("op", "body"), list(of_names()))
def test_what_had_not_begun_is_done(adopted: Desk, op: Op, body: bytes) -> None:
    left_behind(adopted)
    before = shown(adopted)
    again = adopted.ask(op, 1, body, unique=RESENT)
    assert again is not None
    assert again[0] == 0
    assert shown(adopted) != before


@pytest.mark.parametrize(
    ("op", "body"), [made for made in of_names() if b"new" in made[1]][:4]
)
def test_what_a_peer_made_is_not_taken_for_ones_own(
    adopted: Desk, op: Op, body: bytes
) -> None:
    """The lock file of somebody else, who was first."""
    adopted.fs.create(Ino(1), b"new", 0o644, os.O_EXCL, WHO)
    assert adopted.ask(op, 1, body, unique=RESENT) == (errno.EEXIST, b"")


def test_what_a_peer_made_again_is_not_removed(adopted: Desk) -> None:
    left_behind(adopted)
    for op, name in ((Op.UNLINK, b"node"), (Op.RMDIR, b"left")):
        assert adopted.ask(op, 1, name + b"\0") == (0, b"")
        adopted.fs.create(Ino(1), name, 0o644, os.O_EXCL, WHO)
        assert adopted.ask(op, 1, name + b"\0", unique=RESENT) == (0, b"")
        assert name in shown(adopted)


def test_what_a_peer_made_again_is_not_moved(adopted: Desk) -> None:
    left_behind(adopted)
    body = p.RENAME_IN.pack(1) + b"node\0new\0"
    assert adopted.ask(Op.RENAME, 1, body) == (0, b"")
    moved = shown(adopted)[b"new"]
    adopted.fs.mknod(Ino(1), b"node", stat.S_IFREG | 0o644, 0, WHO)
    assert adopted.ask(Op.RENAME, 1, body, unique=RESENT) == (0, b"")
    assert shown(adopted)[b"new"] == moved
    assert b"node" in shown(adopted)


def test_what_a_peer_removed_is_made_again(adopted: Desk) -> None:
    body = p.MKDIR_IN.pack(0o755, 0) + b"new\0"
    adopted.ask(Op.MKDIR, 1, body)
    adopted.fs.rmdir(Ino(1), b"new", WHO)
    again = adopted.ask(Op.MKDIR, 1, body, unique=RESENT)
    assert again is not None
    assert again[0] == 0
    assert b"new" in shown(adopted)


def test_notes_are_there_for_the_workers_that_follow() -> None:
    memory = mmap.mmap(-1, fence._BYTES)
    gates = []
    for worker in range(4):
        gates.append(fence.Gate(memory))
        for thread in range(3):
            unique = 1000 * worker + 2 * thread + 2
            gates[-1].note(thread, unique + 500, Ino(1))
            gates[-1].note(thread, unique, Ino(unique + 1))
    for worker in range(4):
        for unique in range(1000 * worker + 2, 1000 * worker + 8, 2):
            assert gates[-1].noted(unique) == unique + 1
    assert gates[-1].noted(502) is None


def repeated() -> Iterator[tuple[Op, bytes, int]]:
    yield Op.REMOVEXATTR, b"user.gone\0", errno.ENODATA
    attribute = p.SETXATTR_IN.pack(5, os.XATTR_CREATE, 0, 0) + b"user.there\0value"
    yield Op.SETXATTR, attribute, errno.EEXIST


@pytest.mark.parametrize(("op", "body", "usual"), list(repeated()))
def test_repeated_request_that_was_done_succeeds(
    adopted: Desk, op: Op, body: bytes, usual: int
) -> None:
    left_behind(adopted)
    first = adopted.ask(op, 1, body)
    assert first is not None
    assert first[0] == usual
    again = adopted.ask(op, 1, body, unique=RESENT)
    assert again is not None
    assert again[0] == 0


@pytest.mark.parametrize("same", [True, False])
def test_link_is_there_already_if_it_is_of_the_same_file(
    adopted: Desk, same: bool
) -> None:
    left_behind(adopted)
    node = shown(adopted)[b"node"]
    other = adopted.fs.mknod(Ino(1), b"other", stat.S_IFREG | 0o644, 0, WHO).ino
    adopted.fs.link(node if same else other, Ino(1), b"new")
    reply = adopted.ask(Op.LINK, 1, p.LINK_IN.pack(node) + b"new\0", unique=RESENT)
    assert reply is not None
    assert reply[0] == (0 if same else errno.EEXIST)


def test_attribute_with_another_value_was_set_by_somebody_else(adopted: Desk) -> None:
    left_behind(adopted)
    body = p.SETXATTR_IN.pack(5, os.XATTR_CREATE, 0, 0) + b"user.there\0other"
    assert adopted.ask(Op.SETXATTR, 1, body, unique=RESENT) == (errno.EEXIST, b"")


@pytest.mark.parametrize(
    ("journal", "there", "size"),
    [(True, b"", 0), (False, b"abc", 6), (None, b"abc", 3), (None, b"", 3)],
)
def test_append_is_repeated_unless_it_was_done(
    adopted: Desk, journal: bool | None, there: bytes, size: int
) -> None:
    """What the journal says counts; the bytes, where it says nothing."""
    made = adopted.fs.create(Ino(1), b"log", 0o644, os.O_RDWR | os.O_APPEND, WHO)
    adopted.fs.write(made.handle, 0, there, WHO)
    adopted.fs.appended[made.attr.ino, 2] = journal
    body = p.READ_IN.pack(made.handle, 0, 3, 0, 0, os.O_APPEND, 0) + b"abc"
    reply = adopted.ask(Op.WRITE, made.attr.ino, body, unique=RESENT)
    assert reply == (0, b"\x03" + bytes(7))
    assert adopted.fs.lookup(Ino(1), b"log").size == size
    assert made.handle in adopted.connection.written


def test_what_was_left_is_asked_for_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel repeats all that was read: what a thread of ours has begun, too."""
    session = Session(flags=p.HAS_RESEND)
    made = server.Server(MemoryVfs(), -1, adopted=session)
    done: list[object] = []
    monkeypatch.setattr(made, "_add_channel", lambda resident: done.append("reads"))
    monkeypatch.setattr(made, "_notify", done.append)
    made.start()
    asked = p.OUT_HEADER.pack(16, p.NOTIFY_RESEND, 0)
    assert done == [asked, *["reads"] * made.connection.settings.readers]


def test_repeated_request_means_nothing_to_a_worker_from_the_start() -> None:
    desk = Desk()
    left_behind(desk)
    body = p.MKDIR_IN.pack(0o755, 0) + b"left\0"
    assert desk.ask(Op.MKDIR, 1, body, unique=RESENT) == (errno.EEXIST, b"")


def test_handles_of_the_predecessor_are_adopted_once(adopted: Desk) -> None:
    one = adopted.fs.mknod(Ino(1), b"1", stat.S_IFREG | 0o644, 0, WHO).ino
    two = adopted.fs.mknod(Ino(1), b"2", stat.S_IFREG | 0o644, 0, WHO).ino
    body = p.READ_IN.pack(5001, 0, 3, 0, 0, 0, 0) + b"abc"
    assert adopted.ask(Op.WRITE, one, body) == (0, b"\x03" + bytes(7))
    body = p.COPY_IN.pack(5001, 0, two, 5002, 0, 3, 0)
    assert adopted.ask(Op.COPY_FILE_RANGE, one, body) == (0, b"\x03" + bytes(7))
    assert adopted.fs.adopted == [(5001, one), (5002, two)]
