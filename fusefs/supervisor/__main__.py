"""python -m fusefs.supervisor STORE MOUNTPOINT --config-fd N

The settings come through a descriptor, not argv: they may hold a join token. STORE
and MOUNTPOINT are for people who read `ps`, and for mountpoint.nodes.
"""

from __future__ import annotations

import logging
import os
import sys

from fusefs import config as configuration
from fusefs import logs, readiness
from fusefs.config import Config
from fusefs.mountpoint.exits import MOUNT_BUG, MOUNT_SYSTEM, CommandError
from fusefs.supervisor import preparing
from fusefs.supervisor.loop import Loop
from fusefs.supervisor.mounting import MountedDevice
from fusefs.supervisor.supervisor import STOP_SIGNALS, UPGRADE_SIGNAL, Supervisor

log = logging.getLogger("dfs.supervisor")


def main(argv: list[str]) -> int:
    """The whole life of a node: from an unlocked store to an unlocked store."""
    with os.fdopen(int(argv[argv.index("--config-fd") + 1]), "rb") as settings:
        config = configuration.decode(settings.read())
    os.umask(0o077)
    # From here on none ends us with a mount half made: they wait for the supervisor.
    loop = Loop()
    loop.on_signals((*STOP_SIGNALS, UPGRADE_SIGNAL), lambda: None)
    try:
        config, lock = preparing.prepare(config)
        send_output_to_log(config)
        device = _mount(config)
        if not config.foreground:
            # Not earlier: of an automount only the process group that was called to
            # mount it may touch the mountpoint (autofs(5)); all others wait for it.
            os.setsid()
    except CommandError as error:
        return _fail(str(error), error.code)
    except OSError as error:
        where = error.filename or config.store
        return _fail(f"{where}: {error.strerror or error}", MOUNT_SYSTEM)
    try:
        supervisor = Supervisor(config, device, lock, loop)
        code = supervisor.run()
        if supervisor.ended_cleanly:
            preparing.mark_clean(config)
        return code
    except Exception:
        log.exception("the supervisor has a bug")
        return _fail("the supervisor has a bug; see its log", MOUNT_BUG)
    finally:
        if device is not None:
            device.close()
        os.close(lock)


def _mount(config: Config) -> MountedDevice | None:
    if config.mountpoint and config.binding == "kernel":
        return MountedDevice(config)
    return None


def _fail(sentence: str, code: int) -> int:
    log.error(sentence)
    readiness.failed(sentence, code)
    return code


def send_output_to_log(config: Config) -> None:
    """In the background everything goes to STORE/run/supervisor.log."""
    os.chdir("/")
    preparing.raise_file_limit()
    if not config.foreground:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        out = os.open(config.run_dir / "supervisor.log", flags, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(out)
    logs.begin(config.log_level)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
