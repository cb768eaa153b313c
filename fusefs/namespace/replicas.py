"""How many nodes keep the data of a file: what the nearest directory above it says in
its attribute `user.dfs.replicas`, and of several names the one that asks for the most.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fusefs.model.ids import ROOT_INO, Ino
from fusefs.namespace.reads import Reads

DEFAULT_REPLICAS = 3
MOST_DEEP = 4096
"""Directories looked at on the way up: more are a damaged tree."""

Says = Callable[[Ino], int | None]
"""What a directory's own attribute says."""


def of_cluster(namespace: Reads) -> int:
    """The setting, which a peer may have written."""
    value = namespace.settings().get(b"replicas")
    if not value:
        return DEFAULT_REPLICAS
    return max(1, msgspec.msgpack.decode(value, type=int))


def replicas_for(namespace: Reads, ino: Ino, says: Says, otherwise: int) -> int:
    """Of a file or a directory; `otherwise`: where no directory says anything, or the
    inode has no name."""
    own = says(ino)
    if own is not None or ino == ROOT_INO:
        return own or otherwise
    names = namespace.parents(ino)
    counts = (_below(namespace, name.parent, says, otherwise) for name in names)
    return max(counts, default=otherwise)


def _below(namespace: Reads, directory: Ino, says: Says, otherwise: int) -> int:
    for _ in range(MOST_DEEP):
        own = says(directory)
        if own is not None or directory == ROOT_INO:
            return own or otherwise
        names = namespace.parents(directory)
        if not names:
            break
        directory = names[0].parent
    return otherwise
