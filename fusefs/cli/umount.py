"""dfs umount DIR: unmounts and waits until everything is written and stopped."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from pathlib import Path

import msgspec

from fusefs.cli import settings
from fusefs.mountpoint import nodes, table, unmounting
from fusefs.mountpoint.exits import MOUNT_FAILURE, CommandError
from fusefs.mountpoint.nodes import Running
from fusefs.nodelink import control
from fusefs.plain import plain
from fusefs.supervisor import state

ASK_S = 2.0
"""For what only this machine has. A stuck node holds the command up for so long; one on
a crowded machine was not heard in half a second."""
WAIT_S = 90.0
"""For the node to write what is dirty and to end."""
GONE_S = 2.0
"""A node that still runs then has its mount in another place, too."""
FORCED_S = 5.0
"""The same when it is ended by force: then its worker, which may be what is stuck, is
killed."""

DESCRIPTION = """\
Unmounts DIR, waits until all data is on disk and the node has stopped. The same as
umount or fusermount -u, which do not wait. A node without a mount (dfs node) is ended
by the name of its store in place of DIR."""


def main(argv: list[str]) -> int:
    """Returns 0 when the mount is gone and its node has ended."""
    parser = settings.Parser("umount", DESCRIPTION)
    parser.add_argument("directory", metavar="DIR", help="the mountpoint, or a store")
    parser.add_argument(
        "-l",
        "-z",
        "--lazy",
        action="store_true",
        help="detach now, end when the last program has closed its files",
    )
    parser.add_argument(
        "-f",
        "--force",
        action="store_true",
        help="end it even if it is stuck: programs using it get an error",
    )
    arguments = parser.parse_args(argv)
    where = table.canonical(arguments.directory)
    node = nodes.at_mountpoint(where)
    elsewhere = ""
    if unmounting.is_mounted(where) or node is not None:
        stays = _stays_behind(node)
        mount = table.find(where)
        if mount is not None:
            _unmount(where, mount, lazy=arguments.lazy, force=arguments.force)
            elsewhere = "" if arguments.force else _elsewhere(mount)
        elif node is not None:  # it mounts in a moment, or ends already
            nodes.end(node)
    elif (node := nodes.without_mount(where)) is not None:
        stays = _stays_behind(node)
        nodes.end(node)
    else:
        raise _failure(f"{where} is not a dfs mount")
    if elsewhere and not arguments.lazy and not _ends_all_the_same(node):
        print(f"dfs umount: {where} is unmounted; {elsewhere}", file=sys.stderr)
        return 0
    if stays:
        print(f"dfs umount: {stays}", file=sys.stderr)
    if node is None or arguments.lazy:
        return 0
    if arguments.force and not nodes.wait_gone(node.pid, FORCED_S):
        _kill_worker(node)
    if not nodes.wait_gone(node.pid, WAIT_S):
        raise _failure(
            f"unmounted, but the node (process {node.pid}) has not ended after "
            f"{WAIT_S:.0f} s; see {node.store}/run/supervisor.log"
        )
    return 0


def _ends_all_the_same(node: Running | None) -> bool:
    """Another mount, perhaps one that is not seen from here, may have got the number of
    the connection by now."""
    return node is not None and nodes.wait_gone(node.pid, GONE_S)


def _stays_behind(node: Running | None) -> str:
    """What other members do not have yet, as a sentence. A node that does not say is
    not waited for."""
    if node is None:
        return ""
    socket_path = Path(node.store) / "run" / "node.sock"
    try:
        status = control.ask(socket_path, "status", timeout_s=ASK_S)
    except (control.NotRunning, control.Refused, TimeoutError, msgspec.DecodeError):
        return ""
    if not isinstance(status, dict) or not status.get("peers"):
        return ""
    chunks = status.get("to_replicate")
    if not chunks:
        return ""
    return (
        f"{chunks:,} chunks may be only on this machine; they go to the peers when it "
        "is mounted again"
    )


def _elsewhere(gone: table.Mount) -> str:
    """Why the node goes on, as the other half of a sentence; empty when it ends."""
    mounts = table.of_connection(gone.connection)
    if left := [m for m in mounts if m.source == gone.source]:
        places = ", ".join(os.fsdecode(mount.where) for mount in left)
        return f"the node goes on, for it is mounted on {places}, too"
    if not mounts and unmounting.is_connected(gone.connection):
        return (
            "the node goes on, for another mount namespace (a container?) has it; the "
            "same command once more ends it"
        )
    return ""


def _kill_worker(node: Running) -> None:
    """What it had not stored is in its journal, for the next mount."""
    now = state.read(Path(node.store))
    if now is not None and nodes.is_child(now.worker, node):
        os.kill(now.worker, signal.SIGKILL)


def _unmount(where: str, mount: table.Mount, *, lazy: bool, force: bool) -> None:
    if not mount.is_ours:
        raise _failure(
            f"a {mount.fs_type} is mounted over the dfs mount on {where}; unmount that "
            f"first with: umount {shlex.quote(where)}"
        )
    if force:
        unmounting.abort(mount.connection)
        for other in table.of_connection(mount.connection):
            if other.where != mount.where:
                unmounting.detach(os.fsdecode(other.where))
    try:
        unmounting.unmount(where, lazy=lazy or force)
    except OSError as error:
        if error.errno == errno.EINVAL or not unmounting.is_mounted(where):
            return
        raise _failure(_reason(where, error)) from None


def _reason(where: str, error: OSError) -> str:
    if error.errno != errno.EBUSY:
        return f"{where}: {error.strerror}"
    using = [f"{plain(name)} ({pid})" for pid, name in unmounting.users(where)]
    below = [plain(os.fsdecode(mount.where)) for mount in table.below(where)]
    if using:
        what = f", used by {', '.join(using)}; end them"
    elif below:
        what = f": mounted in it is {', '.join(below)}; unmount that first"
    else:
        what = " with no process that we see (a loop device, an export?); end that"
    return (
        f"{where} is busy{what}, or detach it with: dfs umount -l {shlex.quote(where)}"
    )


def _failure(message: str) -> CommandError:
    return CommandError(message, MOUNT_FAILURE)
