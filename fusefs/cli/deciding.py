"""What `dfs apply` and `dfs reject` share: a decision about a held mass removal."""

from __future__ import annotations

from fusefs.cli import asking, settings

_HELD = """\
Changes of other nodes that would remove a large part of the tree at once are held back
(`dfs status` says so; the share is --mass-delete, in percent). """


def decide(verb: str, does: str, outcome: str, argv: list[str]) -> int:
    """Tells the node, and the user what happens to what was held. `does`: what the
    command is for, after what all of them say; `outcome`: said of the entries."""
    parser = settings.Parser(verb, _HELD + does)
    parser.add_argument("directory", nargs="?", metavar="DIR", help="the mountpoint")
    settings.add_store(parser)
    arguments = parser.parse_args(argv)
    held = asking.node(settings.store_of(arguments), verb)
    assert isinstance(held, dict)
    print(f"{held['removals']:,} entries or more: {outcome}")
    return 0
