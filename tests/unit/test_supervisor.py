"""The supervisor's parts: back-off, lock, reports, loop, and children that die."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusefs import readiness
from fusefs.config import Config
from fusefs.mountpoint import nodes, table, unmounting
from fusefs.mountpoint.exits import CommandError
from fusefs.namespace import schema
from fusefs.supervisor import lock, mounting, preparing, state, supervisor
from fusefs.supervisor.child import LONGEST_DELAY_S, Child, delay_s
from fusefs.supervisor.loop import Loop
from fusefs.supervisor.supervisor import Supervisor
from fusefs.supervisor.watchdog import Watchdog


def test_delay_first_deaths_restart_at_once_then_slower_up_to_a_limit() -> None:
    delays = [delay_s(deaths) for deaths in range(20)]
    assert delays[:2] == [0.0, 0.0]
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY_S


def test_lock_second_owner_is_told_who_has_it(tmp_path: Path) -> None:
    held = lock.acquire(tmp_path, "/mnt/dfs")
    try:
        with pytest.raises(CommandError, match="mounted on /mnt/dfs") as caught:
            lock.acquire(tmp_path, "/mnt/other")
        assert str(os.getpid()) in str(caught.value)
        assert caught.value.code == 32
        assert lock.holder(tmp_path) == (os.getpid(), "/mnt/dfs")
    finally:
        os.close(held)
    assert lock.holder(tmp_path) is None
    held = lock.acquire(tmp_path, "")
    try:
        with pytest.raises(CommandError, match=f"dfs umount {tmp_path}$"):
            lock.acquire(tmp_path, "/mnt/other")
    finally:
        os.close(held)


def test_lock_is_not_refused_because_somebody_looks(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from fusefs.supervisor import lock\n"
        "print(flush=True)\n"
        "while True: lock.holder(Path(sys.argv[1]))"
    )
    os.close(lock.acquire(tmp_path, ""))
    command = [sys.executable, "-c", script, str(tmp_path)]
    looking = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert looking.stdout is not None and looking.stdout.readline()
        for _ in range(500):
            os.close(lock.acquire(tmp_path, ""))
    finally:
        looking.kill()
        looking.communicate()


def test_a_store_on_a_disk_that_does_not_answer_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "INIT_LIMIT_S", 0.001)
    config = Config(store=str(tmp_path / "store"), mountpoint="/m")
    with pytest.raises(CommandError, match="was not made in") as caught:
        preparing.prepare(config)
    assert caught.value.code == 32 and lock.holder(tmp_path / "store") is None


def test_of_two_mounts_at_once_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted: list[Config] = []

    def look(where: str) -> bool:
        found = bool(mounted)
        time.sleep(0.02)  # for the other one
        return found

    def mount(config: Config) -> int:
        mounted.append(config)
        return -1

    monkeypatch.setattr(unmounting, "is_mounted", look)
    monkeypatch.setattr(mounting, "mount", mount)
    config = Config(store=str(tmp_path), mountpoint=str(tmp_path / "m"))
    with ThreadPoolExecutor(2) as both:
        made = [both.submit(mounting.MountedDevice, config) for _ in range(2)]
        failures = [one.exception() for one in made]
    assert len(mounted) == 1
    assert [str(f) for f in failures if f] == [
        f"another node has just been mounted on {tmp_path}/m"
    ]


def test_reports_noise_between_them_is_left_out() -> None:
    lines = b'Traceback\n{"ready":{"port":1}}\n{"failed":"no","code":32}\n{"half":'
    ready, failed, *_ = readiness.parse(lines)
    assert ready.ready == {"port": 1}
    assert (failed.failed, failed.code) == ("no", 32)


def test_what_to_do_about_a_database_depends_on_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    path.write_bytes(b"not a database" * 1000)
    said = _why_not_open(tmp_path)
    assert "is damaged" in said and "--join TOKEN" in said
    path.unlink()
    schema.create(path).execute("PRAGMA user_version = 99")
    said = _why_not_open(tmp_path)
    assert "has format 99" in said and "damaged" not in said
    path.unlink()
    path.mkdir()
    said = _why_not_open(tmp_path)
    assert "unable to open" in said and "damaged" not in said


def _why_not_open(store: Path) -> str:
    config = Config(store=str(store), mountpoint="/mnt/dfs")
    with pytest.raises(CommandError) as caught:
        preparing.mark_running(config)
    assert caught.value.code == 32
    return str(caught.value)


def _child(tmp_path: Path, code: str) -> Child:
    return Child("test", ["-c", code], tmp_path / "log", ())


def _run_to_end(child: Child) -> int:
    loop = Loop()
    ended: list[int] = []

    def end() -> None:
        loop.forget(child.pidfd)
        ended.append(child.ended())
        loop.stop()

    child.start()
    loop.watch(child.pidfd, end)
    loop.run()
    return ended[0]


def test_child_says_ready_and_its_status_is_seen(tmp_path: Path) -> None:
    child = _child(
        tmp_path, "from fusefs import readiness; readiness.ready(port=7); exit(3)"
    )
    assert _run_to_end(child) == 3
    assert child.facts == {"port": 7}
    assert child.quick_deaths == 1


def test_child_without_a_reason_the_last_line_of_its_log_is_it(tmp_path: Path) -> None:
    child = _child(tmp_path, "print('one'); raise ValueError('the reason')")
    assert _run_to_end(child) == 1
    assert child.why() == "ValueError: the reason"


def test_child_that_cannot_be_started_leaves_nothing_behind(tmp_path: Path) -> None:
    child = _child(tmp_path / "none", "pass")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        child.start()
    assert set(os.listdir("/proc/self/fd")) <= before and not child.running


def test_probe_without_a_thread_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    watchdog = Watchdog("/", "none", 0.0)
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", none)
        assert not watchdog.stuck()
        assert not watchdog.stuck()
    assert not watchdog.stuck()


def test_child_ends_with_a_killed_parent(tmp_path: Path) -> None:
    code = f"""
import os, sys, time
from pathlib import Path
from fusefs.supervisor.child import Child
log = Path({str(tmp_path)!r}) / "log"
child = Child("sleeper", ["-c", "import time; time.sleep(60)"], log, ())
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert nodes.wait_gone(pid, 10)


def test_loop_signals_timers_and_order() -> None:
    loop, seen = Loop(), []
    before = signal.getsignal(signal.SIGUSR2)
    try:
        loop.on_signals([signal.SIGUSR2], lambda: (seen.append("signal"), loop.stop()))
        loop.after(30.0, loop.stop)
        loop.after(0.0, lambda: os.kill(os.getpid(), signal.SIGUSR2))
        loop.run()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == ["signal"]


@pytest.mark.parametrize("full", [False, True])
def test_long_logs_are_set_aside_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    monkeypatch.setattr(preparing, "LOG_LIMIT_BYTES", 10)
    short, log = tmp_path / "worker.log", tmp_path / "node.log"
    short.write_text("short")
    with log.open("a") as writer:
        print("long enough", file=writer, flush=True)
        with monkeypatch.context() as disk:
            if full:
                disk.setattr(shutil, "copyfile", _no_room)
            preparing.rotate_logs(tmp_path)
        print("and on", file=writer, flush=True)
    assert (short.read_text(), log.read_text()) == ("short", "and on\n")
    aside = tmp_path / "node.log.1"
    assert not aside.exists() if full else aside.read_text() == "long enough\n"


def _no_room(source: Path, target: Path) -> None:
    target.write_text("half")
    raise OSError(28, "No space left on device")


def test_logs_of_a_running_node_do_not_grow_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "ROTATE_EVERY_S", 0.01)
    monkeypatch.setattr(preparing, "LOG_LIMIT_BYTES", 10)
    run = tmp_path / "run"
    run.mkdir()
    (run / "node.log").write_text("longer than that")
    loop = Loop()
    one = Supervisor(Config(store=str(tmp_path)), None, -1, loop)
    monkeypatch.setattr(one, "_start", lambda child: None)
    monkeypatch.setattr(loop, "on_signals", lambda numbers, action: None)

    def look() -> None:
        loop.after(0.01, look)
        if (run / "node.log").read_text() == "":
            loop.stop()

    look()
    loop.after(30.0, loop.stop)
    one.run()
    assert (run / "node.log").read_text() == ""


ENDING = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_worker_is_not_given_up_in_the_moment_in_which_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its threads but the first are there for a moment."""
    (tmp_path / "run").mkdir()
    loop = Loop()
    one = Supervisor(Config(store=str(tmp_path), mountpoint="/x"), None, -1, loop)
    child = one._worker = Child("worker", ["-c", ENDING], tmp_path / "log", ())
    ended: list[int] = []
    monkeypatch.setattr(one, "_go_on_without", lambda _, status: ended.append(status))
    child.start()
    process = child.pid
    try:
        until_s = time.monotonic() + 30
        while not child.is_half_dead and time.monotonic() < until_s:
            time.sleep(0.01)
        one._look_for_half_dead()
        assert child.running and not ended
        one._look_for_half_dead()
        assert not child.running and ended == [-signal.SIGKILL]
    finally:
        os.kill(process, signal.SIGKILL)


def test_mount_table_octal_escapes_and_optional_fields() -> None:
    text = (
        b"36 35 0:52 / /mnt/with\\040space rw shared:1 - fuse.dfs dfs@a rw,user_id=7\n"
        b"36 35 0:52 /a\\040part /srv rw - fuse.dfs dfs@a rw,user_id=7\n"
        b"37 35 0:53 / /proc rw - proc proc rw\n"
        b"38 35 0:54 / /mnt/some\rbody's rw - tmpfs none rw\n"
    )
    ours, part, other, odd = table.parse(text)
    assert odd.where == b"/mnt/some\rbody's"
    who = ("fuse.dfs", "dfs@a", 7)
    options = b"rw,user_id=7"
    assert ours == (b"/mnt/with space", "0:52", *who, b"/", 36, 35, options)
    assert (part.where, part.root) == (b"/srv", b"/a part")
    assert (ours.is_ours, ours.connection) == (True, "52")
    assert not other.is_ours and other.user == -1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"40 36 0:60 / /mnt/d/build rw shared:1 - tmpfs none rw", True),
        (b"40 35 0:60 / /mnt/do rw - tmpfs none rw", False),
        (b"40 35 0:60 / /o rw - overlay none rw,lowerdir=/x:/mnt/d/a\\040b", True),
        (b"40 35 0:60 / /o rw - overlay none rw,lowerdir+=/mnt/d,upperdir=/u", True),
        (b"40 35 0:60 / /o rw - overlay none rw,lowerdir=/mnt/do", False),
        (b"40 35 0:60 / /o rw - overlay none rw,lowerdir=/x,upperdir=/mnt/d/u", False),
        (b"40 39 0:60 / /mnt/e/b rw - tmpfs none rw", False),
    ],
)
def test_mount_is_built_upon_by_mounts_and_overlays(
    line: bytes, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        b"36 35 0:52 / /mnt/d rw - fuse.dfs dfs@a rw,user_id=0\n"
        b"39 35 0:53 / /mnt/e rw - fuse.dfs dfs@e rw,user_id=0\n"
    )
    for process, table_text in (("7", text), ("8", text + line + b"\n"), ("9", b"")):
        (tmp_path / process / "ns").mkdir(parents=True)
        (tmp_path / process / "ns/mnt").symlink_to(f"mnt:[{process}]")
        (tmp_path / process / "mountinfo").write_bytes(table_text)
    monkeypatch.setattr(table, "MOUNTINFO", tmp_path / "7/mountinfo")
    monkeypatch.setattr(table, "PROCESSES", tmp_path)
    assert table.is_built_upon("52") is expected


def test_state_is_told_where_there_is_no_room_for_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    (tmp_path / "run").mkdir()
    first = state.State(pid=1, store=str(tmp_path), mountpoint="/mnt", started_s=0)
    state.write(first)
    second = state.State(pid=2, store=str(tmp_path), mountpoint="/m", started_s=0)
    monkeypatch.setattr(Path, "write_bytes", full)
    state.write(second)
    assert state.read(tmp_path) == second


def test_state_round_trip_and_succession(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    before = state.State(
        pid=1, store=str(tmp_path), mountpoint="/m", started_s=0, node_starts=1
    )
    state.write(before)
    assert state.read(tmp_path) == before
    after = state.State(
        pid=1,
        store=str(tmp_path),
        mountpoint="/m",
        started_s=0,
        node_starts=2,
        worker_starts=1,
        node_ready=True,
    )
    assert not state.is_successor(before, after)
    assert state.read(tmp_path / "nowhere") is None
