"""How many nodes keep a chunk: the setting of the cluster, and for what is below a
directory that has the attribute `user.dfs.replicas` what that says.

A chunk of several files is kept as often as the one of them asks that asks for the
most. Where no directory has the attribute, nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import msgspec

from fusefs.model.ids import ChunkId, Ino
from fusefs.model.manifest import Load
from fusefs.model.records import XATTR, key_ino
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.replicas import replicas_for
from fusefs.namespace.trees import files_below
from fusefs.namespace.types import Inode
from fusefs.store.marks import Marks, reached
from netnode.core.placement import DEFAULT_REPLICAS


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

    def read(self) -> None:
        """Everything, at the start."""
        self._read_setting()
        self.trees = self._namespace.with_replicas()

    def changed(self, keys: Iterable[bytes]) -> bool:
        """These registers did, which decide placement. Whether that makes a
        difference."""
        before = self.of_cluster, dict(self.trees)
        self._read_setting()
        for key in keys:
            if key[:1] == XATTR:
                self._read_tree(key_ino(key))
        return before != (self.of_cluster, self.trees)

    def _read_setting(self) -> None:
        value = self._namespace.settings().get(b"replicas")
        if value:
            self.of_cluster = max(1, int(msgspec.msgpack.decode(value, type=int)))

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
    ) -> dict[ChunkId, int]:
        """Those of these chunks that more or fewer nodes keep than the setting says.
        Where a manifest cannot be read no chunk counts as one of the latter. Takes
        long: for a thread."""
        trees, usual = dict(self.trees), self.of_cluster
        found: dict[ChunkId, int] = {}
        wanted, below = set(cids) if trees else set(), set[Ino]()
        for count in sorted(set(trees.values()) - {usual}):
            live = set[ChunkId]()
            marks = Marks(wanted, live, load, pause)
            for row in self._files(trees, count):
                marks.mark([(row.root, row.size, row.chunk_log2)])
                if count < usual:
                    below.add(row.ino)
            found.update(dict.fromkeys(live, count))  # the largest comes last
        fewer = [cid for cid, count in found.items() if count < usual]
        others = self._namespace.live_roots(but=below)
        for cid in reached(fewer, others, load, pause):
            del found[cid]
        return found

    def _files(self, trees: Mapping[Ino, int], count: int) -> Iterator[Inode]:
        """Those of which so many copies are kept because a directory says so."""
        for top, said in trees.items():
            if said == count:
                for row in files_below(self._namespace, top, but=trees):
                    if row.nlink == 1 or self.of(row.ino) == count:
                        yield row
