"""What the command line asks of trees kept here, and of copies given up."""

from __future__ import annotations

from fusefs.errors import FsError
from fusefs.model import manifest
from fusefs.model.ids import ChunkId, Ino
from fusefs.namespace import trees
from fusefs.namespace.types import Inode
from fusefs.nodelink import paths
from fusefs.store.marks import paced
from fusefs.store.store import Store
from netnode.link import CommandFailed
from netnode.pinning import Found
from netnode.service import Node

Report = dict[str, object]


def pin(node: Node, path: str) -> list[Report]:
    """Keep what a path shows, and all below, from now on. Raises CommandFailed."""
    node.pinning.pin(_at(node, path))
    return report(node)


async def unpin(node: Node, path: str) -> list[Report]:
    """Raises CommandFailed when it is not pinned. An empty path: all that are not in
    the tree any more."""
    if not path:
        for ino in node.pinning.pins():
            if node.namespace.path_to(ino) is None:
                node.pinning.unpin(ino)
    elif not node.pinning.unpin(_at(node, path)):
        raise CommandFailed("it is not pinned; dfs pin lists what is")
    await node.pinning.unpinned()
    return report(node)


def report(node: Node) -> list[Report]:
    """Every pinned tree: where it is, how much is in it, how much of that not here."""
    return [_line(node, ino, found) for ino, found in node.pinning.pins().items()]


def _line(node: Node, ino: Ino, found: Found | None) -> Report:
    path = node.namespace.path_to(ino)
    return {
        **(paths.shown("path", path) if path is not None else {"path": None}),
        "looked": found is not None,
        "files": found.files if found else 0,
        "bytes": found.bytes if found else 0,
        "missing_chunks": found.missing if found else 0,
    }


async def evict(node: Node, path: str) -> Report:
    """Give up the copies of a tree that are cache; how many bytes that made free."""
    ino = _at(node, path)
    freed = await node.environment.offload(lambda: _evict(node, ino))
    return {"freed_bytes": freed}


def _evict(node: Node, ino: Ino) -> int:
    freed = 0
    files = trees.files_below(node.namespace, ino)
    for row in paced(files, node.environment.pause):
        freed += node.store.drop(_chunks(node.store, row))
    return freed


def _chunks(store: Store, row: Inode) -> list[ChunkId]:
    """As far as manifests here tell."""
    count = manifest.chunk_count(row.size, row.chunk_log2)
    cids: list[ChunkId] = []
    try:
        cids += (cid for _, cid in manifest.present(row.root, count, store.get))
        cids += manifest.nodes(row.root, count, store.get)
    except FsError:
        pass
    return cids


def _at(node: Node, path: str) -> Ino:
    try:
        inside = paths.to_bytes(path)
    except ValueError:
        raise CommandFailed("this is no path") from None
    ino = trees.at_path(node.namespace, inside)
    if ino is None:
        shown = inside.decode(errors="backslashreplace")
        raise CommandFailed(f"there is no {shown!r} in the tree")
    return ino
