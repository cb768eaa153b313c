"""Which transactions may be acknowledged before they are applied. Pure.

The question is what the kernel of this node may hold that they make wrong. It is
answered from their keys alone: a wider answer costs time, a narrower one a stale read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fusefs.model.ids import Ino
from fusefs.model.records import (
    CONTENT,
    DIRENT,
    MEMBER,
    PLACE,
    SETTING,
    UNLINKED,
    key_ino,
    key_name,
)
from fusefs.model.tx import Tx


class Touched(NamedTuple):
    """Inodes that show something else afterwards, and names that do."""

    inos: set[Ino]
    names: list[tuple[Ino, bytes]]

    @property
    def directories(self) -> set[Ino]:
        """Those whose listing changes. Their times are not among `inos`: no close
        promises them."""
        return {parent for parent, _ in self.names}


def touched(txs: Iterable[Tx]) -> Touched | None:
    """None: apply them first. Nobody waits for such changes, or they touch more than
    files."""
    inos: set[Ino] = set()
    contents: set[Ino] = set()
    directories: set[Ino] = set()
    names: list[tuple[Ino, bytes]] = []
    replaces = False
    for tx in txs:
        named = unlinked = False
        for write in tx.writes:
            key = write.key
            kind = key[:1]
            if kind in (MEMBER, SETTING):
                return None
            ino = key_ino(key)
            if kind == DIRENT:
                names.append((ino, key_name(key)))
                directories.add(ino)
                named = named or bool(write.value)
            elif kind == CONTENT:
                contents.add(ino)
            else:
                inos.add(ino)
                unlinked = unlinked or kind == UNLINKED
                if kind == PLACE:
                    directories.add(ino)
        replaces = replaces or (named and unlinked)
    contents -= directories
    if not contents and not replaces:
        return None
    return Touched(inos | contents, names)
