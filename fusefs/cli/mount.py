"""dfs mount DIR: checks, starts, waits until the mount answers, tells about it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from fusefs import readiness
from fusefs.cli import launching, settings
from fusefs.cli.status import scarce, with_advice
from fusefs.config import Config
from fusefs.mountpoint import checks, nodes, table, unmounting
from fusefs.mountpoint.exits import MOUNT_FAILURE, CommandError
from fusefs.nodelink import control
from fusefs.plain import plain

ANSWER_S = 20.0
"""Ready but silent for so long: the mount is reported as failed."""
SYNC_S = 10.0
"""A new member's first `ls` should show the tree; a large one may take longer."""
QUIET_S, ENDING_S = 1.0, 60.0
"""For the node of the last mount to write what is left; nothing is said of it at
first."""
REACH_S = 2.0
"""For a member to be reached by a node that has a tree already."""

DESCRIPTION = """\
Mounts the file system on DIR and starts this machine's node. The first mount makes
a cluster of its own; --join makes this node a member of another's cluster.

-o takes the words that mount(8) and FUSE know (ro, noatime, allow_other, ...) and
every option below as key=value. Options come from the command line, then DFS_*
variables, then a TOML file, then the defaults."""


def main(argv: list[str]) -> int:
    """Returns 0 only when the mount answers."""
    parser = settings.Parser("mount", DESCRIPTION)
    parser.add_argument("places", nargs="+", metavar="DIR", help="the mountpoint")
    parser.add_argument(
        "-o", dest="options", action="append", metavar="OPT,...", help="mount options"
    )
    parser.add_argument("-f", "--foreground", action="store_true")
    parser.add_argument("--helper", action="store_true", help=argparse.SUPPRESS)
    for ignored in ("-v", "-n", "-s"):
        parser.add_argument(ignored, action="store_true", help=argparse.SUPPRESS)
    settings.add_all(parser)
    arguments = parser.parse_args(argv)
    if len(arguments.places) > (2 if arguments.helper else 1):
        parser.error("one mountpoint, please")
    source = _take_source(arguments) if arguments.helper else ""
    config = settings.resolve(
        arguments,
        source=source,
        mountpoint=table.canonical(arguments.places[-1]),
        foreground=arguments.foreground,
    ).config
    wait_for_last_node("mount", config)
    checks.check_all(config)
    warn_of_full_disk("mount", config)
    if config.foreground:
        launching.replace_process(config)
    is_new = not (Path(config.store) / "format").exists()
    facts = launching.start(config)
    _wait_until_it_answers(config)
    joined = _wait_for_first_sync(config, is_new) if config.join else ""
    if not arguments.helper:
        print(_announcement(config, facts))
    if joined:
        print(f"dfs mount: {plain(joined)}", file=sys.stderr)
    return 0


def wait_for_last_node(verb: str, config: Config) -> None:
    """umount(8) does not wait for it, and who mounts again at once means to."""
    for node in nodes.on_store(config.store):
        if nodes.is_ending(node) and not nodes.wait_gone(node.pid, QUIET_S):
            said = f"waiting for the node of the last mount (process {node.pid}) to end"
            print(f"dfs {verb}: {said}", file=sys.stderr)
            nodes.wait_gone(node.pid, ENDING_S)


def warn_of_full_disk(verb: str, config: Config) -> None:
    """Nothing keeps a node from serving what it has, so it is not refused."""
    place = Path(config.store)
    while not place.exists() and place != place.parent:
        place = place.parent
    disk = os.statvfs(place)
    if said := scarce(disk.f_bavail * disk.f_frsize, config.min_free):
        print(f"dfs {verb}: the disk of {config.store} has {said}", file=sys.stderr)


def _take_source(arguments: argparse.Namespace) -> str:
    """In fstab the source is the store if it is a path, else only a name."""
    source = str(arguments.places[0])
    if source.startswith("/"):
        arguments.store = source
    return source


def _wait_until_it_answers(config: Config) -> None:
    said = unmounting.answer(config.mountpoint, ANSWER_S)
    if isinstance(said, os.statvfs_result) and unmounting.is_mounted(config.mountpoint):
        return
    reason = said.strerror if isinstance(said, OSError) else "it does not answer"
    raise CommandError(
        f"mounted on {config.mountpoint}, but {reason}; logs: {config.run_dir}/*.log",
        MOUNT_FAILURE,
    )


def _wait_for_first_sync(config: Config, is_new: bool) -> str:
    """Gives a new member a moment to have the tree; says what is still missing. One
    that was a member before may join anew, or be alone with the tree it has."""
    began_s = time.monotonic()
    sync = "alone"
    while (waited_s := time.monotonic() - began_s) < SYNC_S:
        if sync == "alone" and not is_new and waited_s > REACH_S:
            break
        sync = _sync(config, "digest") or sync
        if sync == "in sync":
            return ""
        time.sleep(0.02)
    if sync == "alone":
        if "--join" in (refused := _sync(config, "status")):
            return with_advice(refused, config.mountpoint)
        from netnode.identity import decode_token

        addresses = ", ".join(decode_token(config.join).addresses)
        return (
            f"no member could be reached yet (the token has {addresses}); the node "
            "goes on trying (dfs status tells when)"
        )
    return f"the tree is still arriving: {sync}"


def _sync(config: Config, what: str) -> str:
    """How far the node is, in its answer to this; empty when it gives none."""
    try:
        answer = control.ask(config.run_dir / "node.sock", what, timeout_s=1)
    except (control.NotRunning, control.Refused, TimeoutError):
        return ""
    return str(answer.get("sync")) if isinstance(answer, dict) else ""


def _announcement(config: Config, facts: dict[str, readiness.Fact]) -> str:
    dfs = shlex.quote(_own_name())
    port = facts.get("port", config.port)
    return "\n".join(
        [
            f"mounted on {config.mountpoint} as node {config.name}, port {port}",
            f"store:   {config.store}",
            f"invite:  {dfs} invite --store {shlex.quote(config.store)}",
            f"unmount: {dfs} umount {shlex.quote(config.mountpoint)}",
        ]
    )


def _own_name() -> str:
    return sys.argv[0] if os.path.basename(sys.argv[0]) == "dfs" else "dfs"
