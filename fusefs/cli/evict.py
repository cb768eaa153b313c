"""dfs evict: give up copies of a tree that only this machine has use for."""

from __future__ import annotations

from fusefs.cli import keeping, settings
from fusefs.cli.status import size

DESCRIPTION = """\
Makes room: gives up what is cache of these trees or files, because others keep it. What
this node keeps for the cluster stays, and so does what is pinned or has not come to
others yet. What was given up is fetched again when it is read."""


def main(argv: list[str]) -> int:
    parser = settings.Parser("evict", DESCRIPTION)
    parser.add_argument("path", nargs="+", metavar="PATH")
    settings.add_store(parser)
    arguments = parser.parse_args(argv)
    store = keeping.store_of(arguments)
    freed = sum(
        keeping.ask(store, "evict", path)["freed_bytes"] for path in arguments.path
    )
    print(f"{size(freed)} of cache given up")
    return 0
