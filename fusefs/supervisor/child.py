"""One supervised process: started, watched by descriptor, restarted with back-off."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from fusefs import readiness
from fusefs.processes import ZOMBIE, status

STEADY_S = 10.0
"""A child that lived this long is healthy: its next death starts at no delay."""
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
LOG_TAIL_BYTES = 4096
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def delay_s(quick_deaths: int) -> float:
    """How long to wait before the next start; the first one is at once.

    Args:
        quick_deaths: deaths in a row of processes younger than STEADY_S.
    """
    if quick_deaths <= 1:
        return 0.0
    return float(min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(quick_deaths - 2, 10)))


def _die_with(parent: int) -> None:
    """In the child before exec: a killed supervisor takes its children along, also one
    that was killed before this call (prctl(2))."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class Child:
    """A program that should be running. Not thread-safe: the supervisor's loop only."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path | None, keep: Sequence[int]
    ) -> None:
        """`keep`: descriptors it inherits; `log`: None writes to our stderr."""
        self.name = name
        self.command = list(command)
        self.keep = tuple(keep)
        self.is_ready = False
        self.facts: Mapping[str, readiness.Fact] = {}
        self.reason = ""
        self.trouble = ""
        """Why it ended, as it said itself, until the next one is ready."""
        self.code = 1
        self.starts = 0
        self.quick_deaths = 0
        self.last_status = 0
        self.pidfd = -1
        self.reports = -1
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Starts the program; `pidfd` and `reports` are then worth watching.

        Raises:
            OSError: there is no memory, process or descriptor for it now.
        """
        reports, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        process = None
        try:
            process = self._launch(theirs)
            self.pidfd = os.pidfd_open(process.pid)
        except BaseException:
            os.close(reports)
            if process is not None:
                process.kill()
                process.wait()
            raise
        finally:
            os.close(theirs)
        self._process, self.reports = process, reports
        self.is_ready, self.reason = False, ""
        self.starts += 1
        self._started_s = time.monotonic()

    def _launch(self, reports: int) -> subprocess.Popen[bytes]:
        out = self._open_log()
        try:
            return subprocess.Popen(
                [sys.executable, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[*self.keep, reports],
                env={**os.environ, readiness.VARIABLE: str(reports)},
                start_new_session=True,
                preexec_fn=partial(_die_with, os.getpid()),
            )
        finally:
            if out is not None:
                os.close(out)

    def _open_log(self) -> int | None:
        if self._log is None:
            return None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self._log, flags, 0o600)

    def read_reports(self) -> bool:
        """Takes in what the child said about itself; False: it will say no more."""
        try:
            data = os.read(self.reports, 65536)
        except BlockingIOError:
            return True
        for report in readiness.parse(data):
            if report.ready is not None:
                self.is_ready, self.facts, self.trouble = True, report.ready, ""
            else:
                self.reason, self.code = report.failed, report.code
        return bool(data)

    def ended(self) -> int:
        """Reaps the child and returns its exit code (negative: the signal)."""
        assert self._process is not None
        self.read_reports()
        self.last_status = self._process.wait()
        self.trouble = self.reason
        os.close(self.pidfd)
        self._let_go()
        return self.last_status

    @property
    def is_half_dead(self) -> bool:
        """Killed, but a thread of it is still held in the kernel.

        A notification that waits for a directory's lock cannot be interrupted, and
        whoever has the lock may wait for an answer that only a successor can give.
        """
        process = self._process
        return process is not None and status(process.pid)[:1] == [ZOMBIE]

    def abandon(self) -> tuple[int, subprocess.Popen[bytes]]:
        """Counts a half dead child as ended; the caller reaps what is left of it
        when the descriptor gets readable, and closes that."""
        assert self._process is not None
        remains = self.pidfd, self._process
        self.last_status = -signal.SIGKILL
        self._let_go()
        return remains

    def _let_go(self) -> None:
        os.close(self.reports)
        self.pidfd = self.reports = -1
        self._process = None
        self.is_ready = False
        quick = time.monotonic() - self._started_s < STEADY_S
        self.quick_deaths = self.quick_deaths + 1 if quick else 0

    def kill(self, number: int) -> None:
        """Sends a signal if it runs."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass

    def why(self) -> str:
        """The child's own reason for its end, else the last line of its log."""
        if self.reason or self._log is None:
            return self.reason or "see the messages above"
        lines = [line.strip(" |+-") for line in tail(self._log).splitlines()]
        return next((line for line in reversed(lines) if line), "it said nothing")


def tail(path: Path) -> str:
    """The last few kilobytes of a log, without blank lines at the end."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").rstrip()
    except OSError:
        return ""
