"""Starting a supervisor, and waiting until it says ready or why not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, NoReturn

import fusefs
from fusefs import config as configuration
from fusefs import readiness
from fusefs.config import Config
from fusefs.mountpoint.exits import FAILED, MOUNT_SYSTEM, CommandError
from fusefs.mountpoint.nodes import MODULE, NO_MOUNTPOINT

STOP_S = 20.0


def start(config: Config) -> dict[str, readiness.Fact]:
    """Starts a node in the background; returns its facts when it does its work.

    Raises:
        CommandError: it gave up; the reason, and where its log is.
    """
    reports, theirs = os.pipe2(os.O_CLOEXEC)
    settings = settings_descriptor(config)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command(config, settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[settings, theirs],
            env={**environment(), readiness.VARIABLE: str(theirs)},
        )
        os.close(theirs)
        os.close(settings)
        # As Ctrl-C: who gives up waiting for us does not want the mount any more.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with os.fdopen(reports, "rb") as pipe:
                report = wait_for_report(pipe)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            _wait(process)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        if report is not None and report.ready is not None:
            return report.ready
        raise _failure(config, report, _wait(process), output)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """Its exit code; None when it takes its time, as over a slow disk."""
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        return None


def command(config: Config, settings: int) -> list[str]:
    """The supervisor's command line, with what `ps` should show."""
    where = config.mountpoint or NO_MOUNTPOINT
    words = [MODULE, config.store, where, "--config-fd", str(settings)]
    return [sys.executable, "-m", *words]


def environment() -> dict[str, str]:
    """Ours, such that children find this code, and no other, whatever the directory:
    `python -m` looks for modules there first, and it may be anybody's."""
    root = str(Path(fusefs.__file__).parent.parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONSAFEPATH": "1",
    }


def settings_descriptor(config: Config) -> int:
    """The settings in anonymous memory: argv would show a token to everybody."""
    descriptor = os.memfd_create("dfs-settings")
    os.write(descriptor, configuration.encode(config))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def replace_process(config: Config) -> NoReturn:
    """Becomes the supervisor, in the foreground."""
    settings = settings_descriptor(config)
    os.set_inheritable(settings, True)
    os.execve(sys.executable, command(config, settings), environment())


def wait_for_report(pipe: IO[bytes]) -> readiness.Report | None:
    """The first report, or None when the writer is gone without one."""
    line = pipe.readline()
    reports = readiness.parse(line)
    return reports[0] if reports else None


def _failure(
    config: Config,
    report: readiness.Report | None,
    code: int | None,
    output: IO[bytes],
) -> CommandError:
    if report is not None:
        return CommandError(f"{report.failed}{_where_logs_are(config)}", report.code)
    output.seek(0)
    said = output.read().decode(errors="replace").strip()
    reason = f"the supervisor ended with status {code}"
    if code is None:
        reason = "the supervisor says nothing, and does not end"
    elif code < 0:
        reason = f"the supervisor was ended by {signal.Signals(-code).name}"
    return CommandError(
        f"{reason}\n{said}{_where_logs_are(config)}".rstrip(),
        MOUNT_SYSTEM if config.mountpoint else FAILED,
    )


def _where_logs_are(config: Config) -> str:
    """Nothing when they are empty: many a failure comes before the first line."""
    filled = any(log.stat().st_size for log in config.run_dir.glob("*.log"))
    return f"\nlogs: {config.run_dir}/*.log" if filled else ""
