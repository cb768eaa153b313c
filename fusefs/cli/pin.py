"""dfs pin: keep a tree on this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fusefs.cli import keeping, settings
from fusefs.cli.progress import Progress

DESCRIPTION = """\
Keeps trees (or files) on this machine, whoever else keeps them: what is not here yet is
fetched, what is written there from now on, too, and none of it is evicted. For a laptop
before it goes offline, or, with the mountpoint as PATH, for a machine that is to have
everything. Without PATH it lists what is kept and how much of it is not here yet."""
LOOK_EVERY_S = 0.5


def main(argv: list[str]) -> int:
    parser = settings.Parser("pin", DESCRIPTION)
    parser.add_argument("path", nargs="*", metavar="PATH")
    parser.add_argument(
        "--wait", action="store_true", help="return when everything is here"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    settings.add_store(parser)
    arguments = parser.parse_args(argv)
    store = keeping.store_of(arguments)
    for path in arguments.path or [""]:
        trees = keeping.pins(keeping.ask(store, "pin", path))
    if arguments.wait:
        trees = _wait(store, trees)
    print(json.dumps(trees) if arguments.json else keeping.page(trees))
    return 0


def _wait(store: Path, trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    progress = Progress()
    try:
        while not all(tree["looked"] and not tree["missing_chunks"] for tree in trees):
            progress("chunks to fetch:", sum(t["missing_chunks"] for t in trees))
            time.sleep(LOOK_EVERY_S)
            trees = keeping.pins(keeping.ask(store, "pin"))
    finally:
        progress.clear()
    return trees
