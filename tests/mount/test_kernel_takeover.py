"""A worker that dies and another that takes over the live mount: nobody notices."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.kernel_mount import KernelMount, Program, ensure_control

pytestmark = pytest.mark.mount


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[KernelMount]:
    ensure_control()
    made = KernelMount(tmp_path / "mnt", state=True)
    yield made
    made.close()


@pytest.fixture
def program(mount: KernelMount) -> Iterator[Program]:
    """A process in the mount's directory d."""
    made = Program()
    made.run(f"os.chdir({str(mount.path / 'd')!r})")
    yield made
    made.close()


def test_open_file_and_names_survive_the_worker(
    mount: KernelMount, program: Program
) -> None:
    program.run("globals().update(fd=os.open('f0001', os.O_RDWR))")
    assert program.run("os.read(fd, 5)") == "b'f0001'"
    mount.kill()
    mount.serve()
    assert program.run("os.read(fd, 5)") == "b'f0001'"
    assert program.run("os.write(fd, b'after')") == "5"
    assert program.run("os.fsync(fd)") == "None"
    assert program.run("os.fstat(fd).st_size") == "5120"
    assert program.run("os.pread(fd, 5, 10)") == "b'after'"
    assert program.run("os.close(fd)") == "None"
    assert program.run("len(os.listdir('.'))") == "10"
    seen = mount.do("seen")
    assert isinstance(seen, dict)
    assert seen["adopted"]


@pytest.mark.parametrize(
    ("verb", "expression", "expected"),
    [
        ("lookup", "os.stat('f0002').st_size", "5120"),
        ("getattr", "os.stat('.').st_nlink", "2"),
        ("read", "open('f0002').read(5)", "'f0002'"),
        ("mkdir", "os.mkdir('made')", "None"),
        ("setattr", "os.chmod('f0002', 0o600)", "None"),
        ("flush", "os.close(os.open('f0002', 1))", "None"),
    ],
)
def test_request_left_unanswered_is_answered_by_the_next(
    mount: KernelMount, program: Program, verb: str, expression: str, expected: str
) -> None:
    if verb == "getattr":
        mount.do("remote_chmod", "d", 0o700)
    mount.do("hold", verb)
    program.ask(expression)
    assert mount.do("waiting", verb)
    mount.kill()
    mount.serve()
    assert program.answer() == expected


@pytest.mark.parametrize(
    ("verb", "done", "expression"),
    [
        ("mkdir", "mkdir", "os.mkdir('../left')"),
        ("symlink", "symlink", "os.symlink('to', '../left')"),
        ("unlink", "gone", "os.unlink('f0007')"),
        ("create", "create", "os.close(os.open('../left', 0o301, 0o644))"),
    ],
)
def test_request_done_but_unanswered_is_no_error(
    mount: KernelMount, program: Program, verb: str, done: str, expression: str
) -> None:
    """What it did, and had noted, is there (or gone) when it is asked again."""
    mount.do("hold", verb)
    program.ask(expression)
    assert mount.do("waiting", verb)
    mount.do("hold", "reply")
    mount.do("release", verb)
    assert mount.do("waiting", "reply")
    mount.kill()
    mount.serve("--done", done)
    assert program.answer() == "None"


def test_request_that_another_did_first_still_fails(
    mount: KernelMount, program: Program
) -> None:
    """Only a repeated request may find its work done."""
    mount.kill()
    mount.serve("--done", "mkdir")
    assert "FileExistsError" in program.run("os.mkdir('../left')")


def test_caches_of_what_the_dead_worker_lost_are_dropped(
    mount: KernelMount, program: Program
) -> None:
    """What was written but not stored is gone: the kernel must not show it."""
    program.run("open('f0003', 'w').write('never stored')")
    assert program.run("open('f0003').read()") == "'never stored'"
    program.run("os.mkdir('unpublished')")
    program.run("os.listdir('.')")
    mount.kill()
    mount.serve()
    assert mount.do("settle")
    assert program.run("open('f0003').read(5)") == "'f0003'"
    assert program.run("os.stat('f0003').st_size") == "5120"
    assert program.run("os.path.exists('unpublished')") == "False"
    assert program.run("len(os.listdir('.'))") == "10"


def test_worker_that_makes_way_leaves_no_request_behind(mount: KernelMount) -> None:
    script = (
        "import os, sys\n"
        "n = 0\n"
        "while n < 11 or not os.path.exists(sys.argv[2]):\n"
        "    os.utime(sys.argv[1]); os.stat(sys.argv[1] + '/f0001')\n"
        "    f = os.open(sys.argv[1] + '/f0002', os.O_RDWR)\n"
        "    os.pwrite(f, b'x', n % 99); os.fsync(f); os.close(f)\n"
        "    n += 1\n"
        "print(n)\n"
    )
    stop = mount.path.parent / "stop"
    busy = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(mount.path / "d"), str(stop)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for _ in range(5):
        time.sleep(0.2)
        assert mount.child is not None
        mount.child.send_signal(signal.SIGTERM)
        assert mount.child.wait(30) == 0
        mount.serve()
    stop.touch()
    for process in busy:
        out, err = process.communicate(timeout=60)
        assert err == ""
        assert int(out) > 10
    assert mount.do("settle")


def test_killed_over_and_over_nobody_hangs(mount: KernelMount) -> None:
    stop = mount.path.parent / "stop"
    script = (
        "import os, sys\n"
        "n = 0\n"
        "while n < 11 or not os.path.exists(sys.argv[2]):\n"
        "    os.listdir(sys.argv[1]); os.stat(sys.argv[1] + '/f0004')\n"
        "    assert open(sys.argv[1] + '/f0005').read(5) == 'f0005'\n"
        "    n += 1\n"
        "print(n)\n"
    )
    busy = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(mount.path / "d"), str(stop)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for _ in range(8):
        time.sleep(0.1)
        mount.kill()
        mount.serve()
    stop.touch()
    for process in busy:
        out, err = process.communicate(timeout=60)
        assert err == ""
        assert int(out) > 10
