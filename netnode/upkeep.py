"""What a node does for its store now and then: looking at every object, seeing to it
that enough nodes keep what this one keeps, and syncing.

Eviction and garbage are `fusefs.housekeeping`'s, which the worker runs, or the node
when there is no worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from fusefs.model.ids import ChunkId
from fusefs.namespace.namespace import Namespace
from fusefs.store.scrub import START
from fusefs.store.store import Store
from fusefs.store.types import RESPONSIBLE
from netnode.chunks import ChunkPlane
from netnode.core.fetch import Priority
from netnode.environment import Environment

log = logging.getLogger(__name__)

SCRUB_EVERY_S = 10.0
SCRUB_BYTES = 8 << 20
"""Hashed in one step: some 10 ms of one core, so 3 GB an hour at most."""
SCRUB_PAUSE_S = 6 * 3600.0
"""From the end of one pass to the next."""
FETCH_LIMIT_S = 300.0
FETCH_EVERY_S = 30.0
"""Between two questions for what nobody had."""
PEERS_S = 0.5
"""At the start nobody is connected yet."""
SYNC_S = 5.0
"""What a node stored for others, a power cut may take so long: then it looks for what
it keeps (regaining.py)."""


class Upkeep:
    """One task. `damaged` counts the objects that were found bad and removed."""

    def __init__(
        self, store: Store, plane: ChunkPlane, environment: Environment
    ) -> None:
        self._store = store
        self._plane = plane
        self._environment = environment
        self._lost: dict[ChunkId, None] = {}
        """Damaged ones that are not asked for at the moment."""
        self.damaged = 0
        self.passes = 0

    async def run(self) -> None:
        """What a power cut may have damaged first, then everything, slowly."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_asking)
            await self._look()

    async def _look(self) -> None:
        self._fetch_again(await self._environment.offload(self._store.check_suspects))
        after: ChunkId | None = START
        while True:
            await trio.sleep(SCRUB_EVERY_S)
            if self._plane.scheduler.busy:
                continue
            after = await self._scrub(after or START)
            if after is None:
                self.passes += 1
                await trio.sleep(SCRUB_PAUSE_S)

    async def _scrub(self, after: ChunkId) -> ChunkId | None:
        step = await self._environment.offload(
            lambda: self._store.scrub(after, SCRUB_BYTES)
        )
        self._fetch_again(step.damaged)
        return step.next

    def _fetch_again(self, damaged: list[ChunkId]) -> None:
        self.damaged += len(damaged)
        self._lost |= dict.fromkeys(damaged)
        for cid in damaged:
            log.warning("chunk %s was damaged; fetching it again", cid.hex())
        self._ask()

    async def _keep_asking(self) -> None:
        while True:
            while not (self._lost and self._plane.scheduler.peers):
                await trio.sleep(PEERS_S)
            self._ask()
            await trio.sleep(FETCH_EVERY_S)

    def _ask(self) -> None:
        lost, self._lost = self._lost, {}
        for cid in lost:

            def done(error: int, reason: str, cid: ChunkId = cid) -> None:
                if error:
                    self._lost[cid] = None
                else:  # its flags went with it: it may have counted as a copy
                    self._store.set_flags((cid,), set_=RESPONSIBLE)

            self._plane.fetch((cid,), FETCH_LIMIT_S, Priority.REPAIR, (), done)


async def sync_disk(
    namespace: Namespace | None,
    store: Store,
    environment: Environment,
    progress: Callable[[], int],
) -> None:
    """What this process stored is on disk after a while. `progress` differs when
    something was stored. The namespace is the worker's business where there is one: it
    knows what has to be durable before."""
    done = -1
    while True:
        await trio.sleep(SYNC_S)
        state = progress()
        # Also lets go of what the worker collected, and notes what was served.
        await environment.offload(store.sync_all)
        if state != done and namespace is not None:
            await environment.offload(namespace.sync)
        done = state
