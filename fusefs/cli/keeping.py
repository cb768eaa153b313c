"""What `dfs pin`, `dfs unpin` and `dfs evict` share: asking the node about trees."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from fusefs.cli import asking, places
from fusefs.cli.status import size
from fusefs.errors import ConfigError
from fusefs.mountpoint.exits import FAILED, CommandError
from fusefs.plain import plain

ANSWER_S = 300.0
"""A large tree is gone through for it."""


def store_of(arguments: argparse.Namespace) -> Path:
    """The store of the node whose mount the first path is in, if none is named.

    Raises:
        ConfigError: a path is empty, as an unset variable of a script.
    """
    if "" in arguments.path:
        raise ConfigError("the path is an empty word; give one in the tree")
    first = arguments.path[0] if arguments.path else ""
    return places.store_of(arguments, _followed(first))


def ask(store: Path, what: str, path: str = "") -> Any:
    """The node's answer about a path, or about none."""
    words = [places.inside(store, _followed(path))] if path else []
    return asking.node(store, what, *words, timeout_s=ANSWER_S)


def _followed(path: str) -> str:
    """Without links; of a node without a mount it is a path from the tree's root."""
    return os.path.realpath(path) if os.path.exists(path) else path


def pins(answer: object) -> list[dict[str, Any]]:
    if not isinstance(answer, list):
        raise CommandError(f"the node answered {answer!r}", FAILED)
    return answer


def page(trees: list[dict[str, Any]]) -> str:
    """A line for each tree that is kept."""
    return "\n".join(_line(tree) for tree in trees) or "nothing is pinned"


def _line(tree: dict[str, Any]) -> str:
    path = tree["path"]
    where = "a tree that is gone (dfs unpin --gone)" if path is None else f"/{path}"
    if not tree["looked"]:
        return f"{plain(where)}: being looked through"
    text = f"{plain(where)}: {tree['files']:,} files, {size(tree['bytes'])}"
    missing = tree["missing_chunks"]
    return f"{text}; {missing:,} chunks are not here yet" if missing else text
