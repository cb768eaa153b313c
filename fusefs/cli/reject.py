"""dfs reject: undo a mass removal by another node."""

from __future__ import annotations

from fusefs.cli.deciding import decide

DOES = """\
This brings what they
removed back, on every node, once this node has caught up."""


def main(argv: list[str]) -> int:
    return decide("reject", DOES, "they come back on every node", argv)
