"""dfs unpin: what `dfs pin` keeps is cache again."""

from __future__ import annotations

from fusefs.cli import keeping, settings

DESCRIPTION = """\
Ends what `dfs pin` began. What is here stays as cache, or as one of the copies that the
cluster keeps; `dfs evict` gives up the former. --gone ends the pins of trees that were
removed."""


def main(argv: list[str]) -> int:
    parser = settings.Parser("unpin", DESCRIPTION)
    parser.add_argument("path", nargs="*", metavar="PATH")
    parser.add_argument("--gone", action="store_true", help="those not in the tree")
    settings.add_store(parser)
    arguments = parser.parse_args(argv)
    if not arguments.path and not arguments.gone:
        parser.error("unpin needs PATH or --gone")
    store = keeping.store_of(arguments)
    for path in (*arguments.path, *([""] if arguments.gone else [])):
        trees = keeping.pins(keeping.ask(store, "unpin", path))
    print(keeping.page(trees))
    return 0
