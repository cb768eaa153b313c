"""dfs invite: a token with which another machine can join."""

from __future__ import annotations

import sys

from fusefs.cli import asking, settings

DESCRIPTION = """\
Prints one join token, for `./mount.sh DIR --join TOKEN` on another machine. Whoever
has it is a member of the cluster with all rights: hand it over like a password."""


def main(argv: list[str]) -> int:
    """The token is the only line on standard output."""
    parser = settings.Parser("invite", DESCRIPTION)
    parser.add_argument("directory", nargs="?", metavar="DIR", help="the mountpoint")
    settings.add_store(parser)
    store = settings.store_of(parser.parse_args(argv))
    answer = asking.node(store, "invite")
    token = answer["token"] if isinstance(answer, dict) else answer
    print(token)
    if sys.stdout.isatty():
        print("keep it secret: it gives full access", file=sys.stderr)
    return 0
