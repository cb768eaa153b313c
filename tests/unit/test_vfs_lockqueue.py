"""Who waits for a lock of this node is called when it may have it, and only then."""

from __future__ import annotations

import fcntl
import random
import threading
import time
from collections.abc import Callable

import pytest

from fusefs.errors import FsError, Interrupted
from fusefs.model.ids import Ino
from fusefs.vfs import locks as module
from fusefs.vfs.lockqueue import Sleeper
from fusefs.vfs.locks import OFFSET_MAX, Locks
from fusefs.vfs.types import FileLock

R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
INO = Ino(7)
EVERYTHING = FileLock(W, 0, OFFSET_MAX, 0)


def unlock(locks: Locks, owner: int, is_flock: bool = False) -> None:
    want = FileLock(U, 0, OFFSET_MAX, 0)
    locks.change(INO, owner, want, False, is_flock, None)


def all_end(work: Callable[[int], None], count: int) -> list[threading.Thread]:
    """Threads with numbers from 1 on, daemons: one that hangs ends with the test."""
    threads = [
        threading.Thread(target=work, args=(n,), daemon=True)
        for n in range(1, count + 1)
    ]
    for thread in threads:
        thread.start()
    return threads


@pytest.mark.parametrize("is_flock", [False, True])
def test_an_unlock_wakes_one_of_many_that_exclude_each_other(
    is_flock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks, many, slept = Locks(), 60, []
    wait = locks._wait

    def counted(sleeper: Sleeper, cancelled: object) -> None:
        slept.append(sleeper.owner)
        wait(sleeper, None)

    monkeypatch.setattr(locks, "_wait", counted)
    locks.change(INO, 1000, EVERYTHING, True, is_flock, None)

    def work(owner: int) -> None:
        locks.change(INO, owner, EVERYTHING, True, is_flock, None)
        unlock(locks, owner, is_flock)

    threads = all_end(work, many)
    while len(locks._queue) < many:
        pass
    unlock(locks, 1000, is_flock)
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert len(slept) < 3 * many
    assert len(locks._queue) == len(locks) == 0


def test_readers_are_all_called_by_one_unlock() -> None:
    locks, inside = Locks(), threading.Barrier(20)
    locks.change(INO, 1000, EVERYTHING, True, False, None)

    def work(owner: int) -> None:
        want = FileLock(R, 0, OFFSET_MAX, 0)
        locks.change(INO, owner, want, True, False, None)
        inside.wait(20)
        unlock(locks, owner)

    threads = all_end(work, 20)
    while len(locks._queue) < 20:
        pass
    unlock(locks, 1000)
    for thread in threads:
        thread.join(20)
    assert not inside.broken
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("seed", range(8))
def test_nobody_is_forgotten_whatever_ranges_they_want(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that cannot be interrupted look only when they are called."""
    monkeypatch.setattr(module, "_POLL_S", 0.001)
    locks = Locks()
    holds: dict[int, tuple[int, int, int]] = {}
    mutex = threading.Lock()

    def check(owner: int, kind: int, start: int, end: int) -> None:
        with mutex:
            for other, (kind_2, start_2, end_2) in holds.items():
                if other != owner and start <= end_2 and start_2 <= end:
                    assert W not in (kind, kind_2)
            holds[owner] = (kind, start, end)

    problems: list[BaseException] = []

    def work(owner: int) -> None:
        rng = random.Random(seed * 100 + owner)
        for _ in range(40):
            kind, start = rng.choice((R, W)), rng.randrange(20)
            end = start + rng.randrange(6)
            stop = (lambda: rng.random() < 0.2) if owner % 3 == 0 else None
            try:
                want = FileLock(kind, start, end, 0)
                locks.change(INO, owner, want, True, False, stop)
                check(owner, kind, start, end)
                for _ in range(5):  # others have their turn
                    time.sleep(0)
            except Interrupted:
                continue
            except (FsError, AssertionError) as problem:
                problems.append(problem)
            finally:
                with mutex:
                    holds.pop(owner, None)
                unlock(locks, owner)

    threads = all_end(work, 12)
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert problems == []
    assert len(locks._queue) == len(locks) == 0


def test_a_deadlock_is_found_with_who_holds_it_by_now() -> None:
    """Who waits was not called since another one got the lock."""
    locks = Locks()
    first, second = FileLock(W, 0, 0, 0), FileLock(W, 1, 1, 0)
    locks.change(INO, 1, first, True, False, None)
    locks.change(INO, 2, second, True, False, None)
    passed = threading.Event()

    def wait_for_first() -> None:  # 2 waits for 1, then for 3
        locks.change(INO, 2, first, True, False, None)
        passed.set()

    thread = threading.Thread(target=wait_for_first, daemon=True)
    thread.start()
    while 2 not in locks._waiting:
        pass
    with locks._changed:  # before 2 has its turn
        unlock(locks, 1)
        locks.change(INO, 3, first, True, False, None)
    with pytest.raises(FsError) as caught:
        locks.change(INO, 3, second, True, False, None)
    assert caught.value.errno == 35
    assert not passed.is_set()
    unlock(locks, 3)
    assert passed.wait(20)


def test_who_is_called_and_interrupted_leaves_the_lock_to_the_next() -> None:
    locks, stop, got = Locks(), threading.Event(), threading.Event()
    locks.change(INO, 1, EVERYTHING, True, False, None)

    def interrupted() -> None:
        with pytest.raises(Interrupted):
            locks.change(INO, 2, EVERYTHING, True, False, stop.is_set)

    def waits() -> None:
        locks.change(INO, 3, EVERYTHING, True, False, None)
        got.set()

    threads = []
    for number, work in enumerate((interrupted, waits), 1):
        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()
        while len(locks._queue) < number:
            pass
    with locks._changed:
        stop.set()
        unlock(locks, 1)
    assert got.wait(20)
    for thread in threads:
        thread.join(20)
