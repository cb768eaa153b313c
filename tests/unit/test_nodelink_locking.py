"""Questions about locks while the node process comes and goes."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusefs.errors import Interrupted, NoLocks, WouldBlock
from fusefs.model.ids import Ino
from fusefs.nodelink import locking
from fusefs.nodelink.calls import Calls
from fusefs.nodelink.frames import FrameReader, pack
from fusefs.nodelink.locking import LinkLocks
from fusefs.nodelink.messages import (
    Lock,
    LockDone,
    LockTest,
    decode_to_node,
    encode,
)
from fusefs.nodelink.ranges import READ, UNLOCK, WRITE, HeldLock, LockKey, Range

INO = Ino(77)
WHOLE = Range(1, WRITE)


class FakeNode:
    """Answers every question about a lock with `error`, until it is stopped."""

    def __init__(
        self,
        path: Path,
        error: int = 0,
        before: Callable[[Lock | LockTest], int] = lambda asked: 0,
    ) -> None:
        """`before`: called with each question; what it gives counts instead."""
        path.unlink(missing_ok=True)
        self._error = error
        self._before = before
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(
                    target=self._serve, args=(connection,), daemon=True
                ).start()
        except OSError:
            pass

    def _serve(self, connection: socket.socket) -> None:
        reader = FrameReader()
        try:
            while count := connection.recv_into(reader.buffer()):
                for frame in reader.filled(count):
                    message = decode_to_node(frame.header)
                    if isinstance(message, Lock | LockTest):
                        error = self._before(message) or self._error
                        answer = LockDone(message.id, error)
                        connection.sendall(pack(encode(answer)))
        except OSError:
            pass

    def stop(self) -> None:
        for sock in (self._listener, *self._open):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()


def links(path: Path) -> tuple[LinkLocks, Calls]:
    calls = Calls(path)
    locks = LinkLocks(calls, lambda: None)
    locks.note_members(1)
    locks.told()
    return locks, calls


def test_question_bears_with_a_node_that_restarted(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    first = FakeNode(path)
    locks, calls = links(path)
    assert locks.test(INO, WHOLE, is_flock=False) is None
    first.stop()
    path.unlink()
    second: list[FakeNode] = []
    back = threading.Timer(0.2, lambda: second.append(FakeNode(path)))
    back.start()
    try:
        assert locks.test(INO, WHOLE, is_flock=False) is None
    finally:
        back.join()
        second[0].stop()
        calls.close()


def test_question_is_given_up_with_the_program_that_asks(tmp_path: Path) -> None:
    node = FakeNode(tmp_path / "node.sock")
    locks, calls = links(tmp_path / "node.sock")
    try:
        with pytest.raises(Interrupted):
            locks.test(INO, WHOLE, is_flock=False, cancelled=lambda: True)
    finally:
        node.stop()
        calls.close()


def test_question_to_an_owner_that_is_away_is_no_answer(tmp_path: Path) -> None:
    node = FakeNode(tmp_path / "node.sock", errno.ENOLCK)
    locks, calls = links(tmp_path / "node.sock")
    try:
        with pytest.raises(NoLocks):
            locks.test(INO, WHOLE, is_flock=False)
        with pytest.raises(NoLocks):
            locks.lock(INO, WHOLE, is_flock=False, wait=False)
        assert locks.held().locks == ()
    finally:
        node.stop()
        calls.close()


def test_who_holds_it_to_write_may_go_on_to_read_whoever_is_away(
    tmp_path: Path,
) -> None:
    """As on a local file system. SQLite does so at the end of each transaction, and
    has no other word than `disk I/O error` for a refusal."""
    away = threading.Event()
    path = tmp_path / "node.sock"
    node = FakeNode(path, 0, lambda asked: errno.ENOLCK if away.is_set() else 0)
    locks, calls = links(path)
    try:
        for written in (Range(1, WRITE, 0, 9), Range(1, WRITE, 10, 19)):
            locks.lock(INO, written, is_flock=False, wait=False)
        away.set()
        for kept in (Range(1, READ, 5, 14), Range(1, READ, 0, 19)):
            locks.lock(INO, kept, is_flock=False, wait=False)
        assert [held.range for held in locks.held().locks] == [kept]
        with pytest.raises(NoLocks):
            locks.lock(INO, Range(1, READ, 10, 20), is_flock=False, wait=False)
    finally:
        node.stop()
        calls.close()


def test_other_members_count_whether_the_node_is_there_or_not(tmp_path: Path) -> None:
    """They may ask for a lock as soon as they are connected: what is written under it
    is published before it is dropped."""
    locks, calls = links(tmp_path / "nobody.sock")
    locks.forgotten()
    assert locks.has_members()
    locks.note_members(0)
    assert not locks.has_members()
    calls.close()


def test_after_the_end_of_the_link_nobody_waits_for_a_node(tmp_path: Path) -> None:
    locks, calls = links(tmp_path / "nobody.sock")
    calls.close()
    with pytest.raises(NoLocks):
        locks.test(INO, WHOLE, is_flock=False)


def test_first_other_member_is_told_what_was_taken_without_it(tmp_path: Path) -> None:
    locks, calls = links(tmp_path / "nobody.sock")
    assert not locks.note_members(0)
    locks.lock(INO, WHOLE, is_flock=True, wait=True)
    assert locks.note_members(1)
    assert [(held.key.ino, held.range) for held in locks.held().locks] == [(INO, WHOLE)]
    assert not locks.note_members(2)
    calls.close()


def test_worker_begins_with_what_it_was_left_and_ends_with_nothing(
    tmp_path: Path,
) -> None:
    calls = Calls(tmp_path / "nobody.sock")
    left = [HeldLock(LockKey(INO, True), WHOLE)]
    locks = LinkLocks(calls, lambda: None, left)
    assert locks.held().locks == tuple(left)
    assert locks.release_all()
    assert locks.held().locks == ()
    assert not locks.release_all()
    calls.close()


def test_lock_counts_when_no_list_went_past_it_without_it(tmp_path: Path) -> None:
    """The node that granted it forgets it with the list; so it is asked again."""
    asked: list[object] = []

    def before(message: Lock | LockTest) -> int:
        asked.append(message)
        if len(asked) == 1:
            assert locks.held().locks == ()  # on another connection
        return 0

    node = FakeNode(tmp_path / "node.sock", before=before)
    locks, calls = links(tmp_path / "node.sock")
    try:
        locks.lock(INO, WHOLE, is_flock=False, wait=True)
        assert len(asked) == 2
        assert [held.range for held in locks.held().locks] == [WHOLE]
        locks.lock(Ino(78), WHOLE, is_flock=False, wait=True)
        assert len(asked) == 3
    finally:
        node.stop()
        calls.close()


def test_lock_that_went_to_another_meanwhile_is_not_held(tmp_path: Path) -> None:
    """The list went past the first grant, and the owner gave the lock away."""
    asked: list[Range] = []

    def before(message: Lock | LockTest) -> int:
        asked.append(message.range)
        if len(asked) == 1:
            locks.held()
        return errno.EAGAIN if len(asked) == 2 else 0

    node = FakeNode(tmp_path / "node.sock", before=before)
    locks, calls = links(tmp_path / "node.sock")
    try:
        with pytest.raises(WouldBlock):
            locks.lock(INO, WHOLE, is_flock=False, wait=False)
        assert asked == [WHOLE, WHOLE, Range(1, UNLOCK)]
        assert locks.held().locks == ()
    finally:
        node.stop()
        calls.close()


def test_first_member_after_a_new_connection_is_in_its_list(tmp_path: Path) -> None:
    locks, calls = links(tmp_path / "nobody.sock")
    locks.note_members(0)
    locks.attached()
    locks.held()
    assert not locks.note_members(1)  # no second list, which changes would overtake
    locks.note_members(0)
    assert locks.note_members(1)
    calls.close()


def test_lock_that_waits_bears_with_an_owner_however_long_it_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner changes, as a member joins."""
    monkeypatch.setattr(locking, "OWNER_BACK_S", 1.5)
    pauses = [2.0, 0, 0]

    def before(message: Lock | LockTest) -> int:
        if not pauses:
            return 0
        time.sleep(pauses.pop(0))
        return errno.ENOLCK

    node = FakeNode(tmp_path / "node.sock", before=before)
    locks, calls = links(tmp_path / "node.sock")
    try:
        locks.lock(INO, WHOLE, is_flock=False, wait=True)
        assert not pauses
    finally:
        node.stop()
        calls.close()
