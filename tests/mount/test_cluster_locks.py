"""Locks and exclusive creation on two machines: at most one holder, one winner.

Contention is between processes, each on a mount of its own. Whoever is inside the
critical section says so in a file on the host's disk; two at once are an error.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lib.cluster import LIMIT_S, Cluster, Node, errno_of, wait_until

pytestmark = pytest.mark.mount

ROUNDS = 100
SOON_S = 10.0
"""Less than the lease of a lock whose holder is silent."""

CONTENDER = """
import errno, fcntl, os, sys, time
how, path, inside, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

def enter():
    if how == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX)
    elif how == "fcntl":
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)
    else:
        while not make():
            time.sleep(0.001)

def make():
    try:
        if how == "excl":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        elif how == "mkdir":
            os.mkdir(path)
        else:
            os.link(mine, path)
    except FileExistsError:
        return False
    return True

def leave():
    if how == "flock":
        fcntl.flock(fd, fcntl.LOCK_UN)
    elif how == "fcntl":
        fcntl.lockf(fd, fcntl.LOCK_UN, 10, 5)
    elif how == "mkdir":
        os.rmdir(path)
    else:
        os.unlink(path)

if how in ("flock", "fcntl"):
    fd = os.open(path, os.O_RDWR)
if how == "link":
    mine = f"{path}.{os.getpid()}"
    os.close(os.open(mine, os.O_CREAT, 0o600))
for _ in range(rounds):
    enter()
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails when two are inside
    os.unlink(inside)
    leave()
"""

WINNERS = """
import os, sys, time

def sees(name):
    # that there was a winner is told at once, its name when the kernel hears of it:
    # a notification waits behind the request that lost
    end = time.monotonic() + 10
    while not os.path.lexists(name) and time.monotonic() < end:
        time.sleep(0.001)
    return os.path.lexists(name)

how, path, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
mine = f"{path}/mine.{os.getpid()}"
os.close(os.open(mine, os.O_CREAT, 0o600))
for number in range(rounds):
    name = f"{path}/{number}"
    sys.stdin.readline()
    try:
        if how == "excl":
            os.close(os.open(name, os.O_CREAT | os.O_EXCL, 0o600))
        elif how == "mkdir":
            os.mkdir(name)
        else:
            os.link(mine, name)
        print("won", flush=True)
    except FileExistsError:
        print("lost" if sees(name) else "unseen", flush=True)
"""

HOLDER = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def program(text: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def end(*programs: subprocess.Popen[str]) -> None:
    for each in programs:
        each.kill()
        each.wait(LIMIT_S)


def said(each: subprocess.Popen[str]) -> str:
    assert each.stdout is not None
    return each.stdout.readline().strip()


@pytest.mark.parametrize("how", ["flock", "fcntl", "excl", "mkdir", "link"])
def test_one_at_a_time(pair: list[Node], tmp_path: Path, how: str) -> None:
    """100 times in and out by each side, two processes on one and one on the other."""
    a, b = pair
    name = f"lock-{how}"
    if how in ("flock", "fcntl"):
        (a.mnt / name).touch()
        wait_until((b.mnt / name).exists, "the file is on both")
    rounds = ROUNDS // 2
    inside = tmp_path / "inside"
    contenders = [
        program(CONTENDER, how, node.mnt / name, inside, count)
        for node, count in ((a, rounds), (a, rounds), (b, ROUNDS))
    ]
    try:
        assert [each.wait(6 * LIMIT_S) for each in contenders] == [0, 0, 0]
    finally:
        end(*contenders)


@pytest.mark.parametrize("how", ["excl", "mkdir", "link"])
def test_of_two_that_create_at_once_one_wins(pair: list[Node], how: str) -> None:
    """And the other one sees what it lost to."""
    a, b = pair
    (a.mnt / how).mkdir()
    wait_until((b.mnt / how).exists, "the directory is on both")
    both = [program(WINNERS, how, node.mnt / how, ROUNDS) for node in pair]
    try:
        for _ in range(ROUNDS):
            for each in both:
                assert each.stdin is not None
                each.stdin.write("go\n")
                each.stdin.flush()
            assert sorted(said(each) for each in both) == ["lost", "won"]
    finally:
        end(*both)
    assert not [n for n in os.listdir(a.mnt / how) if "conflict" in n]


def test_a_conversion_and_a_byte_range_are_seen_by_the_other(pair: list[Node]) -> None:
    a, b = pair
    (a.mnt / "ranges").touch()
    wait_until((b.mnt / "ranges").exists, "the file is on both")
    with open(a.mnt / "ranges", "r+b") as one, open(b.mnt / "ranges", "r+b") as two:

        def take(kind: int, length: int, start: int) -> int:
            flags = kind if kind == fcntl.LOCK_UN else kind | fcntl.LOCK_NB
            return errno_of(lambda: fcntl.lockf(two, flags, length, start))

        fcntl.lockf(one, fcntl.LOCK_SH, 10, 0)
        assert take(fcntl.LOCK_SH, 5, 5) == 0
        assert take(fcntl.LOCK_EX, 5, 5) == errno.EAGAIN
        assert take(fcntl.LOCK_EX, 5, 10) == 0
        assert take(fcntl.LOCK_UN, 5, 5) == 0
        fcntl.lockf(one, fcntl.LOCK_EX, 10, 0)
        assert take(fcntl.LOCK_SH, 1, 9) == errno.EAGAIN
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)  # these never meet
    with open(b.mnt / "ranges", "r+b") as two:
        fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB)  # closing dropped them all


def test_a_lock_whose_holder_has_closed_is_free_at_once(pair: list[Node]) -> None:
    """Nobody waits for a RELEASE, but what comes after it must find it done."""
    path = pair[0].mnt / "again"
    refused = 0
    for _ in range(300):
        with path.open("wb") as file:
            refused += _try(file.fileno()) != 0
    assert not refused


def test_the_next_holder_reads_what_the_last_one_wrote(pair: list[Node]) -> None:
    """Without closing or syncing in between: a lock hands the data over, too."""
    _count_in_turns(*pair)


def test_a_lock_hands_over_what_no_barrier_waited_for(fresh: Cluster) -> None:
    """Nor does it need the barrier: the next holder waits for what it lacks."""
    _count_in_turns(*fresh.start(2, "--sync=off"))


def _count_in_turns(a: Node, b: Node) -> None:
    """flock and fcntl locks do not exclude each other: each has a file of its own."""
    for lock, name in ((fcntl.flock, "by-flock"), (fcntl.lockf, "by-fcntl")):
        (a.mnt / name).write_bytes(b"0000")
        wait_until((b.mnt / name).exists, "the file is on both")
        with (
            open(a.mnt / name, "r+b", buffering=0) as one,
            open(b.mnt / name, "r+b", buffering=0) as two,
        ):
            for number in range(40):
                file = (one, two)[number % 2]
                lock(file, fcntl.LOCK_EX)
                assert int(os.pread(file.fileno(), 4, 0)) == number
                os.pwrite(file.fileno(), b"%04d" % (number + 1), 0)
                lock(file, fcntl.LOCK_UN)


def test_a_waiter_is_interrupted_and_a_dead_holders_lock_is_free(
    pair: list[Node],
) -> None:
    a, b = pair
    (a.mnt / "dying").touch()
    wait_until((b.mnt / "dying").exists, "the file is on both")
    holder = program(HOLDER, a.mnt / "dying")
    waiter = None
    try:
        assert said(holder) == "held"
        waiter = program(HOLDER, b.mnt / "dying")
        time.sleep(0.2)
        assert waiter.poll() is None
        waiter.send_signal(signal.SIGTERM)
        assert waiter.wait(LIMIT_S) == -signal.SIGTERM
        waiter = program(HOLDER, b.mnt / "dying")
        time.sleep(0.2)
        began_s = time.monotonic()
        holder.kill()
        assert said(waiter) == "held"
        assert time.monotonic() - began_s < SOON_S
    finally:
        end(holder, *([waiter] if waiter else []))


def test_lock_outlives_the_node_process_and_a_partition_is_enolck(
    fresh: Cluster,
) -> None:
    """kill -9 of the holder's node process: its program still holds the lock. Without
    the other node: ENOLCK where it decides, never a lock of this machine alone."""
    a, b = fresh.start(2)
    names = [f"f{number}" for number in range(40)]  # one of both decides about each
    for name in names:
        (a.mnt / name).touch()
    fresh.wait_equal()
    held = [os.open(a.mnt / name, os.O_RDWR) for name in names]
    theirs = [os.open(b.mnt / name, os.O_RDWR) for name in names]
    try:
        for fd in held:
            fcntl.flock(fd, fcntl.LOCK_EX)
        old = a.node_pid()
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: a.node_pid() not in (0, old), "the node is back")
        fresh.wait_connected()
        for fd in theirs:
            assert _try(fd) == errno.EAGAIN
        for fd in held[:4]:
            fcntl.flock(fd, fcntl.LOCK_UN)
        for fd in theirs[:4]:
            wait_until(lambda fd=fd: _try(fd) == 0, "it is free", SOON_S)  # type: ignore[misc]
        for fd in theirs:
            os.close(fd)
        theirs.clear()
        b.stop()
        for fd in held[4:]:
            fcntl.flock(fd, fcntl.LOCK_UN)
        answers = [_try(fd) for fd in held[:4]]
        for fd in held[4:]:
            if errno.ENOLCK not in answers:
                answers.append(_try(fd))
        assert errno.ENOLCK in answers and {*answers} <= {0, errno.ENOLCK}
    finally:
        for fd in held + theirs:
            os.close(fd)


def test_databases_are_used_while_the_other_node_is_away_if_wanted(
    fresh: Cluster,
) -> None:
    a, b = fresh.start(2, "-o", "lock_failure=local")
    databases = [sqlite3.connect(a.mnt / f"{n}.db", timeout=0) for n in range(20)]
    try:
        for database in databases:
            database.execute("CREATE TABLE t(n)")
        fresh.wait_equal()
        b.umount()
        assert not all(_inserts(d) for d in databases), "that node decides about some"
        wait_until(lambda: all(_inserts(d) for d in databases), "they go on", 60)
        databases[0].execute("BEGIN IMMEDIATE")
        other = sqlite3.connect(a.mnt / "0.db", timeout=0)
        assert not _inserts(other)
        databases[0].rollback()
        other.close()
    finally:
        for database in databases:
            database.close()
    b.mount()
    fresh.wait_connected()
    fresh.wait_equal()
    for n in range(20):
        database = sqlite3.connect(b.mnt / f"{n}.db", timeout=SOON_S)
        assert database.execute("SELECT count(*) FROM t").fetchone()[0] > 0
        assert _inserts(database)
        database.close()


def _inserts(database: sqlite3.Connection) -> bool:
    try:
        with database:
            database.execute("INSERT INTO t VALUES(1)")
    except sqlite3.OperationalError:
        return False
    return True


def _try(fd: int) -> int:
    return errno_of(lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
