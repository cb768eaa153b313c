"""Locks, from one worker to the next."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from fusefs.errors import WouldBlock
from fusefs.model.ids import Ino
from fusefs.vfs.lockjournal import LockJournal
from fusefs.vfs.locks import OFFSET_MAX, Locks
from fusefs.vfs.types import FileLock

R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
INO = Ino(7)
FLOCK = FileLock(W, 0, OFFSET_MAX, 4242)


def worker(path: Path, *, same_mount: bool = True) -> Locks:
    return Locks(journal=LockJournal(path, same_mount=same_mount))


def change(
    locks: Locks, owner: int, want: FileLock, handle: int, is_flock: bool = False
) -> None:
    locks.change(INO, owner, want, False, is_flock, None, handle)


def take(
    locks: Locks, owner: int, want: FileLock, handle: int, is_flock: bool = False
) -> bool:
    try:
        change(locks, owner, want, handle, is_flock)
    except WouldBlock:
        return False
    return True


def test_next_worker_holds_the_same_until_the_handle_is_closed(tmp_path: Path) -> None:
    first = worker(tmp_path / "locks")
    change(first, 11, FLOCK, 100, is_flock=True)
    change(first, 12, FileLock(W, 0, 99, 1), 101)
    change(first, 12, FileLock(U, 40, 59, 1), 101)
    change(first, 12, FileLock(R, 0, 9, 1), 101)
    for _ in range(2):  # the one after the next, too
        second = worker(tmp_path / "locks")
        assert len(second) == 4
        assert second.record_locked() == [INO]
        assert not take(second, 13, FLOCK, 102, is_flock=True)
        assert take(second, 13, FileLock(R, 0, 9, 2), 103)
        assert take(second, 13, FileLock(W, 40, 59, 2), 103)
        assert not take(second, 13, FileLock(R, 10, 10, 2), 103)
        second.closed(103)
        found = second.test(INO, 13, FileLock(W, 60, 60, 2), False)
        assert found == FileLock(W, 60, 99, 1)
    second.closed(100)
    assert take(second, 13, FLOCK, 102, is_flock=True)
    second.drop(INO, 12, False)
    assert take(second, 13, FileLock(W, 0, 99, 2), 103)
    third = worker(tmp_path / "locks")
    third.closed(102)
    third.closed(103)
    assert len(third) == 0


def test_late_release_takes_no_lock_that_came_after_the_close(tmp_path: Path) -> None:
    """A process closes one descriptor and locks through another; a child has the
    first one still."""
    first = worker(tmp_path / "locks")
    change(first, 11, FLOCK, 100)
    first.flushed(INO, 11, 100)
    change(first, 11, FLOCK, 101)
    for locks in (worker(tmp_path / "locks"), first):
        locks.closed(100)
        assert not take(locks, 12, FLOCK, 102)
    first.closed(101)
    assert take(first, 12, FLOCK, 102)


def test_node_is_told_what_the_worker_before_held(tmp_path: Path) -> None:
    first = worker(tmp_path / "locks")
    change(first, 11, FLOCK, 100, is_flock=True)
    (lock,) = LockJournal(tmp_path / "locks").all_held()
    assert (lock.key.ino, lock.key.is_flock) == (INO, True)
    assert (lock.range.owner, lock.range.kind, lock.range.pid) == (11, W, 4242)


def test_locks_of_another_mount_are_void(tmp_path: Path) -> None:
    change(worker(tmp_path / "locks"), 11, FLOCK, 100)
    assert len(worker(tmp_path / "locks", same_mount=False)) == 0
    assert len(worker(tmp_path / "locks")) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:70] + b"?" + data[71:],
        lambda data: b"?" + data[1:],
    ],
)
def test_damaged_journal_is_void(tmp_path: Path, damage, caplog) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "locks"
    change(worker(path), 11, FLOCK, 100)
    path.write_bytes(damage(path.read_bytes()))
    assert len(worker(path)) == 0
    assert "the locks of the worker before are lost" in caplog.text
    caplog.clear()
    assert len(worker(path)) == 0


def test_journal_of_many_changes_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    first = worker(path)
    change(first, 11, FLOCK, 100, is_flock=True)
    for number in range(3000):
        change(first, 12, FileLock(W, 0, 9, 1), 200 + number)
        first.closed(200 + number)
    assert path.stat().st_size <= 64 << 10
    second = worker(path)
    assert len(second) == 1
    second.closed(100)
    assert len(second) == 0


def test_record_that_cannot_be_written_is_in_the_file_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run" / "locks"
    path.parent.mkdir()
    journal = LockJournal(path)
    first = Locks(journal=journal)
    change(first, 11, FLOCK, 100)
    os.close(journal._fd)  # what a full disk does to the next record
    journal._fd = os.open("/dev/full", os.O_WRONLY)
    change(first, 12, FileLock(W, 0, 9, 1), 101, is_flock=True)
    assert "cannot be written" in caplog.text
    assert len(worker(path)) == 2
    caplog.clear()


def test_without_a_file_the_next_worker_knows_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run" / "locks"
    first = worker(path)
    change(first, 11, FLOCK, 100)
    assert "locks are not kept" in caplog.text
    path.parent.mkdir()
    change(first, 12, FLOCK, 101, is_flock=True)
    assert len(worker(path)) == 2
    caplog.clear()


def test_locks_that_nobody_took_cost_no_record(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    first = worker(path)
    size = path.stat().st_size
    first.closed(100)
    first.drop(INO, 11, False)
    change(first, 11, FileLock(U, 0, 9, 1), 100)
    assert path.stat().st_size == size
