"""flock and record locks between the processes of one node."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

from fusefs.errors import FsError, Interrupted, WouldBlock
from fusefs.model.ids import Ino
from fusefs.vfs.locks import OFFSET_MAX, Locks
from fusefs.vfs.types import Caller, FileLock
from tests.lib.local import local_vfs

R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
INO = Ino(7)


def take(
    locks: Locks, owner: int, kind: int, start: int = 0, end: int = OFFSET_MAX
) -> bool:
    try:
        locks.change(INO, owner, FileLock(kind, start, end, owner), False, False, None)
    except WouldBlock:
        return False
    return True


def test_readers_share_and_writers_exclude() -> None:
    locks = Locks()
    assert take(locks, 1, R) and take(locks, 2, R)
    assert not take(locks, 3, W)
    assert not take(locks, 1, W)
    take(locks, 2, U)
    assert take(locks, 1, W)
    assert not take(locks, 2, R)


def test_ranges_split_join_and_convert() -> None:
    locks = Locks()
    assert take(locks, 1, W, 0, 99)
    assert take(locks, 1, U, 40, 59)
    assert take(locks, 2, W, 40, 59)
    assert not take(locks, 2, W, 39, 39)
    assert not take(locks, 2, W, 60, 60)
    assert take(locks, 1, R, 60, 79)
    assert take(locks, 2, R, 60, 79)
    assert not take(locks, 2, R, 80, 80)
    take(locks, 2, U)
    assert take(locks, 1, W, 0, 99)
    assert len(locks) == 1
    found = locks.test(INO, 2, FileLock(R, 50, 50, 9), False)
    assert found == FileLock(W, 0, 99, 1)
    assert locks.test(INO, 1, FileLock(W, 50, 50, 9), False).kind == U


def test_flock_and_record_locks_do_not_meet() -> None:
    locks = Locks()
    whole = FileLock(W, 0, OFFSET_MAX, 1)
    locks.change(INO, 1, whole, False, True, None)
    assert take(locks, 2, W)
    with pytest.raises(WouldBlock):
        locks.change(INO, 2, whole, False, True, None)
    locks.drop(INO, 1, True)
    locks.change(INO, 2, whole, False, True, None)


def test_a_waiting_lock_wakes_when_released() -> None:
    locks = Locks()
    take(locks, 1, W)
    got = threading.Event()

    def wait() -> None:
        locks.change(INO, 2, FileLock(W, 0, 9, 2), True, False, lambda: False)
        got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.05)
    locks.drop(INO, 1, False)
    assert got.wait(2)
    thread.join()
    assert not take(locks, 1, R, 5, 5)


def test_a_waiting_lock_can_be_interrupted() -> None:
    locks = Locks()
    take(locks, 1, W)
    with pytest.raises(Interrupted):
        locks.change(INO, 2, FileLock(W, 0, 9, 2), True, False, lambda: True)


def test_a_cycle_of_waiters_is_a_deadlock() -> None:
    locks = Locks()
    take(locks, 1, W, 0, 0)
    take(locks, 2, W, 1, 1)
    stop = threading.Event()

    def wait() -> None:
        try:
            want = FileLock(W, 1, 1, 1)
            locks.change(INO, 1, want, True, False, stop.is_set)
        except Interrupted:
            pass

    thread = threading.Thread(target=wait)
    thread.start()
    while 1 not in locks._waiting:
        pass
    with pytest.raises(FsError) as caught:
        locks.change(INO, 2, FileLock(W, 0, 0, 2), True, False, lambda: False)
    assert caught.value.errno == 35
    stop.set()
    thread.join()


def test_close_drops_locks(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        vfs = local.vfs
        local.put("/a")
        one, two = local.open("/a"), local.open("/a")
        lock = FileLock(W, 0, OFFSET_MAX, 1)
        vfs.setlk(one, 11, lock, False, False, Caller())
        vfs.setlk(one, 12, lock, False, True, Caller())
        for is_flock in (False, True):
            with pytest.raises(WouldBlock):
                vfs.setlk(two, 13, lock, False, is_flock, Caller())
            assert vfs.getlk(two, 13, lock, is_flock).kind == W
        vfs.flush(one, 11)
        vfs.setlk(two, 13, lock, False, False, Caller())
        with pytest.raises(WouldBlock):
            vfs.setlk(two, 13, lock, False, True, Caller())
        vfs.release(one)
        vfs.setlk(two, 13, lock, False, True, Caller())
        vfs.release(two)
        assert vfs.statistics().locks == 0
