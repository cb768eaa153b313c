"""A kernel mount for tests: this process keeps the descriptor, a child serves it.

The finaliser aborts the connection, so that a bug never hangs the run. The tests'
own process may touch the mountpoint: it serves nothing.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

from fusefs.bindings.kernel import mounting

ROOT = Path(__file__).parents[2]
CONNECTIONS = Path("/sys/fs/fuse/connections")


def connection_of(mountpoint: Path) -> str:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[4] == str(mountpoint):
            return fields[2].split(":")[1]
    raise LookupError(mountpoint)


class KernelMount:
    """One mount and the process that serves it now."""

    def __init__(self, mountpoint: Path, *options: str, state: bool = False) -> None:
        self.path = mountpoint
        mountpoint.mkdir()
        self.fd = mounting.mount(str(mountpoint), fsname="dfs@test")
        self.connection = connection_of(mountpoint)
        self.options = list(options)
        if state:
            self.options += ["--state", str(mountpoint.parent / "fuse.json")]
        self.child: subprocess.Popen[str] | None = None
        self.serve()

    def serve(self, *options: str) -> None:
        """Starts a process that serves; returns when it answers."""
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.lib.kernel_child", "--fd", str(self.fd),
             *self.options, *options],
            cwd=ROOT, pass_fds=(self.fd,), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._answer() == "ready"

    def _answer(self) -> object:
        assert self.child is not None and self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"the child ended with {self.child.wait(5)}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]

    def do(self, verb: str, *arguments: object) -> object:
        """Has the child do something and returns what it says."""
        assert self.child is not None and self.child.stdin is not None
        self.child.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self.child.stdin.flush()
        return self._answer()

    def requests(self) -> dict[str, int]:
        found = self.do("statistics")
        assert isinstance(found, dict)
        return found

    def kill(self) -> None:
        """kill -9 of the serving process."""
        assert self.child is not None
        self.child.kill()
        self.child.wait()

    def close(self) -> None:
        (CONNECTIONS / self.connection / "abort").write_text("1")
        subprocess.run(["umount", "-l", str(self.path)], check=False)
        os.close(self.fd)
        if self.child is not None:
            self.child.kill()
            self.child.wait(10)


def ensure_control() -> None:
    """The FUSE control file system, by which connections are aborted."""
    if not any(CONNECTIONS.iterdir()):
        command = ["mount", "-t", "fusectl", "none", str(CONNECTIONS)]
        subprocess.run(command, check=False)  # another test may have been faster
    assert os.path.ismount(CONNECTIONS)


_PROGRAM = """
import os, sys
for line in sys.stdin:
    try:
        print(repr(eval(line)), flush=True)
    except OSError as problem:
        print(repr(problem), flush=True)
"""


class Program:
    """Another process that uses the mount, an expression at a time.

    A test that starts processes must not have files of the mount open itself: the
    new process closes its copies, which waits while nobody serves.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, expression: str) -> None:
        """Starts evaluating; `os` and `sys` are there."""
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def answer(self, timeout_s: float = 30) -> str:
        """repr() of the value, or of the OSError."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        assert ready, "no answer"
        return self.process.stdout.readline().rstrip("\n")

    def run(self, expression: str) -> str:
        self.ask(expression)
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
