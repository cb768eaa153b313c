"""dfs apply: let a mass removal by another node happen."""

from __future__ import annotations

from fusefs.cli.deciding import decide

DOES = """\
This lets them happen on
this node."""


def main(argv: list[str]) -> int:
    return decide("apply", DOES, "they are removed here now", argv)
