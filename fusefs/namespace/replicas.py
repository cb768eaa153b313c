"""How many nodes keep the data of a file: what the nearest directory above it says in
its attribute `user.dfs.replicas`, and of several names the one that asks for the most.
"""

from __future__ import annotations

from collections.abc import Callable

from fusefs.model.ids import ROOT_INO, Ino
from fusefs.namespace.reads import Reads

Says = Callable[[Ino], int | None]
"""What a directory's own attribute says."""


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
    while True:
        own = says(directory)
        if own is not None or directory == ROOT_INO:
            return own or otherwise
        names = namespace.parents(directory)
        if not names:
            return otherwise
        directory = names[0].parent
