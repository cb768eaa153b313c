"""A vfs over a real store and namespace in one directory, without a node.

with local_vfs(tmp_path) as local:
    opened = local.vfs.create(ROOT_INO, b"a", 0o644, os.O_RDWR, local.caller)
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fusefs.errors import Unreachable
from fusefs.model.ids import ROOT_INO, ChunkId, Ino, NodeId, Seq
from fusefs.model.tx import Body, Effects, Tx
from fusefs.namespace.namespace import Namespace
from fusefs.store.store import Store
from fusefs.vfs import Vfs, VfsOptions
from fusefs.vfs.ports import Alone, Peers
from fusefs.vfs.types import Attr, Caller, DirEntry

USER = Caller(uid=1000, gid=1000, pid=42)
_node_ids = itertools.count(1001)


class RecordingPeers(Alone):
    """Remembers what was asked for; `remote` stores are where bytes come from."""

    def __init__(self) -> None:
        self.published: list[tuple[Tx, tuple[Body, ...]]] = []
        self.barriers: list[Seq] = []
        self.fetched: list[ChunkId] = []
        self.prefetched: list[ChunkId] = []
        self.remote: Store | None = None
        self.local: Store | None = None

    def publish(self, tx: Tx, bodies: Sequence[Body] = ()) -> None:
        self.published.append((tx, tuple(bodies)))

    def barrier(self, seq: Seq, timeout_s: float) -> bool:
        self.barriers.append(seq)
        return True

    def fetch(
        self,
        cids: Sequence[ChunkId],
        *,
        timeout_s: float,
        cancelled: Callable[[], bool] | None = None,
        hint: Sequence[NodeId] = (),
        ahead: Sequence[ChunkId] = (),
        small: bool = False,
    ) -> None:
        self.prefetched += ahead
        if self.remote is None or self.local is None:
            raise Unreachable("nobody has it")
        for cid in cids:
            self.fetched.append(cid)
            self.local.put_verified(cid, self.remote.get(cid))

    def prefetch(self, cids: Sequence[ChunkId]) -> None:
        self.prefetched += cids


class Local:
    """The parts, and short forms for tests."""

    def __init__(
        self,
        directory: Path,
        options: VfsOptions | None = None,
        peers: Peers | None = None,
        *,
        root: bool = True,
    ) -> None:
        self.directory = directory
        if not (directory / "meta.db").exists():
            directory.mkdir(parents=True, exist_ok=True)
            node = NodeId(next(_node_ids))
            Namespace.create(directory, node, uid=1000, gid=1000, root=root).close()
        self.namespace = Namespace.open(directory)
        self.store = Store.open(directory, min_free_bytes=0)
        self.peers = peers if peers is not None else Alone()
        if isinstance(self.peers, RecordingPeers):
            self.peers.local = self.store
        self.options = options or VfsOptions()
        self.caller = USER
        self.vfs = Vfs(self.namespace, self.store, self.peers, self.options)

    # -- short forms ------------------------------------------------------------------

    def walk(self, path: str) -> Ino:
        """The inode of an absolute path."""
        ino = ROOT_INO
        for part in path.strip("/").split("/"):
            if part:
                ino = self.vfs.lookup(ino, part.encode()).ino
        return ino

    def stat(self, path: str) -> Attr:
        return self.vfs.getattr(self.walk(path))

    def split(self, path: str) -> tuple[Ino, bytes]:
        above, _, name = path.rstrip("/").rpartition("/")
        return self.walk(above), name.encode()

    def create(self, path: str, data: bytes = b"", mode: int = 0o644) -> int:
        """A new file with this data, written but not flushed; its handle."""
        parent, name = self.split(path)
        opened = self.vfs.create(parent, name, mode, os.O_RDWR, self.caller)
        if data:
            self.vfs.write(opened.handle, 0, data, self.caller)
        return opened.handle

    def put(self, path: str, data: bytes = b"", mode: int = 0o644) -> Ino:
        """A new file, closed."""
        self.close(self.create(path, data, mode))
        return self.walk(path)

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        return self.vfs.open(self.walk(path), flags, self.caller).handle

    def close(self, handle: int) -> None:
        self.vfs.flush(handle, 0)
        self.vfs.release(handle)

    def cat(self, path: str) -> bytes:
        handle = self.open(path, os.O_RDONLY)
        try:
            return self.read_all(handle)
        finally:
            self.close(handle)

    def read_all(self, handle: int) -> bytes:
        out, at = [], 0
        while data := self.vfs.read(handle, at, 1 << 20, self.caller):
            out.append(data)
            at += len(data)
        return b"".join(out)

    def mkdir(self, path: str, mode: int = 0o755) -> Ino:
        parent, name = self.split(path)
        return self.vfs.mkdir(parent, name, mode, self.caller).ino

    def listing(self, path: str = "/") -> list[DirEntry]:
        """Without the dots, by handle."""
        handle = self.vfs.opendir(self.walk(path))
        entries = list(self.vfs.readdir(handle, 0))
        self.vfs.releasedir(handle)
        return [e for e in entries if e.name not in (b".", b"..")]

    # -- the end ----------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What fsck would say."""
        found = [str(p) for p in self.store.check(contents=True)]
        return self.namespace.problems() + found

    def close_all(self) -> None:
        self.vfs.close()
        self.store.close()
        self.namespace.close()


@contextmanager
def local_vfs(
    directory: Path,
    options: VfsOptions | None = None,
    peers: Peers | None = None,
    *,
    root: bool = True,
) -> Iterator[Local]:
    """Checked with fsck at the end."""
    local = Local(directory, options, peers, root=root)
    try:
        yield local
        assert local.problems() == []
    finally:
        local.close_all()


def hear(vfs: Vfs, effects: Effects | None) -> None:
    """As the link's two threads do: our caches, then the kernel. None: everything."""
    vfs.forget_effects(effects)
    vfs.tell_kernel(effects)


def replicate(source: Local, target: Local) -> None:
    """Bring everything `target` lacks over, as a node would, and tell its vfs."""
    for batch in source.namespace.delta(target.namespace.vector()):
        applied = target.namespace.apply_states(batch.states, batch.advance)
        hear(target.vfs, applied.effects)
