"""Whole trees of the namespace: what is below an inode, and which one a path shows."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from fusefs.model.ids import ROOT_INO, Ino
from fusefs.namespace import schema
from fusefs.namespace.reads import Reads
from fusefs.namespace.types import Inode

PAGE = 500
"""Entries read at once."""


def files_below(namespace: Reads, top: Ino) -> Iterator[Inode]:
    """The regular files that have data, `top` itself if it is one; one with several
    names once for each. Of no single moment: what is moved meanwhile may be there twice
    or not at all."""
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
                    directories.append(entry.ino)
                elif _has_data(child):
                    yield child
            if len(page) < PAGE:
                break
            after = page[-1][0].name


class Counted(NamedTuple):
    """A regular file that has data, and the number of the tree that it is in."""

    replicas: int
    ino: Ino
    nlink: int
    root: bytes
    size: int
    chunk_log2: int


def counted_files(namespace: Reads, trees: Mapping[Ino, int]) -> Iterator[Counted]:
    """Everything below these directories, each without what is below another of them;
    a file once for each of its names. All of one snapshot: a file that is moved
    meanwhile must not be missed at both places."""
    with schema.snapshot(namespace.path) as snapshot:
        for top, count in trees.items():
            directories = [top]
            while directories:
                for ino, mode, *file in snapshot.execute(_BELOW, (directories.pop(),)):
                    if stat.S_ISREG(mode):
                        yield Counted(count, ino, *file)
                    elif ino not in trees:
                        directories.append(ino)


_BELOW = (
    "SELECT i.ino, i.mode, i.nlink, i.root, i.size, i.chunk_log2"
    " FROM entry e JOIN inode i ON i.ino = e.ino WHERE e.parent = ?"
    f" AND (i.mode & {0o170000} = {stat.S_IFDIR}"
    f" OR (i.mode & {0o170000} = {stat.S_IFREG} AND i.root <> x''))"
)


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
