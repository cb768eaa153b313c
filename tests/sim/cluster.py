"""Nodes for tests: real namespace and store in a directory, virtual clock."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from fusefs.errors import Unreachable
from fusefs.housekeeping import SYNC_EVERY_S
from fusefs.model.ids import ROOT_INO, ChunkId, Ino, NodeId, Seq
from fusefs.model.records import S_DIR, S_REG
from fusefs.model.tx import Body, Effects, Tx
from fusefs.namespace.namespace import Namespace
from fusefs.nodelink.ranges import LockKey, Range
from fusefs.store.store import Store
from fusefs.store.types import PUSHED, RESPONSIBLE
from fusefs.vfs import Vfs, VfsOptions
from fusefs.vfs.ports import Alone
from netnode.environment import Environment
from netnode.service import Node, Settings
from tests.lib.local import hear
from tests.sim.network import Fabric

T = TypeVar("T")
EPOCH_MS = 1_750_000_000_000
CLUSTER = b"cluster of tests"
OPTIONS = VfsOptions(sync="off", kernel_refs=False)
DATABASES = ("meta.db", "meta.db-wal", "small.db", "small.db-wal")


async def inline(work: Callable[[], T], /) -> T:
    """Instead of a thread: virtual time would run away while one works."""
    await trio.lowlevel.checkpoint()
    return work()


def _raise(where: str) -> None:
    """A bug of a task ends the test instead of being logged."""
    raise


class SimWorker:
    """Stands in for the mount: forgets what changed after a while."""

    def __init__(self, node: SimNode, delay_s: float = 0.0) -> None:
        self._node = node
        self.delay_s = delay_s
        self.effects: list[Effects] = []
        self.forgot_everything = 0
        self._send, self._receive = trio.open_memory_channel[tuple[int, Effects, bool]](
            float("inf")
        )
        assert node.node is not None
        node.node.settling.attached(self)

    def changed(self, number: int, effects: Effects, everything: bool) -> None:
        self.effects.append(effects)
        self.forgot_everything += everything
        self._send.send_nowait((number, effects, everything))

    async def run(self) -> None:
        async for number, effects, everything in self._receive:
            await trio.sleep(self.delay_s)
            vfs, node = self._node.vfs, self._node.node
            if vfs is not None:
                hear(vfs, effects)
                if everything:
                    hear(vfs, None)
            if node is not None:
                node.settling.done(number)


class SimNode:
    """One node; `start` and `crash` any number of times, the disk stays."""

    def __init__(self, cluster: SimCluster, name: str, founding: bool) -> None:
        self._cluster = cluster
        self.name = name
        self.id = NodeId(cluster.rng.getrandbits(62) | 1)
        self.skew_ms = 0
        self.directory = cluster.directory / name
        self.directory.mkdir()
        self.vfs: Vfs | None = None
        self.with_vfs = False
        self.mass_delete = 0.0
        self.locks_alone = False
        self.slept_s = 0.0
        """For so long its machine was suspended, and its other clock stood still."""
        self.mounted = False
        """Its worker will say what it holds: a test does."""
        self.on_publish: Callable[[Tx], None] = lambda tx: None
        self.on_synced: Callable[[], None] = lambda: None
        self.node: Node | None = None
        self._scope: trio.CancelScope | None = None
        self._done = trio.Event()
        namespace = Namespace.create(
            self.directory, self.id, root=founding, clock=self.wall_ns
        )
        namespace.close()
        self.namespace: Namespace
        self.store: Store

    def wall_ns(self) -> int:
        return self.wall_ms() * 1_000_000

    def wall_ms(self) -> int:
        return EPOCH_MS + self.skew_ms + int(trio.current_time() * 1000)

    async def start(self) -> Node:
        cluster = self._cluster
        self.namespace = Namespace.open(self.directory, clock=self.wall_ns)
        power_cut = self.namespace.life.mark_running()
        self.store = Store.open(
            self.directory,
            min_free_bytes=0,
            power_cut=power_cut,
            clock=lambda: self.wall_ms() / 1000,
        )
        seeds = tuple(f"{n.name}:1" for n in cluster.nodes[:1] if n is not self)
        settings = Settings(
            CLUSTER,
            self.name,
            seeds,
            lambda port: (f"{self.name}:{port}",),
            mass_delete=self.mass_delete,
            locks_alone=self.locks_alone,
            mounted=self.mounted,
        )
        rng = random.Random(cluster.rng.getrandbits(64))
        environment = Environment(
            self.wall_ms,
            rng,
            inline,
            _raise,
            lambda: trio.current_time() + self.slept_s,
            lambda: None,
        )
        network = cluster.fabric.host(self.name, self.id)
        self.node = Node(settings, self.namespace, self.store, network, environment)
        if self.with_vfs:
            self.vfs = Vfs(
                self.namespace, self.store, SimPeers(self), OPTIONS, self.wall_ns
            )
        self._done = trio.Event()
        await cluster.nursery.start(self._run, self.node)
        return self.node

    async def _run(self, node: Node, *, task_status: trio.TaskStatus[int]) -> None:
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:
                    if self.vfs is not None:
                        delay_s = self._cluster.rng.uniform(0, 0.005)
                        nursery.start_soon(SimWorker(self, delay_s).run)
                        nursery.start_soon(self._sync_often)
                    await node.run(task_status=task_status)
                    nursery.cancel_scope.cancel()
        finally:
            self.node = self.vfs = None
            self.namespace.close()
            self.store.close()
            self._done.set()

    async def crash(self) -> None:
        """The process is gone at once; what was committed is on the disk."""
        assert self._scope is not None
        self._scope.cancel()
        await self._done.wait()

    def checkpoint(self) -> None:
        """What is in the store now survives a power cut."""
        if self.vfs is not None:
            self.store.sync_all()
        for name in DATABASES:
            source = self.directory / name
            if source.exists():
                shutil.copyfile(source, self._durable(name))
        self.on_synced()

    async def _sync_often(self) -> None:
        """As the housekeeping of the product."""
        while True:
            self.checkpoint()
            await trio.sleep(SYNC_EVERY_S)

    def try_again(self) -> None:
        """As the background of the product: what waits for bytes may have them now."""
        if self.vfs is not None:
            self.vfs._appends.retry()

    async def power_cut(self) -> None:
        """The machine stops: only what was synced is on the disk."""
        await self.crash()
        for name in DATABASES:
            (self.directory / name).unlink(missing_ok=True)
            if self._durable(name).exists():
                shutil.copyfile(self._durable(name), self.directory / name)
        database = sqlite3.connect(self.directory / "meta.db")
        database.execute("UPDATE meta SET value = 'before' WHERE key = 'boot_id'")
        database.commit()
        database.close()

    def _durable(self, name: str) -> Path:
        return self.directory / f"durable-{name}"

    async def stop(self) -> None:
        if self.node is not None:
            self.node.stop()
            await self._done.wait()

    # -- what a program does -----------------------------------------------------------

    def publish(self, tx: Tx | None, bodies: Sequence[Body] = ()) -> Seq:
        assert tx is not None
        self.on_publish(tx)
        if self.node is not None:
            self.node.publish((tx,), bodies)
        return tx.seq

    def connected(self) -> list[SimNode]:
        """The nodes this one has a connection with."""
        peers = self.node.peers if self.node is not None else ()
        return [n for n in self._cluster.running if n.id in peers]

    def create(
        self, name: bytes, parent: Ino = ROOT_INO, data: bytes | None = None
    ) -> Seq:
        """A new file, with its only chunk attached if there is data."""
        bodies: list[Body] = []
        with self.namespace.transaction() as t:
            ino = t.new_ino(parent, name, S_REG)
            t.create(parent, name, ino, 0o100644, 0, 0)
            if data is not None:
                cid = self.store.put(data)
                bodies.append(Body(cid, data))
                t.set_content(
                    ino,
                    size=len(data),
                    root=cid,
                    chunk_log2=20,
                    mtime_ns=t.now_ns,
                )
        return self.publish(t.tx, bodies)

    def make_directory(self, name: bytes, parent: Ino = ROOT_INO) -> Ino:
        with self.namespace.transaction() as t:
            ino = t.new_ino(parent, name, S_DIR)
            t.create(parent, name, ino, 0o40755, 0, 0)
        self.publish(t.tx)
        return ino

    def keeps(self, cid: ChunkId) -> bool:
        """It is here, and never evicted."""
        return self.store.has(cid) and bool(
            self.store.flags(cid) & (PUSHED | RESPONSIBLE)
        )

    def write_chunks(
        self, name: bytes, count: int, seed: int = 0, parent: Ino = ROOT_INO
    ) -> list[ChunkId]:
        """A file of so many chunks of 64 KiB, made or written anew; they and, of more
        than one, their manifest."""
        ids = [self.store.put(bytes((n, seed)) * 32768) for n in range(count)]
        if count > 1:
            ids.append(self.store.put(b"".join(ids)))
        entry = self.namespace.entry(parent, name)
        with self.namespace.transaction() as t:
            ino = entry.ino if entry else t.new_ino(parent, name, S_REG)
            if not entry:
                t.create(parent, name, ino, 0o100644, 0, 0)
            t.set_content(
                ino, size=count << 16, root=ids[-1], chunk_log2=16, mtime_ns=t.now_ns
            )
        self.publish(t.tx)
        return ids

    def unlink(self, name: bytes, parent: Ino = ROOT_INO) -> Seq:
        with self.namespace.transaction() as t:
            t.unlink(parent, name)
        return self.publish(t.tx)

    def names(self) -> list[bytes]:
        return [e.name for e in self.namespace.children(ROOT_INO, limit=100_000)]

    async def barrier(self, seq: Seq, limit_s: float = 1.0) -> bool:
        assert self.node is not None
        event, result = trio.Event(), [False]

        def done(ok: bool) -> None:
            result[0] = ok
            event.set()

        self.node.barrier(seq, limit_s, done)
        with trio.move_on_after(limit_s):
            await event.wait()
        return result[0]

    async def fetch(self, cids: Sequence[ChunkId], limit_s: float = 5.0) -> int:
        """The errno, 0 when they are here."""
        assert self.node is not None
        event, result = trio.Event(), [-1]

        def done(error: int, reason: str) -> None:
            result[0] = error
            event.set()

        self.node.fetch(cids, limit_s, (), done)
        await event.wait()
        return result[0]

    def ask_lock(self, ino: Ino, want: Range, wait: bool = True) -> LockResult:
        assert self.node is not None
        result = LockResult()
        key = LockKey(ino, False)
        result.number = self.node.locking.lock(key, want, wait, result)
        return result

    async def reserve(self, name: bytes, parent: Ino = ROOT_INO) -> bool:
        assert self.node is not None
        event, result = trio.Event(), [False]

        def done(granted: bool) -> None:
            result[0] = granted
            event.set()

        self.node.locking.reserve(parent, name, done)
        await event.wait()
        return result[0]


class SimPeers(Alone):
    """What a vfs sees of the node: publishing at once, bytes from whoever is
    connected (the chunk plane itself has tests of its own)."""

    def __init__(self, node: SimNode) -> None:
        self._node = node

    def publish(self, tx: Tx, bodies: Sequence[Body] = ()) -> None:
        self._node.publish(tx, bodies)

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
        for cid in cids:
            for other in self._node.connected():
                if other.store.has(cid):
                    self._node.store.put_verified(cid, other.store.get(cid))
                    break
            else:
                raise Unreachable("no connected peer has it")


class LockResult:
    """What became of a request; None while it waits."""

    def __init__(self) -> None:
        self.error: int | None = None
        self.number = 0

    def __call__(self, error: int, conflict: Range | None) -> None:
        assert self.error is None
        self.error = error


class SimCluster:
    """All nodes of a test; the first founds, the others know its address."""

    def __init__(
        self, directory: Path, nursery: trio.Nursery, seed: int = 0, **fabric: object
    ) -> None:
        self.rng = random.Random(seed)
        self.directory = directory
        self.nursery = nursery
        self.fabric = Fabric(random.Random(seed + 1), **fabric)  # type: ignore[arg-type]
        self.nodes: list[SimNode] = []
        self.look_s = 0.01

    def add(self) -> SimNode:
        letters = "abcdefghijklmnopqrstuvwxyz"
        turn, letter = divmod(len(self.nodes), len(letters))
        name = letters[letter] + (str(turn) if turn else "")
        node = SimNode(self, name, not self.nodes)
        self.nodes.append(node)
        return node

    async def start(self, count: int) -> list[SimNode]:
        """So many nodes, all connected and level."""
        for _ in range(count):
            await self.add().start()
        await self.until_connected()
        await self.until_equal()
        return self.nodes

    @property
    def running(self) -> list[SimNode]:
        return [n for n in self.nodes if n.node is not None]

    async def until(self, condition: Callable[[], bool], limit_s: float = 60) -> None:
        with trio.move_on_after(limit_s):
            while not condition():
                await trio.sleep(self.look_s)
        assert condition(), "it did not happen in time"

    async def until_connected(self, limit_s: float = 60) -> None:
        def all_connected() -> bool:
            return all(
                len(n.node.peers) == len(self.running) - 1
                and all(n.node.chunks.has_bulk(p) for p in n.node.peers.ids())
                for n in self.running
                if n.node is not None
            )

        await self.until(all_connected, limit_s)

    async def until_equal(self, limit_s: float = 60) -> None:
        """Equal vectors, then equal digests; a repair may be needed in between."""

        def level() -> bool:
            return len({_frozen(n.namespace.vector()) for n in self.running}) == 1

        def same() -> bool:
            return len({n.namespace.digest() for n in self.running}) == 1

        await self.until(level, limit_s)
        await self.until(same, 30)

    async def stop(self) -> None:
        """And check every store."""
        for node in self.running:
            await node.stop()
        for node in self.nodes:
            namespace = Namespace.open(node.directory)
            try:
                assert namespace.problems() == []
            finally:
                namespace.close()


def _frozen(vector: dict[NodeId, Seq]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((n, s) for n, s in vector.items() if s))
