"""Local transactions, handed to the node in the order they were committed.

    with commits.begin((parent, name)) as tx:
        ...

On a normal exit the transaction is committed, our caches forget what it changed,
and its record is with the node. With sync=all, and when a name in use was given other
data, it then waits for the near peers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from fusefs.errors import ReadOnly
from fusefs.model.ids import Ino, Seq
from fusefs.model.tx import Body, that_travel
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.transaction import Transaction
from fusefs.vfs.coherence import Coherence
from fusefs.vfs.options import VfsOptions
from fusefs.vfs.ports import Peers
from fusefs.vfs.risks import Risks

Name = tuple[Ino, bytes]


class Commits:
    """Thread-safe. `count` grows with every commit."""

    def __init__(
        self,
        namespace: Namespace,
        peers: Peers,
        coherence: Coherence,
        options: VfsOptions,
        risks: Risks,
    ) -> None:
        self.risks = risks
        namespace.before_sync = risks.secure
        self.namespace = namespace
        self.peers = peers
        self.coherence = coherence
        self.options = options
        # Order of commits is order of publishing: a peer that sees a gap has to ask
        # for a delta. Under it: the namespace's write lock, and leaf locks.
        self.lock = threading.Lock()
        self.count = 0
        self._synced = -1
        self._sync_lock = threading.Lock()  # one WAL sync serves all who wait for it

    def begin(self, *names: Name) -> Commit:
        """A transaction that changes these names (and inodes)."""
        if self.options.read_only:
            raise ReadOnly("the file system is mounted read-only")
        return Commit(self, names)

    def barrier(self, seq: Seq) -> None:
        """Wait for near peers, at most the configured time. No lock may be held."""
        if self.options.sync != "off":
            self.peers.barrier(seq, self.options.barrier_s)

    def sync(self) -> None:
        """Everything committed before is durable. Waiters share one sync."""
        wanted = self.count
        if self._synced >= wanted:
            return
        with self._sync_lock:
            if self._synced >= wanted:
                return
            count = self.count
            self.namespace.sync()
            self._synced = count


class Commit:
    """One use of `Commits.begin`. `seq` is set after it (0: nothing was written)."""

    __slots__ = (
        "_commits",
        "_inner",
        "_names",
        "_tx",
        "bodies",
        "quiet",
        "replaces",
        "seq",
    )

    def __init__(self, commits: Commits, names: tuple[Name, ...]) -> None:
        self._commits = commits
        self._names = names
        self._inner: AbstractContextManager[Transaction]
        self._tx: Transaction
        self.bodies: Sequence[Body] = ()
        """Small objects that travel with the transaction, as many as may."""
        self.replaces = False
        """It puts other data under a name in use: like a close, it waits for peers."""
        self.quiet = False
        """The caller holds a lock and waits for peers itself."""
        self.seq = Seq(0)

    def __enter__(self) -> Transaction:
        commits = self._commits
        commits.lock.acquire()
        try:
            self._inner = commits.namespace.transaction()
            self._tx = self._inner.__enter__()
        except BaseException:
            commits.lock.release()
            raise
        return self._tx

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        commits = self._commits
        try:
            self._inner.__exit__(kind, error, trace)
            tx = self._tx.tx
            if error is None and tx is not None:
                self.seq = tx.seq
                commits.count += 1
                commits.coherence.committed(self._tx.effects, self._names)
                bodies = that_travel(self.bodies) if self.bodies else ()
                commits.peers.publish(tx, bodies)
        finally:
            commits.lock.release()
        waits = commits.options.sync == "all" or self.replaces
        if self.seq and waits and not self.quiet:
            commits.barrier(self.seq)
