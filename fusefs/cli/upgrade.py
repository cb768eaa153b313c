"""dfs upgrade: node and worker start again on the code as it is now."""

from __future__ import annotations

import os
import signal
import time

from fusefs.cli import asking, settings
from fusefs.mountpoint import nodes
from fusefs.mountpoint.exits import FAILED, NO_STORE, CommandError
from fusefs.supervisor import state

WAIT_S = 30.0
LOOK_EVERY_S = 0.02

DESCRIPTION = """\
Restarts the node and the worker of a running mount on the code that is on disk now.
Nothing is unmounted: open files stay open, programs wait for a moment."""


def main(argv: list[str]) -> int:
    """Returns 0 when both new processes do their work."""
    parser = settings.Parser("upgrade", DESCRIPTION)
    parser.add_argument("directory", nargs="?", metavar="DIR", help="the mountpoint")
    settings.add_store(parser)
    store = settings.store_of(parser.parse_args(argv))
    asking.check_store(store)
    running = {node.pid for node in nodes.on_store(str(store))}
    before = state.read(store)
    if before is None or before.pid not in running:
        raise CommandError(asking.not_running(store), NO_STORE)
    os.kill(before.pid, signal.SIGHUP)
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        now = state.read(store)
        if now is not None and state.is_successor(before, now):
            what = "worker and node" if before.mountpoint else "node"
            print(f"{what} restarted on {before.mountpoint or store}")
            return 0
        time.sleep(LOOK_EVERY_S)
    raise CommandError(
        f"the new processes are not ready after {WAIT_S:.0f} s; see {store}/run/*.log",
        FAILED,
    )
