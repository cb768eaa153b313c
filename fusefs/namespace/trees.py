"""Whole trees of the namespace: what is below an inode, and which one a path shows."""

from __future__ import annotations

import stat
from collections.abc import Container, Iterator

from fusefs.model.ids import ROOT_INO, Ino
from fusefs.namespace.reads import Reads
from fusefs.namespace.types import Inode

PAGE = 500
"""Entries read at once."""


def files_below(
    namespace: Reads, top: Ino, but: Container[Ino] = ()
) -> Iterator[Inode]:
    """The regular files that have data, `top` itself if it is one; one with several
    names once for each. Of no single moment: what is moved meanwhile may be there twice
    or not at all. `but`: nothing of what is in these directories, `top` excepted."""
    row = namespace.inode(top)
    if row is not None and _has_data(row):
        yield row
    directories = [top] if row is not None and stat.S_ISDIR(row.mode) else []
    while directories:
        directory, after = directories.pop(), b""
        while True:
            page = namespace.children_full(directory, after, PAGE)
            for entry, child in page:
                if stat.S_ISDIR(child.mode):
                    if entry.ino not in but:
                        directories.append(entry.ino)
                elif _has_data(child):
                    yield child
            if len(page) < PAGE:
                break
            after = page[-1][0].name


def _has_data(row: Inode) -> bool:
    return stat.S_ISREG(row.mode) and row.root != b""


def at_path(namespace: Reads, path: bytes) -> Ino | None:
    """What a path from the root of the tree shows, None for nothing. Symbolic links in
    it are not followed."""
    ino = ROOT_INO
    for name in path.split(b"/"):
        if name in (b"", b"."):
            continue
        entry = namespace.entry(ino, name)
        if entry is None:
            return None
        ino = entry.ino
    return ino
