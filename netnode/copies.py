"""How many nodes keep a chunk: the setting of the cluster, and for what is below a
directory that has the attribute `user.dfs.replicas` what that says.

A chunk of several files is kept as often as the one of them asks that asks for the
most. Where no directory has the attribute, nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from fusefs.errors import FsError
from fusefs.model.ids import ChunkId, Ino
from fusefs.model.manifest import Load
from fusefs.model.records import MAX_REPLICAS, XATTR, key_ino
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.replicas import DEFAULT_REPLICAS, of_cluster, replicas_for
from fusefs.namespace.trees import counted_files
from fusefs.store.marks import Marks, reached


class Exceptions(NamedTuple):
    """And what of manifests could not be read: of files that more nodes keep, and of
    others, of whose chunks some may be kept too often because of that."""

    counts: dict[ChunkId, int]
    unread_of_more: set[ChunkId]
    unread: set[ChunkId]


class Copies:
    """Read by all tasks, changed by the node."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self.of_cluster = DEFAULT_REPLICAS
        """The setting."""
        self.trees: dict[Ino, int] = {}
        """By the directory that says so; those that were removed are among them."""

    @property
    def most(self) -> int:
        """Of any chunk."""
        return max(self.of_cluster, *self.trees.values(), 0)

    @property
    def least(self) -> int:
        return min(self.of_cluster, *self.trees.values(), MAX_REPLICAS)

    def read(self) -> None:
        """Everything, at the start."""
        self.of_cluster = of_cluster(self._namespace)
        self.trees = self._namespace.with_replicas()

    def changed(self, keys: Iterable[bytes]) -> bool:
        """These registers did, which decide placement. Whether that makes a
        difference."""
        before = self.of_cluster, dict(self.trees)
        self.of_cluster = of_cluster(self._namespace)
        for key in keys:
            if key[:1] == XATTR:
                self._read_tree(key_ino(key))
        return before != (self.of_cluster, self.trees)

    def _read_tree(self, ino: Ino) -> None:
        count = self._namespace.replicas(ino)
        if count is None:
            self.trees.pop(ino, None)
        else:
            self.trees[ino] = count

    def of(self, ino: Ino) -> int:
        """How many nodes keep the data of a file, or of what is below a directory."""
        if not self.trees:
            return self.of_cluster
        return replicas_for(self._namespace, ino, self.trees.get, self.of_cluster)

    def exceptions(
        self, cids: Collection[ChunkId], load: Load, pause: Callable[[], None]
    ) -> Exceptions:
        """Those of these chunks that more or fewer nodes keep than the setting says.
        Where a manifest cannot be read no chunk counts as one of the latter. Takes
        long: for a thread."""
        trees, usual = dict(self.trees), self.of_cluster
        found = Exceptions({}, set(), set())
        if not cids or not trees:
            return found
        wanted, below = set(cids), set[Ino]()
        live = dict[int, set[ChunkId]]()
        marks = dict[int, Marks]()
        for count in set(trees.values()) - {usual}:
            unread = found.unread if count < usual else found.unread_of_more
            live[count] = set()
            marks[count] = Marks(wanted, live[count], _noting(load, unread), pause)
        for file in counted_files(self._namespace, trees):
            if file.replicas < usual and file.nlink == 1:
                below.add(file.ino)
            if file.replicas != usual:
                marks[file.replicas].mark([(file.root, file.size, file.chunk_log2)])
        for count in sorted(live):  # the largest comes last
            found.counts.update(dict.fromkeys(live[count], count))
        fewer = [cid for cid, count in found.counts.items() if count < usual]
        others = self._namespace.live_roots(but=below)
        for cid in reached(fewer, others, _noting(load, found.unread), pause):
            del found.counts[cid]
        return found


def _noting(load: Load, unread: set[ChunkId]) -> Load:
    def noting(node: ChunkId) -> bytes:
        try:
            return load(node)
        except FsError:
            unread.add(node)
            raise

    return noting
