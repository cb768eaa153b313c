"""dfs apply: let a mass removal by another node happen."""

from __future__ import annotations

from fusefs.cli import asking, settings

DESCRIPTION = """\
Changes of other nodes that would remove a large part of the tree at once are held back
(`dfs status` says so; the share is --mass-delete, in percent). This lets them happen on
this node."""


def main(argv: list[str]) -> int:
    parser = settings.Parser("apply", DESCRIPTION)
    settings.add_store(parser)
    arguments = parser.parse_args(argv)
    held = asking.node(settings.store_of(arguments), "apply")
    assert isinstance(held, dict)
    print(f"{held['removals']:,} entries or more: they are removed here now")
    return 0
