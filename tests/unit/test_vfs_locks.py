"""flock and record locks between the processes of one node."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from fusefs.errors import FsError, Interrupted, NoLocks, WouldBlock
from fusefs.model.ids import ROOT_INO, Ino
from fusefs.nodelink.ranges import Range
from fusefs.vfs.locks import OFFSET_MAX, Locks
from fusefs.vfs.options import VfsOptions
from fusefs.vfs.ports import Alone
from fusefs.vfs.types import Caller, FileLock
from tests.lib.local import Local, RecordingPeers, local_vfs

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
    assert got.wait(30)
    thread.join()
    assert not take(locks, 1, R, 5, 5)


def test_a_node_holds_so_many_locks_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fusefs.vfs.locks.MAX_HELD", 3)
    locks = Locks()
    for start in (0, 10, 20):
        assert take(locks, 1, W, start, start + 4)
    with pytest.raises(NoLocks):
        take(locks, 2, W, 30, 34)
    with pytest.raises(NoLocks):
        take(locks, 1, U, 2, 2)  # it would become two
    with pytest.raises(NoLocks):
        take(locks, 1, R, 2, 2)
    assert take(locks, 1, R, 0, 4) and take(locks, 1, W, 10, 24)
    assert len(locks) == 2
    assert take(locks, 2, W, 30, 34) and take(locks, 2, W, 35, 39)
    locks.drop(INO, 1, False)
    locks.drop(INO, 2, False)
    assert len(locks) == 0


def test_a_refusal_waits_for_a_release_that_came_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RELEASE is served by any thread, and close(2) does not wait for it."""
    monkeypatch.setattr("fusefs.vfs.locks._RELEASE_S", 5.0)
    locks = Locks()
    take(locks, 1, W)
    served: list[int] = []

    def asked() -> bool:
        if not served:
            served.append(1)
            threading.Thread(target=locks.drop, args=(INO, 1, False)).start()
        return False

    locks.change(INO, 2, FileLock(W, 0, 9, 2), False, False, asked)
    assert served


def test_a_refusal_waits_longer_for_an_unlock_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fusefs.vfs.locks._RELEASE_S", 0.001)
    monkeypatch.setattr("fusefs.vfs.locks._RELEASE_LIMIT_S", 5.0)
    cluster = Cluster()
    locks = Locks(cluster)
    take(locks, 1, W)
    cluster.unlocks.clear()
    unlocking = threading.Thread(target=locks.drop, args=(INO, 1, False))
    unlocking.start()
    while not locks._claims:
        pass
    later = threading.Timer(0.01, cluster.unlocks.set)
    later.start()
    assert take(locks, 2, W)
    for each in (unlocking, later):
        each.join()


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


# -- with the cluster ----------------------------------------------------------------


class Cluster(Alone):
    """Answers as told and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.error: Exception | None = None
        self.stands: Range | None = None
        self.connected = True
        self.reserved: list[bytes] = []
        self.returned: list[bytes] = []
        self.answers = [True]
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Event()
        self.unlocks = threading.Event()
        self.unlocks.set()

    def lock(self, ino: Ino, want: Range, **how: object) -> None:
        self.asked.append(want.kind)
        if want.kind == U:
            assert self.unlocks.wait(30)
            return
        self.inside.set()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error

    def test_lock(
        self, ino: Ino, want: Range, *, is_flock: bool, **how: object
    ) -> Range | None:
        if self.error is not None:
            raise self.error
        return self.stands

    def near(self) -> bool:
        return self.connected

    def has_members(self) -> bool:
        return self.connected

    def reserve(self, parent: Ino, name: bytes) -> bool:
        self.reserved.append(name)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def give_back(self, parent: Ino, name: bytes) -> None:
        self.returned.append(name)


@pytest.mark.parametrize("error", [WouldBlock(), NoLocks(), Interrupted()])
def test_what_the_cluster_refuses_is_not_held(error: FsError) -> None:
    cluster = Cluster()
    locks = Locks(cluster)
    assert take(locks, 1, R)
    cluster.error = error
    with pytest.raises(FsError) as caught:
        locks.change(INO, 1, FileLock(W, 0, 9, 1), True, False, lambda: False)
    assert caught.value.errno == error.errno
    cluster.error = None
    assert take(locks, 2, R), "the lock of before is as it was"
    assert not take(locks, 2, W)


def test_flock_that_is_shared_from_now_on_was_never_given_up() -> None:
    cluster = Cluster()
    locks = Locks(cluster)
    for kind in (W, R, R, W):
        locks.change(INO, 1, FileLock(kind, 0, OFFSET_MAX, 1), False, True, None)
    assert cluster.asked == [W, R, U, W]


def test_an_owner_that_is_away_is_the_error_of_the_option() -> None:
    cluster = Cluster()
    cluster.error = NoLocks()
    for errno, locks in ((37, Locks(cluster)), (11, Locks(cluster, 11))):
        with pytest.raises(FsError) as caught:
            locks.change(INO, 1, FileLock(W, 0, 9, 1), False, False, None)
        assert caught.value.errno == errno
        with pytest.raises(FsError) as caught:
            locks.test(INO, 1, FileLock(W, 0, 9, 1), False)
        assert caught.value.errno == errno


def test_the_cluster_hears_of_every_change_once() -> None:
    cluster = Cluster()
    locks = Locks(cluster)
    assert take(locks, 1, W) and take(locks, 1, W, 5, 9)
    locks.drop(INO, 2, False)
    locks.drop(Ino(8), 1, False)
    assert cluster.asked == [W]
    locks.drop(INO, 1, False)
    locks.drop(INO, 1, False)
    assert cluster.asked == [W, U]
    cluster.stands = Range(77, W, 3, 4, 1234)
    assert locks.test(INO, 1, FileLock(R, 0, 9, 1), False) == FileLock(W, 3, 4, 0)


@pytest.mark.parametrize("waits", [True, False])
def test_a_claim_keeps_others_out_and_an_unlock_meanwhile_takes_what_was_there(
    waits: bool,
) -> None:
    """Who waits in F_SETLKW has nothing yet: a close by another thread of his process
    takes nothing from him, and he must not be told otherwise."""
    cluster = Cluster()
    locks = Locks(cluster)
    cluster.gate.clear()
    want = FileLock(W, 0, 9, 1)
    thread = threading.Thread(
        target=lambda: locks.change(INO, 1, want, waits, False, lambda: False)
    )
    thread.start()
    assert cluster.inside.wait(30)
    if waits:  # else others would wait for the answer
        assert not take(locks, 2, W)
    locks.drop(INO, 1, False)  # the owner closed the file: waits for nobody
    cluster.gate.set()
    thread.join(30)
    assert len(locks) == int(waits)
    assert cluster.asked == ([W] if waits else [W, U])
    assert take(locks, 2, W) is not waits


def exclusive(local: Local, name: bytes) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    opened = local.vfs.create(ROOT_INO, name, 0o644, flags, Caller())
    local.vfs.release(opened.handle)


def test_others_are_asked_about_names_in_their_directories(tmp_path: Path) -> None:
    cluster = Cluster()
    with local_vfs(tmp_path / "s", peers=cluster) as local:
        exclusive(local, b"asked")
        local.put("/not-exclusive")
        local.mkdir("/own")
        local.mkdir("/own/sub")
        assert cluster.reserved == [b"asked", b"own"]
        cluster.connected = False
        exclusive(local, b"alone")
        assert cluster.reserved == [b"asked", b"own"]


def test_a_name_given_away_in_our_directory_is_asked_for(tmp_path: Path) -> None:
    cluster = Cluster()
    with local_vfs(tmp_path / "s", peers=cluster) as local:
        ino = local.mkdir("/own")
        later = time.monotonic_ns() + 10**12
        assert local.namespace.reserve(ino, b"given", later)
        assert not local.namespace.reserve(ROOT_INO, b"own", later)
        local.mkdir("/own/a")
        assert cluster.reserved == [b"own", b"a"]
        local.namespace.nothing_reserved()
        local.mkdir("/own/b")
        assert cluster.reserved == [b"own", b"a"]


def test_a_grant_that_is_not_used_is_given_back(tmp_path: Path) -> None:
    cluster = Cluster()
    with local_vfs(tmp_path / "s", peers=cluster) as local:
        local.put("/file")
        real = cluster.reserve

        def taken_meanwhile(parent: Ino, name: bytes) -> bool:
            local.put("/late")
            return real(parent, name)

        cluster.reserve = taken_meanwhile  # type: ignore[method-assign]
        with pytest.raises(FsError) as caught:
            exclusive(local, b"late")
        assert caught.value.errno == 17
        assert cluster.returned == [b"late"]


def test_options_keep_the_cluster_out(tmp_path: Path) -> None:
    cluster = Cluster()
    options = VfsOptions(locks="local", exclusive="local")
    with local_vfs(tmp_path / "s", options, cluster) as local:
        exclusive(local, b"a")
        handle = local.open("/a")
        local.vfs.setlk(handle, 1, FileLock(W, 0, 9, 1), False, False, Caller())
        local.close(handle)
    assert not cluster.asked and not cluster.reserved


def test_an_unlock_shows_what_was_written_through_another_descriptor(
    tmp_path: Path,
) -> None:
    """To the next holder, who may be elsewhere."""

    class Near(RecordingPeers):
        def has_members(self) -> bool:
            return True

    peers = Near()
    with local_vfs(tmp_path / "s", peers=peers) as local:
        local.put("/f", b"old")
        writing, locked = local.open("/f"), local.open("/f", os.O_RDONLY)
        lock = FileLock(fcntl.F_RDLCK, 0, OFFSET_MAX, 1)
        local.vfs.setlk(locked, 9, lock, False, True, local.caller)
        local.vfs.write(writing, 0, b"new")
        before = len(peers.published)
        unlock = FileLock(fcntl.F_UNLCK, 0, OFFSET_MAX, 1)
        local.vfs.setlk(locked, 9, unlock, False, True, local.caller)
        assert len(peers.published) > before
        local.close(writing)
        local.close(locked)
