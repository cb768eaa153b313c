"""One run from one seed: nodes, a workload, disasters, healing, then the checks."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from fusefs.housekeeping import SYNC_EVERY_S
from fusefs.model.context import context_of
from fusefs.model.register import Register, encode_register
from fusefs.namespace import replicate
from fusefs.namespace.registers import Registers
from netnode import deltas
from netnode.core import horizon
from tests.sim import checks
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.program import Program
from tests.sim.promises import Promises
from tests.sim.running import simulate

HEAL_LIMIT_S = 180.0
SKEW_MS = 100_000
"""Two clocks are at most twice this apart: below the five minutes that are refused."""
BEHIND_MS = 3_600_000
"""Or one is wrong by so much more for a while, and refuses all others. Not ahead: what
is written then is left out until it is no longer."""


class Plan(NamedTuple):
    """The size of a run; 0 nodes or operations: the seed decides."""

    seed: int
    nodes: int = 0
    ops: int = 0


class Outcome(NamedTuple):
    plan: Plan
    problems: list[str]
    events: list[str]
    ops: int
    messages: int
    nodes: int
    virtual_s: float

    @property
    def messages_per_op(self) -> float:
        """Frames about the namespace, from all nodes."""
        return self.messages / max(1, self.ops)


class Run:
    """The state of one run."""

    def __init__(self, plan: Plan) -> None:
        self.rng = random.Random(plan.seed)
        self.plan = plan
        self.count = plan.nodes or self.rng.randrange(3, 9)
        self.ops = plan.ops or self.rng.randrange(10, 22)
        self.clocks = random.Random(f"clocks {plan.seed}")  # older seeds stay the same
        self.far_behind = 0.5 if self.clocks.random() < 0.3 else 0.0
        self.horizons = self.rng.random() < 0.4
        self.damages = self.rng.random() < 0.25
        self.promises = Promises()
        self.events: list[str] = []
        self.problems: list[str] = []
        self.done = 0
        self.sent = 0
        self.repaired = 0
        self.power_cuts = 0

    def log(self, text: str) -> None:
        self.events.append(f"{trio.current_time():9.4f} {text}")

    # -- the run -----------------------------------------------------------------------

    async def body(self, cluster: SimCluster) -> None:
        cluster.look_s = 0.1
        rng = self.rng
        cluster.fabric.latency_s = rng.choice(
            ((0.0001, 0.0005), (0.001, 0.02), (0.02, 0.2))
        )
        cluster.fabric.bytes_per_s = rng.choice((1e9, 1e5, 2e4))
        late = rng.random() < 0.5
        for _ in range(self.count - late):
            await self._add(cluster)
        await cluster.until_connected()
        await cluster.until_equal()
        for turn in range(self.ops):
            if self.horizons and turn == self.ops // 2:
                await trio.sleep(3 * SYNC_EVERY_S)
            if cluster.running:
                self._work(rng.choice(cluster.running))
            if rng.random() < 0.25:
                await self._disturb(cluster)
            await trio.sleep(rng.expovariate(2 if rng.random() < 0.3 else 50))
        await self._heal(cluster, late)
        self.problems += await checks.all_checks(cluster.nodes, self)
        if self.damages and not self.problems:
            await self._damage(cluster)
        self.sent += sum(map(sent_by, cluster.running))

    async def _add(self, cluster: SimCluster) -> None:
        node = cluster.add()
        node.with_vfs = True
        node.skew_ms = self.rng.randrange(-SKEW_MS, SKEW_MS)
        node.on_publish = lambda tx: self.promises.published(node, tx)
        self.log(f"{node.name} is {node.id:x}, its clock is off by {node.skew_ms} ms")
        node.on_synced = lambda: self.promises.synced(node)
        await node.start()

    def _work(self, node: SimNode) -> None:
        self.log(f"{node.name}: {Program(node, self.promises, self.rng).step()}")
        self.done += 1

    async def _disturb(self, cluster: SimCluster) -> None:
        rng, fabric = self.rng, cluster.fabric
        a, b = rng.sample(cluster.nodes, 2)
        match rng.randrange(9):
            case 0:
                self.log(f"the connections of {a.name} and {b.name} break")
                fabric.sever(a.name, b.name)
            case 1 | 2:
                names = [n.name for n in cluster.nodes]
                rng.shuffle(names)
                cut = rng.randrange(1, len(names))
                self.log(f"partition: {names[:cut]} from {names[cut:]}")
                fabric.partition(set(names[:cut]), set(names[cut:]))
            case 3:
                self.log(f"nothing goes from {a.name} to {b.name}")
                fabric.block(a.name, b.name)
            case 4 | 5:
                self.log("the network is whole again")
                fabric.heal()
            case 6:
                a.skew_ms = rng.randrange(-SKEW_MS, SKEW_MS)
                a.skew_ms -= BEHIND_MS * (self.clocks.random() < self.far_behind)
                self.log(f"the clock of {a.name} jumps: off by {a.skew_ms} ms")
            case 7:
                await self._stop_or_start(a)
            case 8:
                if a.node is not None:
                    self.log(f"{a.name} syncs its disk")
                    a.checkpoint()

    async def _stop_or_start(self, node: SimNode) -> None:
        if node.node is None:
            self.log(f"{node.name} starts")
            await node.start()
            return
        self._count_sent(node)
        if self.rng.random() < 0.5:
            self.log(f"{node.name} crashes")
            await node.crash()
        else:
            self.log(f"{node.name} loses power")
            await node.power_cut()
            self.power_cuts += 1
            self.promises.power_cut(node)

    async def _flap(self, cluster: SimCluster, node: SimNode) -> None:
        """The links of a node break again and again while it catches up."""
        self.log(f"the links of {node.name} flap")
        for _ in range(self.rng.randrange(2, 7)):
            with trio.move_on_after(2):
                while not self._in_delta(node):
                    await trio.sleep(0.005)
            await trio.sleep(self.rng.uniform(0, 0.05))
            for other in cluster.nodes:
                cluster.fabric.sever(node.name, other.name)

    def _in_delta(self, node: SimNode) -> bool:
        """A part of a delta was applied and the last one was not."""
        if node.node is None:
            return False
        replicator = node.node.replicator
        return bool(replicator.incoming.catching_up()) and replicator.applied_count > 0

    def _count_sent(self, node: SimNode) -> None:
        self.sent += sent_by(node)
        assert node.node is not None
        self.repaired += sum(p.repair.repaired for p in node.node.peers)

    async def _heal(self, cluster: SimCluster, late: bool) -> None:
        self.log("everything heals")
        cluster.fabric.heal()
        for node in cluster.nodes:
            node.skew_ms = max(node.skew_ms, -SKEW_MS)
            if node.node is None:
                await node.start()
        if late:
            await self._add(cluster)
            await self._flap(cluster, cluster.nodes[-1])
        await self._until(cluster, "connect", cluster.until_connected)
        await self._until(cluster, "become equal", cluster.until_equal)
        await trio.sleep(1)
        for node in cluster.nodes:
            node.try_again()
        await trio.sleep(1)
        await self._until(cluster, "stay equal", cluster.until_equal)

    async def _until(
        self, cluster: SimCluster, what: str, wait: Callable[..., object]
    ) -> None:
        try:
            await wait(HEAL_LIMIT_S)  # type: ignore[misc]
        except AssertionError:
            self.problems.append(f"the nodes do not {what}")

    async def _damage(self, cluster: SimCluster) -> None:
        """A register loses part of what it knows; the heartbeats must find it."""
        node = self.rng.choice(cluster.nodes)
        key = damage_context(node)
        if key is None:
            return
        self.log(f"{node.name}: the context of {key!r} is damaged")
        horizon.EVERY_S = 1e6  # none is on its way when the registers are compared
        await trio.sleep(12)
        self.problems += checks.equal_registers(cluster.nodes)


def sent_by(node: SimNode) -> int:
    return node.node.replicator.sent_messages if node.node is not None else 0


def damage_context(node: SimNode) -> bytes | None:
    """Cut a register's context down to its siblings' dots."""
    with node.namespace._write() as db:
        registers = Registers(db)
        for (key,) in db.execute("SELECT key FROM register ORDER BY key").fetchall():
            register = registers.load(key)
            dots = context_of(s.dot for s in register.siblings)
            if set(register.context) != set(dots):
                poorer = Register(dots, register.siblings)
                assert encode_register(poorer) != encode_register(register)
                registers._save(key, poorer)
                registers.flush()
                node.namespace._warm.clear()
                if node.node is not None:
                    node.node.replicator.digest_corrected()
                return bytes(key)
    return None


@contextmanager
def small_limits(horizons: bool) -> Iterator[None]:
    """Deltas of several parts and early horizons although little happens."""
    before = (deltas.DELTA_BYTES, replicate._PAGE)
    rhythm = (horizon.EVERY_S, horizon.WORTH)
    deltas.DELTA_BYTES, replicate._PAGE = 300, 4
    horizon.EVERY_S, horizon.WORTH = (SYNC_EVERY_S + 1, 5) if horizons else (1e6, 10**6)
    try:
        yield
    finally:
        deltas.DELTA_BYTES, replicate._PAGE = before
        horizon.EVERY_S, horizon.WORTH = rhythm


def run_plan(plan: Plan, base: Path | None = None) -> Outcome:
    """One run in a directory of its own, below `base` or in memory."""
    directory = Path(tempfile.mkdtemp(prefix="dfs-sim-", dir=base or memory()))
    run = Run(plan)
    try:
        with small_limits(run.horizons):
            simulate(run.body, directory, plan.seed)
    except BaseExceptionGroup as group:
        run.problems += [f"{type(e).__name__}: {e}" for e in leaves(group)]
    except Exception as error:
        run.problems.append(f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(directory)
    virtual_s = float(run.events[-1].split()[0]) if run.events else 0.0
    return Outcome(
        plan, run.problems, run.events, run.done, run.sent, run.count, virtual_s
    )


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    out: list[BaseException] = []
    for error in group.exceptions:
        out += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return out


def memory() -> Path | None:
    """Where files cost no disk, if there is such a place."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() else None
