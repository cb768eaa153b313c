"""Exclusive creation between nodes: of several that make one name at once, one does.

Someone decides about each name: the node that made its directory (or moved it last)
while it is near, else the first near one in placement order. A node that decides
itself only looks, inside its transaction, whether it has given a name away: a tree
unpacked or cloned here asks nobody. Any other node asks before.

Nodes that are apart, or that see different nodes near, may both create; then both
entries are kept as after any concurrent change.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fusefs.errors import Exists
from fusefs.model.ids import Ino
from fusefs.namespace.transaction import Transaction
from fusefs.vfs.commits import Commits

SEEN_S = 3.5
"""So long the loser waits for the winner's entry before it says EEXIST: until a
reservation that was not used has ended."""
_LOOK_S = 0.002
_REMEMBERED = 1024
"""Directories of others that creations were rolled back in."""


class Taken(Exception):
    """Rolls a transaction back: the name has to be asked for first."""


class Exclusive:
    """Thread-safe. `check` is called in a transaction, the others outside
    of any."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._on = commits.options.exclusive == "cluster"
        self._others: set[Ino] = set()

    def begin(self, parent: Ino) -> None:
        """Before a transaction that is likely to be rolled back. Raises Taken."""
        if parent in self._others and self._commits.peers.near():
            raise Taken

    def check(self, tx: Transaction, parent: Ino) -> None:
        """The name is free here. Raises Taken when somebody else has to agree."""
        if not self._on:
            return
        namespace, peers = self._commits.namespace, self._commits.peers
        reserved_ns = namespace.reserved_until_ns()
        if reserved_ns and reserved_ns > time.monotonic_ns():
            raise Taken
        if peers.near() and tx.placed_by(parent) != namespace.node_id:
            if len(self._others) >= _REMEMBERED:
                self._others.clear()
            self._others.add(parent)
            raise Taken

    @contextmanager
    def asked(self, parent: Ino, name: bytes) -> Iterator[None]:
        """Around the creation of a name that somebody else decides about. Raises
        Exists when another one makes it, after his entry can be seen here."""
        peers = self._commits.peers
        if not self._ask(parent, name):
            raise Exists(repr(name))
        try:
            yield
        except BaseException:
            peers.give_back(parent, name)
            raise

    def _ask(self, parent: Ino, name: bytes) -> bool:
        peers, namespace = self._commits.peers, self._commits.namespace
        give_up = time.monotonic() + SEEN_S
        while namespace.entry(parent, name) is None:
            if peers.reserve(parent, name):  # perhaps it came and went meanwhile
                return True
            if time.monotonic() > give_up:
                break
            time.sleep(_LOOK_S)
        return False
