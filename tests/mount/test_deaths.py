"""kill -9 of node, worker and everything: the mount goes on, nothing synced is lost."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

import pytest

from fusefs.mountpoint import nodes, table, unmounting
from fusefs.supervisor import state
from tests.lib.cluster import Cluster, Node, cluster, dfs, status_page, wait_until
from tests.lib.commands import run

pytestmark = pytest.mark.mount
SOON_S = 10.0
"""Less than the lease of a lock whose holder is silent."""

BACK_S = 2.0
"""Beyond what a whole mount took on this machine, which starts both and more."""


def start(fresh: Cluster, count: int) -> tuple[list[Node], float]:
    """So many nodes, and how long that took."""
    began_s = time.monotonic()
    return fresh.start(count), time.monotonic() - began_s


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert nodes.wait_gone(pid, 10)


def test_node_killed_local_files_answer_and_it_is_back(fresh: Cluster) -> None:
    (a, b), started_s = start(fresh, 2)
    (a.mnt / "file").write_bytes(b"x" * 100_000)
    for _ in range(3):
        pid = a.node_pid()
        began_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        assert (a.mnt / "file").read_bytes() == b"x" * 100_000
        (a.mnt / "written-meanwhile").write_text("yes")
        wait_until(lambda p=pid: a.node_pid() not in (0, p), "another node process")
        wait_until(lambda: a.connected() == {"B"}, "it is connected again")
        assert time.monotonic() - began_s < started_s + BACK_S
    wait_until((b.mnt / "written-meanwhile").exists, "B has what A wrote meanwhile")
    fresh.wait_equal()


def test_node_process_is_back_at_once(fresh: Cluster) -> None:
    (a,), started_s = start(fresh, 1)
    pid = a.node_pid()
    began_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)

    def answers() -> bool:
        now = a.processes()
        return now is not None and now.node not in (0, pid) and now.node_ready

    wait_until(answers, "the node is back")
    assert time.monotonic() - began_s < started_s + BACK_S


def test_node_that_cannot_start_again_says_why(fresh: Cluster) -> None:
    a = fresh.add().mount()
    now = a.processes()
    assert now is not None
    os.kill(now.pid, signal.SIGSTOP)
    kill(now.node)
    with socket.create_server(("127.0.0.1", a.port)):
        os.kill(now.pid, signal.SIGCONT)
        said = f"port {a.port} is in use"
        wait_until(
            lambda: said in dfs("status", str(a.mnt), check=False).stdout, "status says"
        )
        assert said in (a.store / "run" / "supervisor.log").read_text()
    assert said not in status_page(str(a.mnt))


def kill_worker(a: Node, started_s: float) -> None:
    """The mount, which took so long to start, answers about as soon; returns when there
    is another worker."""
    pid = a.worker_pid()
    os.kill(pid, signal.SIGKILL)
    began_s = time.monotonic()
    os.listdir(a.mnt)
    os.stat(a.mnt / "read")
    assert time.monotonic() - began_s < started_s + BACK_S
    wait_until(lambda: a.worker_pid() not in (0, pid), "a new worker")


def test_worker_killed_programs_go_on(fresh: Cluster) -> None:
    """A copy is running; a file is open for writing and one for reading."""
    (a,), started_s = start(fresh, 1)
    (a.mnt / "read").write_bytes(b"r" * 3_000_000)
    failures: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            number = 0
            while not done.is_set():
                (a.mnt / f"w{number % 50}").write_bytes(b"w" * 20_000)
                number += 1
        except BaseException as error:
            failures.append(error)

    with (a.mnt / "read").open("rb") as reader, (a.mnt / "open").open("wb") as out:
        out.write(b"before")
        out.flush()
        os.fsync(out.fileno())
        worker = threading.Thread(target=work)
        worker.start()
        try:
            for _ in range(3):
                kill_worker(a, started_s)
        finally:
            done.set()
            worker.join(30)
        out.write(b" after")
        assert reader.read() == b"r" * 3_000_000
    assert not failures, [(e, traceback.format_tb(e.__traceback__)) for e in failures]
    assert (a.mnt / "open").read_bytes() == b"before after"


PROBE = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for lock in (fcntl.flock, lambda fd, how: fcntl.lockf(fd, how, 10)):
    try:
        lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("free")
    except BlockingIOError:
        print("held")
"""


def probe(path: Path) -> list[str]:
    """Whether another program would get the flock, and the record lock."""
    words = [sys.executable, "-c", PROBE, str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.split() + done.stderr.splitlines()


def test_what_is_mounted_below_stays_whoever_is_killed(
    fresh: Cluster, tmp_path: Path
) -> None:
    """A disk of this machine on a directory (`build`), an overlay of one. What a peer
    changes meanwhile is seen all the same."""
    a, b = fresh.start(2)
    (a.mnt / "top/build").mkdir(parents=True)
    for name in ("changed", "removed", "replaced"):
        (a.mnt / "top" / name).write_text("old")
    for name in ("upper", "work", "overlay"):
        (tmp_path / name).mkdir()
    fresh.wait_equal()
    top, overlay = a.mnt / "top", tmp_path / "overlay"
    build = top / "build"
    layers = f"lowerdir={a.mnt},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    run(["mount", "-t", "tmpfs", "none", str(build)], check=True)
    run(["mount", "-t", "overlay", "none", "-o", layers, str(overlay)], check=True)
    try:
        for place in (a.mnt, overlay):
            assert sorted(p.name for p in (place / "top").iterdir())[0] == "build"
            assert (place / "top/removed").read_text() == "old"
            assert not (place / "top/new").exists()
        (build / "here").touch()
        for process in ("worker", "node"):
            old = getattr(a, f"{process}_pid")()
            os.kill(old, signal.SIGSTOP)
            (b.mnt / "top/changed").write_text(process)
            (b.mnt / "top/removed").unlink(missing_ok=True)
            (b.mnt / "top/replacing").write_text(process)
            os.replace(b.mnt / "top/replacing", b.mnt / "top/replaced")
            (b.mnt / "top/new").write_text(process)
            os.kill(old, signal.SIGKILL)
            fresh.wait_connected()
            fresh.wait_equal()
            wait_until(lambda: not (top / "removed").exists(), "it is gone here")
            for name in ("changed", "replaced", "new"):
                path = top / name
                wait_until(
                    lambda p=path, new=process: p.read_text() == new,  # type: ignore[misc]
                    f"{name} is seen here",
                )
            assert (build / "here").exists()
            assert (overlay / "top/changed").read_text() == process
    finally:
        run(["umount", str(overlay)])
        run(["umount", str(build)])


@pytest.mark.parametrize("how", ["killed", "upgraded"])
def test_locks_outlive_the_worker_and_end_with_their_files(
    fresh: Cluster, how: str
) -> None:
    """As both nodes see them."""
    a, b = fresh.start(2)
    (a.mnt / "locked").touch()
    fresh.wait_equal()
    everywhere = (a.mnt / "locked", b.mnt / "locked")
    with (
        (a.mnt / "locked").open("r+b") as by_flock,
        (a.mnt / "locked").open("r+b") as by_record,
    ):
        fcntl.flock(by_flock, fcntl.LOCK_EX)
        fcntl.lockf(by_record, fcntl.LOCK_EX, 10)
        for _ in range(2):
            pid = a.worker_pid()
            if how == "killed":
                kill(pid)
            else:
                dfs("upgrade", str(a.mnt))
            wait_until(lambda p=pid: a.worker_pid() not in (0, p), "a new worker")  # type: ignore[misc]
            for path in everywhere:
                assert probe(path) == ["held", "held"], path
        fcntl.lockf(by_record, fcntl.LOCK_UN)
        for path in everywhere:
            wait_until(
                lambda p=path: probe(p) == ["held", "free"], "one is free", SOON_S
            )  # type: ignore[misc]
        fcntl.lockf(by_record, fcntl.LOCK_EX, 10)
        with (a.mnt / "locked").open("rb"):  # POSIX: closing any descriptor unlocks
            pass
        wait_until(
            lambda: probe(everywhere[0]) == ["held", "free"], "one is free", SOON_S
        )
    for path in everywhere:
        wait_until(lambda p=path: probe(p) == ["free", "free"], "both are free", SOON_S)  # type: ignore[misc]


_NAMES = """
import os, sys
n = 0
while True:
    n += 1
    for name in sys.argv[2:]:
        path = os.path.join(sys.argv[1], name)
        try:
            os.mkdir(path) if n % 2 else os.rmdir(path)
        except OSError as error:
            print(error, file=sys.stderr)
    print(n, flush=True)
"""


def test_worker_killed_in_a_transaction_while_a_directory_is_locked(
    fresh: Cluster,
) -> None:
    """A thread of it tells the kernel of another name in that directory, and waits for
    who has the lock, who waits for an answer: of the next worker, which needs the locks
    of the transaction."""
    a, b = fresh.start(2)
    (a.mnt / "d").mkdir()
    fresh.wait_equal()
    os.listdir(b.mnt / "d")
    out = b.mnt.parent / "steps"
    programs = []
    for node, names, told in ((b, "xy", out), (a, "pqrst", os.devnull)):
        words = [sys.executable, "-c", _NAMES, str(node.mnt / "d"), *names]
        with open(told, "wb") as file:
            programs.append(subprocess.Popen(words, stdout=file, stderr=file))
    pid = b.worker_pid()
    try:
        if not any(stopped_in_between(pid, b.store) for _ in range(3000)):
            pytest.skip("it was never in the middle of both")
        os.kill(pid, signal.SIGKILL)
        before = out.stat().st_size
        wait_until(lambda: out.stat().st_size > before + 100, "the program goes on")
    finally:  # one that waits in the kernel ends with the mount
        for program in programs:
            program.kill()
    for program in programs:
        program.wait()


def stopped_in_between(pid: int, store: Path) -> bool:
    """The worker is stopped, and it has the write lock while a notification waits."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.002)
    lock = f"{(store / 'write.lock').stat().st_ino} "
    held = [
        line
        for line in Path("/proc/locks").read_text().splitlines()
        if " FLOCK " in line and f" {pid} " in line and f":{lock}" in line
    ]
    tasks = Path(f"/proc/{pid}/task").iterdir()
    if held and any("fuse_reverse" in (t / "wchan").read_text() for t in tasks):
        return True
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.003)
    return False


def test_tmpfile_gets_its_name_from_the_next_worker(fresh: Cluster) -> None:
    (a,), started_s = start(fresh, 1)
    (a.mnt / "read").write_bytes(b"")
    top = os.open(a.mnt, os.O_DIRECTORY)
    fd = os.open(a.mnt, os.O_TMPFILE | os.O_WRONLY)
    os.write(fd, b"first")
    os.fsync(fd)
    kill_worker(a, started_s)
    path = f"/proc/self/fd/{fd}"
    os.link(path, a.mnt / "named", src_dir_fd=top, follow_symlinks=True)
    os.close(fd)
    os.close(top)
    assert (a.mnt / "named").read_bytes() == b"first"


def test_everything_killed_what_was_synced_is_there(fresh: Cluster) -> None:
    (a,) = fresh.start(1)
    for number in range(50):
        with (a.mnt / f"{number}").open("wb") as out:
            out.write(b"%d" % number * 1000)
            os.fsync(out.fileno())
    now = a.processes()
    assert now is not None
    for pid in (now.worker, now.pid, now.node):
        os.kill(pid, signal.SIGKILL)
    for pid in (now.worker, now.pid, now.node):
        assert nodes.wait_gone(pid, 10)
    a.mount()
    for number in range(50):
        assert (a.mnt / f"{number}").read_bytes() == b"%d" % number * 1000


def test_supervisor_killed_the_rest_ends_and_the_mount_can_be_made_again(
    fresh: Cluster,
) -> None:
    (a,) = fresh.start(1)
    (a.mnt / "file").write_text("content")
    now = a.processes()
    assert now is not None
    kill(now.pid)
    for pid in (now.worker, now.node):
        assert nodes.wait_gone(pid, 20)
    a.mount()
    assert (a.mnt / "file").read_text() == "content"


def test_supervisor_killed_the_worker_does_not_wait_for_bytes(fresh: Cluster) -> None:
    a = fresh.add().mount("--replicas=1")
    b = fresh.add().mount(token=a.token())
    fresh.wait_connected()
    contents = {f"file-{n}": os.urandom(1 << 20) for n in range(5)}
    for name, data in contents.items():
        (a.mnt / name).write_bytes(data)
    fresh.wait_equal()
    a.umount()
    fds = [os.open(b.mnt / name, os.O_WRONLY) for name in contents]
    for fd in fds:
        os.pwrite(fd, b"new", 20)  # the rest of the chunk is not here
    now = b.processes()
    assert now is not None
    kill(now.pid)
    assert nodes.wait_gone(now.worker, 10)
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
    b.mount()
    a.mount()
    fresh.wait_connected()
    for name, data in contents.items():
        assert (b.mnt / name).read_bytes() == data[:20] + b"new" + data[23:]


def test_upgrade_replaces_both_while_a_program_works(fresh: Cluster) -> None:
    (a,) = fresh.start(1)
    before = a.processes()
    script = "for i in $(seq 300); do echo $i >> log; cp log copy; done"
    program = subprocess.Popen(["sh", "-ec", script], cwd=a.mnt)
    try:
        for _ in range(2):
            dfs("upgrade", str(a.mnt))
        assert program.wait(150) == 0
    finally:
        program.kill()
    after = a.processes()
    assert before is not None
    assert after is not None
    assert after.pid == before.pid
    assert {after.worker, after.node} & {before.worker, before.node} == set()
    lines = (a.mnt / "log").read_text().split()
    assert lines == [str(n) for n in range(1, 301)]


def test_worker_and_node_start_when_there_is_room_for_them_again(
    fresh: Cluster,
) -> None:
    a = fresh.add().mount()
    (a.mnt / "file").write_text("content")
    before = a.processes()
    assert before is not None
    folder = f"/proc/{before.pid}/fd"  # some are open for a moment only
    used = min(max(map(int, os.listdir(folder))) for _ in range(50)) + 1
    most = resource.prlimit(before.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(before.pid, resource.RLIMIT_NOFILE, (used - 2, most[1]))
    for pid in (before.worker, before.node):
        os.kill(pid, signal.SIGKILL)
    log = a.store / "run" / "supervisor.log"
    wait_until(
        lambda: {"worker cannot", "node cannot"} <= set(_firsts(log)), "neither starts"
    )
    resource.prlimit(before.pid, resource.RLIMIT_NOFILE, most)
    assert (a.mnt / "file").read_text() == "content"
    after = a.processes()
    assert after is not None and after.pid == before.pid


def _firsts(log: Path) -> list[str]:
    """Two words of each message."""
    return [" ".join(line.split()[4:6]) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("binding", ["kernel", "fusepy"])
def test_worker_killed_after_the_mount_was_moved(tmp_path: Path, binding: str) -> None:
    with cluster(tmp_path / "old", binding) as made:
        a = made.add().mount()
        (a.mnt / "file").write_text("content")
        (tmp_path / "old").rename(tmp_path / "new")
        (tmp_path / "old").symlink_to("new")  # for the store's sake
        moved = tmp_path / "new" / a.mnt.name
        for _ in range(2 if binding == "kernel" else 0):
            pid = a.worker_pid()
            os.kill(pid, signal.SIGKILL)
            assert (moved / "file").read_text() == "content"
            wait_until(lambda p=pid: a.worker_pid() not in (0, p), "it goes on")  # type: ignore[misc]
        now = a.processes()
        assert now is not None and f"{a.mnt}" == now.mountpoint
        assert "running" in status_page(str(moved))
        dfs("umount", str(moved))
        assert nodes.wait_gone(now.pid, 0)


def test_fusepy_worker_killed_again_and_again(tmp_path: Path) -> None:
    with cluster(tmp_path, "fusepy") as made:
        a = made.add().mount()
        (a.mnt / "file").write_text("content")
        for _ in range(3):
            before = a.processes()
            assert before is not None
            os.kill(before.worker, signal.SIGKILL)

            def is_back(before: state.State = before) -> bool:
                now = a.processes()
                found = table.find(str(a.mnt))
                return (
                    now is not None
                    and now.worker_starts > before.worker_starts
                    and now.worker_ready
                    and found is not None
                    and found.connection == now.connection
                )

            wait_until(is_back, "another has mounted, and is known")
            assert (a.mnt / "file").read_text() == "content"


def test_watchdog_stuck_worker_is_dumped_and_the_mount_made_anew(
    fresh: Cluster,
) -> None:
    a = fresh.add().mount("-o", "watchdog_s=3")
    (a.mnt / "file").write_text("content")
    pid = a.worker_pid()
    os.kill(pid, signal.SIGSTOP)
    stuck = threading.Thread(target=_ignore_errors, args=(a.mnt / "other",))
    stuck.start()
    wait_until(lambda: a.worker_pid() not in (0, pid), "another worker", limit_s=40)
    stuck.join(20)
    assert not stuck.is_alive()
    wait_until(lambda: _text(a) == "content", "the new mount answers")


def test_who_waits_for_a_killed_worker_is_released_when_its_node_ends(
    fresh: Cluster,
) -> None:
    """Also where something of it still holds the device: its threads may wait for a
    lock in the kernel that the program has for as long as it waits for them."""
    a = fresh.add().mount()
    now = a.processes()
    assert now is not None
    device = next(
        int(fd.name)
        for fd in Path(f"/proc/{now.pid}/fd").iterdir()
        if os.readlink(fd) == "/dev/fuse"
    )
    held = _descriptor_of(now.pid, device)
    try:
        os.kill(now.worker, signal.SIGSTOP)
        waiting = subprocess.Popen(
            ["mkdir", str(a.mnt / "new")], stderr=subprocess.DEVNULL
        )
        wait_until(lambda: _sleeps_in_fuse(waiting.pid), "it waits for an answer")
        os.kill(now.pid, signal.SIGSTOP)  # so that no other worker starts meanwhile
        os.kill(now.worker, signal.SIGKILL)
        os.kill(now.pid, signal.SIGTERM)
        os.kill(now.pid, signal.SIGCONT)
        assert nodes.wait_gone(now.pid, 20)
        assert waiting.wait(20) != 0
    finally:
        unmounting.abort(now.connection)
        os.close(held)


def _descriptor_of(pid: int, number: int) -> int:
    """One of ours for the same open file (pidfd_getfd(2))."""
    pidfd = os.pidfd_open(pid)
    try:
        found = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if found < 0:
        pytest.skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    return int(found)


def _sleeps_in_fuse(pid: int) -> bool:
    return "request_wait_answer" in Path(f"/proc/{pid}/wchan").read_text()


def _ignore_errors(path: Path) -> None:
    try:
        path.write_text("x")
    except OSError:
        pass


def _text(node: Node) -> str:
    try:
        return (node.mnt / "file").read_text()
    except OSError:
        return ""
