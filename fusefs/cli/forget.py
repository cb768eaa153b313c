"""dfs forget: remove a node from the cluster for good."""

from __future__ import annotations

from fusefs.cli import asking, settings

DESCRIPTION = """\
Removes a member that will not come back: nobody waits for it any more, deletes it has
not acknowledged may be forgotten, and its copies do not count. If it does come back it
is refused: unmount it, then `dfs mount DIR --join TOKEN` makes a new member of it. A
member that is connected is removed only with --force."""


def main(argv: list[str]) -> int:
    parser = settings.Parser("forget", DESCRIPTION)
    parser.add_argument("node", metavar="NODE", help="its name or id (dfs status)")
    parser.add_argument(
        "--force", action="store_true", help="even if it is connected now"
    )
    settings.add_store(parser)
    arguments = parser.parse_args(argv)
    words = [arguments.node, *(["force"] if arguments.force else [])]
    asking.node(settings.store_of(arguments), "forget", *words)
    print(f"{arguments.node} is no member any more")
    return 0
