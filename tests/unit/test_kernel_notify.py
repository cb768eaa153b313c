"""The notifier against a kernel that answers as told."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fusefs.bindings.kernel import mounting
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.connection import Connection, Settings
from fusefs.bindings.kernel.encode import inval_entry, inval_inode
from fusefs.bindings.kernel.notify import Notifier
from fusefs.bindings.kernel.server import Server
from fusefs.bindings.kernel.session import Session
from fusefs.errors import NotFound
from fusefs.model.ids import Ino
from fusefs.mountpoint import table
from fusefs.vfs.types import Caller, DirEntry
from tests.lib.memory_vfs import MemoryVfs

Answer = Callable[[bytes], int | None]
LONG_S = 30.0
"""No thread takes that long, however crowded the machine is."""


class Scripted(Notifier):
    """Messages go to `said`; `answer` decides what the kernel says."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.said: list[bytes] = []
        self.answer: Answer = lambda message: None

    def _send(self, message: bytes) -> int | None:
        self.said.append(message)
        return self.answer(message)

    def codes(self) -> list[int]:
        return [p.OUT_HEADER.unpack_from(message)[1] for message in self.said]


def make(*, fences: bool = True, wait_s: float = LONG_S) -> Scripted:
    settings = Settings(directory_lock_fences=fences, notify_wait_s=wait_s)
    connection = Connection(MemoryVfs(), -1, settings, None)
    connection.begin(Session())
    connection.lookups.add_all([Ino(5), Ino(6)])
    return Scripted(connection)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_unknown_inodes_are_not_told_but_the_epoch_moves() -> None:
    notifier = make()
    before = notifier._connection.epoch
    notifier.entry(Ino(9), b"x")
    notifier.attributes(Ino(9))
    notifier.data(Ino(9), 0, 0)
    assert notifier.said == []
    assert notifier._connection.epoch != before


def test_name_is_told_with_its_length_and_a_zero() -> None:
    notifier = make()
    notifier.entry(Ino(5), b"name")
    (said,) = notifier.said
    assert p.INVAL_ENTRY.unpack_from(said) == (len(said), 3, 0, 5, 4, 0)
    assert said[p.INVAL_ENTRY.size :] == b"name\0"


def test_cached_listing_goes_with_a_name_and_after_it() -> None:
    notifier = make()
    notifier._connection.listed.add(Ino(5))
    notifier.entry(Ino(5), b"a")
    notifier.entry(Ino(5), b"b")
    assert notifier.codes() == [
        p.NOTIFY_INVAL_ENTRY,
        p.NOTIFY_INVAL_INODE,
        p.NOTIFY_INVAL_ENTRY,
    ]


@pytest.mark.parametrize("fences", [False, True])
def test_a_listing_is_known_until_it_went_where_the_lock_fences(fences: bool) -> None:
    notifier = make(fences=fences)
    connection = notifier._connection
    connection.listed.add(Ino(5))
    connection.gate.tells_listing(Ino(5))
    notifier.entry(Ino(5), b"a")
    assert bool(connection.gate.listing_told(Ino(5))) is not fences


def test_a_listing_told_while_another_goes_stays_known() -> None:
    notifier = make()
    gate = notifier._connection.gate
    notifier._connection.listed.add(Ino(5))
    gate.tells_listing(Ino(5))

    def listed_again(message: bytes) -> None:
        gate.tells_listing(Ino(5))

    notifier.answer = listed_again
    notifier.entry(Ino(5), b"a")
    assert gate.listing_told(Ino(5))


def test_attributes_leave_the_pages_alone() -> None:
    notifier = make()
    notifier.attributes(Ino(5))
    assert p.INVAL_INODE.unpack(notifier.said[0])[3:] == (5, -1, 0)


def test_inode_on_its_way_is_told_again_until_it_arrived() -> None:
    notifier = make()
    left = [4]

    def answer(message: bytes) -> int | None:
        left[0] -= 1
        return errno.ENOENT if left[0] else None

    notifier.answer = answer
    notifier.data(Ino(5), 0, 10)
    assert len(notifier.said) == 4


def test_inode_forgotten_meanwhile_is_not_told_again() -> None:
    notifier = make()

    def answer(message: bytes) -> int:
        notifier._connection.lookups.forget(Ino(5), 1)
        return errno.ENOENT

    notifier.answer = answer
    notifier.attributes(Ino(5))
    wait_until(lambda: notifier.settled)
    assert len(notifier.said) <= 2


def test_inode_that_takes_long_is_told_at_ticks() -> None:
    notifier = make()
    notifier.answer = lambda message: errno.ENOENT
    notifier.attributes(Ino(5))
    wait_until(lambda: notifier._later)
    assert not notifier.settled
    notifier.answer = lambda message: None
    notifier.tick()
    wait_until(lambda: notifier.settled)


def test_caller_waits_no_longer_than_the_bound() -> None:
    notifier = make(wait_s=0.02)
    stuck = threading.Event()

    def answer(message: bytes) -> None:
        stuck.wait(LONG_S)

    notifier.answer = answer
    notifier.data(Ino(5), 0, 0)
    assert notifier.queued_behind == 1 and not notifier.settled
    stuck.set()
    wait_until(lambda: notifier.settled)


def test_one_stuck_notification_does_not_hold_up_others() -> None:
    notifier = make(wait_s=0.05)
    stuck = threading.Event()

    def answer(message: bytes) -> None:
        if p.OUT_HEADER.unpack_from(message)[1] == p.NOTIFY_INVAL_ENTRY:
            stuck.wait(LONG_S)

    notifier.answer = answer
    notifier.entry(Ino(5), b"stuck")
    assert notifier.queued_behind == 1
    notifier.data(Ino(6), 0, 0)
    both = [p.NOTIFY_INVAL_ENTRY, p.NOTIFY_INVAL_INODE]
    wait_until(lambda: notifier.codes() == both)
    assert not notifier.settled
    stuck.set()


def test_held_directory_is_told_behind_its_request() -> None:
    notifier = make()
    entered, free = threading.Event(), threading.Event()

    def answer(message: bytes) -> None:
        entered.set()
        free.wait(LONG_S)

    notifier.answer = answer
    with notifier._connection.holding(Ino(5)):
        started = time.monotonic()
        notifier.entry(Ino(5), b"x")
        assert time.monotonic() - started < LONG_S / 2
        assert entered.wait(LONG_S)
    free.set()
    wait_until(lambda: notifier.settled)
    assert notifier.queued_behind == 1


@pytest.mark.parametrize("fences", [True, False])
def test_name_not_found_is_told_again_only_where_no_lock_fences(fences: bool) -> None:
    """Linux 6.19 looks before it locks: a reply from the directory may be on its
    way."""
    notifier = make(fences=fences)
    notifier._connection.recent[0].add(Ino(5))
    left = [3]

    def answer(message: bytes) -> int | None:
        left[0] -= 1
        return errno.ENOENT if left[0] else None

    notifier.answer = answer
    notifier.entry(Ino(5), b"x")
    assert len(notifier.said) == (1 if fences else 3)


def test_name_not_found_and_nothing_on_its_way_is_told_once() -> None:
    notifier = make(fences=False)
    notifier.answer = lambda message: errno.ENOENT
    notifier.entry(Ino(5), b"x")
    assert len(notifier.said) == 1


def no_thread(*_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_what_found_no_thread_is_told_when_there_is_one(monkeypatch) -> None:
    notifier = make(wait_s=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        for _ in range(30):
            notifier.entry(Ino(5), b"name")
    assert notifier.said == []
    notifier.tick()
    wait_until(lambda: len(notifier.said) == 30)


def test_a_serving_thread_that_is_not_to_be_had_is_not_counted(monkeypatch) -> None:
    """Else nobody would read any more once all others wait."""
    server = Server(MemoryVfs(), -1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        assert not server._make_room()
        assert server.connection.channels == ()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: None)
        assert server._make_room()
    assert len(server.connection.channels) == 1


def test_everything_uses_the_epoch_and_every_known_inode() -> None:
    notifier = make()
    notifier.everything()
    assert notifier.codes() == [p.NOTIFY_INC_EPOCH] + [p.NOTIFY_INVAL_INODE] * 3


def test_everything_walks_the_tree_on_kernels_without_an_epoch() -> None:
    notifier = make()
    notifier._connection.begin(Session(minor=38))
    fs = notifier._connection.fs
    top = fs.mkdir(Ino(1), b"top", 0o755, Caller())
    fs.mkdir(top.ino, b"below", 0o755, Caller())
    notifier.everything()
    names = {
        message[p.INVAL_ENTRY.size : -1]
        for message, code in zip(notifier.said, notifier.codes(), strict=True)
        if code == p.NOTIFY_INVAL_ENTRY
    }
    assert names == {b"top", b"below"}


def test_names_expire_where_something_is_mounted_on_a_directory(monkeypatch) -> None:
    """It would be unmounted with a name that is dropped. What is gone expires, too."""
    monkeypatch.setattr(mounting, "connection_of", lambda fd: "52")
    upon: list[str] = []
    monkeypatch.setattr(table, "is_built_upon", lambda of: upon.append(of) or True)
    notifier = make()
    fs = notifier._connection.fs
    top = fs.mkdir(Ino(1), b"top", 0o755, Caller())
    given = fs.names_given
    fs.names_given = lambda: iter((*given(), (top.ino, b"gone")))  # type: ignore[method-assign]
    notifier.everything()
    assert upon == ["52"] and p.NOTIFY_INC_EPOCH not in notifier.codes()
    for directory, name in ((Ino(1), b"top"), (top.ino, b"gone")):
        assert inval_entry(directory, name, p.INVAL_ENTRY_EXPIRE) in notifier.said
    assert inval_inode(top.ino, 0, 0) in notifier.said


def test_a_directory_that_goes_meanwhile_ends_no_walk() -> None:
    notifier = make()
    notifier._connection.begin(Session(minor=38))
    fs = notifier._connection.fs
    gone = fs.mkdir(Ino(1), b"gone", 0o755, Caller())
    after = fs.mkdir(Ino(1), b"after", 0o755, Caller())
    below = fs.mkdir(after.ino, b"below", 0o755, Caller())
    listed = fs.readdir_ino

    def readdir_ino(ino: Ino, cookie: int) -> Iterator[DirEntry]:
        if ino == gone.ino:
            raise NotFound("the directory was removed")
        return listed(ino, cookie)

    fs.readdir_ino = readdir_ino  # type: ignore[method-assign]
    notifier.everything()
    for directory, name in (
        (Ino(1), b"gone"),
        (Ino(1), b"after"),
        (after.ino, b"below"),
    ):
        assert inval_entry(directory, name, p.INVAL_ENTRY_EXPIRE) in notifier.said
    assert inval_inode(below.ino, 0, 0) in notifier.said


def test_what_is_told_together_wakes_one_thread_and_is_waited_for() -> None:
    notifier = make()
    threads: set[int] = set()
    notifier.answer = lambda message: threads.add(threading.get_ident())
    with notifier.together():
        notifier.entry(Ino(5), b"a")
        notifier.data(Ino(6), 0, 0)
        assert notifier.said == []
    assert notifier.codes() == [p.NOTIFY_INVAL_ENTRY, p.NOTIFY_INVAL_INODE]
    assert len(threads) == 1 and threading.get_ident() not in threads


def entries_wait(notifier: Scripted) -> tuple[threading.Event, list[int]]:
    """In the kernel, until the event; the codes of what was told."""
    gate = threading.Event()
    told: list[int] = []

    def answer(message: bytes) -> None:
        code = p.OUT_HEADER.unpack_from(message)[1]
        if code == p.NOTIFY_INVAL_ENTRY:
            gate.wait(LONG_S)
        told.append(code)

    notifier.answer = answer
    return gate, told


def test_one_that_waits_in_the_kernel_holds_up_none_of_those_with_it() -> None:
    notifier = make(wait_s=0.02)
    gate, told = entries_wait(notifier)
    with notifier.together():
        notifier.entry(Ino(5), b"a")
        notifier.data(Ino(6), 0, 0)
    wait_until(lambda: told == [p.NOTIFY_INVAL_INODE])
    assert notifier.queued_behind == 1
    gate.set()
    wait_until(lambda: notifier.settled and len(told) == 2)


def test_one_that_waits_holds_up_none_of_those_that_no_thread_was_there_for(
    monkeypatch,
) -> None:
    notifier = make(wait_s=0.01)
    gate, told = entries_wait(notifier)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with notifier.together():
            notifier.entry(Ino(5), b"a")
            notifier.data(Ino(6), 0, 0)

    def one_is_told() -> bool:
        notifier.tick()
        return bool(told)

    wait_until(one_is_told)
    assert told == [p.NOTIFY_INVAL_INODE]
    gate.set()
    wait_until(lambda: notifier.settled and len(told) == 2)


def test_a_request_that_turns_out_to_hold_the_lock_is_not_waited_for() -> None:
    """It was in the kernel before the notification, and is read only now."""
    notifier = make()
    unlocked, blocked = threading.Event(), threading.Event()
    told: list[int] = []

    def answer(message: bytes) -> None:
        code = p.OUT_HEADER.unpack_from(message)[1]
        if code == p.NOTIFY_INVAL_ENTRY:
            blocked.set()
            unlocked.wait(LONG_S)
        told.append(code)

    notifier.answer = answer

    def tell() -> None:
        with notifier.together():
            notifier.entry(Ino(5), b"a")
            notifier.data(Ino(6), 0, 0)

    caller = threading.Thread(target=tell)
    caller.start()
    assert blocked.wait(LONG_S)
    with notifier._connection.holding(Ino(5)):
        caller.join(LONG_S / 2)
        assert not caller.is_alive()
        assert told == [p.NOTIFY_INVAL_INODE]  # the rest was told, and waited for
    unlocked.set()
    wait_until(lambda: notifier.settled and len(told) == 2)
