"""dfs reject: undo a mass removal by another node."""

from __future__ import annotations

from fusefs.cli import asking, settings

DESCRIPTION = """\
Changes of other nodes that would remove a large part of the tree at once are held back
(`dfs status` says so; the share is --mass-delete, in percent). This brings what they
removed back, on every node, once this node has caught up."""


def main(argv: list[str]) -> int:
    parser = settings.Parser("reject", DESCRIPTION)
    settings.add_store(parser)
    arguments = parser.parse_args(argv)
    held = asking.node(settings.store_of(arguments), "reject")
    assert isinstance(held, dict)
    print(f"{held['removals']:,} entries or more: they come back on every node")
    return 0
