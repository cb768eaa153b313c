"""dfs conflicts: list what lost against a concurrent change, and settle it."""

from __future__ import annotations

import json
import os
from typing import Any

from fusefs.cli import asking, places, settings
from fusefs.mountpoint.exits import CommandError
from fusefs.plain import plain

DESCRIPTION = """\
Without more, lists the files that changed on two nodes at once: the later version has
the name, each other one stands beside it as NAME.conflict-NODE-TIME. They are ordinary
files: cat, mv and rm settle a conflict too.

  dfs conflicts list PATH

lists those of a file, or in a directory and below.

  dfs conflicts resolve PATH --keep ours|theirs|both

settles those of one file: keep the version this node wrote, the other one, or both
(the loser stays as a file of its own)."""


def main(argv: list[str]) -> int:
    parser = settings.Parser("conflicts", DESCRIPTION)
    parser.add_argument("action", nargs="?", choices=("list", "resolve"))
    parser.add_argument("path", nargs="?", metavar="PATH")
    parser.add_argument("--keep", choices=("ours", "theirs", "both"))
    parser.add_argument("--json", action="store_true", help="for programs")
    settings.add_store(parser)
    arguments = parser.parse_args(argv)
    store = places.store_of(arguments, arguments.path or "")
    path = places.inside(store, arguments.path) if arguments.path else ""
    if arguments.action == "resolve":
        if not path or not arguments.keep:
            parser.error("resolve needs PATH and --keep ours|theirs|both")
        answer = asking.node(store, "resolve", path, arguments.keep)
    else:
        answer = asking.node(store, "conflicts")
    if not isinstance(answer, list):
        raise CommandError(f"the node answered {answer!r}", 1)
    inside = os.path.normpath("/" + path).lstrip("/")
    if arguments.action == "list" and inside:
        answer = [c for c in answer if _is_of_or_below(c, inside)]
    if arguments.json:
        print(json.dumps(answer))
    else:
        _print(answer, "settled" if arguments.action == "resolve" else "lost")
    return 0


def _is_of_or_below(conflict: dict[str, Any], path: str) -> bool:
    shown = conflict["path"], conflict["winner"]
    return path in shown or shown[0].startswith(path + "/")


def _print(conflicts: list[Any], verb: str) -> None:
    if not conflicts:
        print("no conflicts")
    for c in conflicts:
        who = "this node" if c["ours"] else plain(c["node"])
        print(
            f"{plain(c['path'])}\n    {verb}: {c['size_bytes']:,} bytes by {who},"
            f" {c['time']}; {plain(c['winner'])} has {c['winner_size_bytes']:,} bytes"
        )
