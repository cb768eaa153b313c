"""Two nodes in one process, each a vfs over a store of its own, that hear of each
other when the test says so."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusefs.vfs import VfsOptions
from netnode.bodies import keep_bodies
from tests.lib.local import Local, RecordingPeers, local_vfs, replicate


class Pair:
    """Two nodes: `b` fetches from `a` and the other way round."""

    def __init__(self, a: Local, b: Local) -> None:
        self.a, self.b = a, b
        assert isinstance(a.peers, RecordingPeers)
        assert isinstance(b.peers, RecordingPeers)
        self.a_peers, self.b_peers = a.peers, b.peers
        self.a_peers.remote, self.b_peers.remote = b.store, a.store
        self.sent = {a: 0, b: 0}

    def sync(self) -> None:
        """Each hears of what the other did."""
        self.tell(self.a, self.b)
        self.tell(self.b, self.a)

    def tell(self, one: Local, other: Local) -> None:
        """`other` hears of what `one` did."""
        assert isinstance(one.peers, RecordingPeers)
        for _, bodies in one.peers.published[self.sent[one] :]:
            keep_bodies(other.store, bodies)
        self.sent[one] = len(one.peers.published)
        replicate(one, other)


@contextmanager
def pair_of(path: Path, options: VfsOptions | None = None) -> Iterator[Pair]:
    """Both with an empty tree; `options` are those of `a`."""
    with (
        local_vfs(path / "a", options, RecordingPeers()) as a,
        local_vfs(path / "b", None, RecordingPeers(), root=False) as b,
    ):
        pair = Pair(a, b)
        pair.sync()
        yield pair


def random_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size}/{seed}").randbytes(size)
