"""Whose chunks are whose after a change of members, or of how many copies there are to
be: every keeper sees to it that the others have theirs, and who is one no more has them
confirm that they keep it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

import trio

from fusefs.errors import FsError
from fusefs.model.ids import ChunkId
from fusefs.store.store import Store
from fusefs.store.types import RESPONSIBLE
from netnode.chunks import ChunkPlane
from netnode.copies import Copies
from netnode.core.leaving import Leaving
from netnode.core.membership import Membership
from netnode.core.placement import holders
from netnode.core.pushes import Pushes
from netnode.environment import Environment
from netnode.versions import DELAY_S

TURN_S = 30.0
"""Between the keepers of a chunk."""
BATCH = 512
"""Chunks looked at without a pause."""
BROUGHT = 64
"""Manifest nodes asked for at once."""
BRING_LIMIT_S = 60.0
MOST_LEVELS = 8
"""Of a manifest, of which one is known after the other."""


class Rebalancing:
    """A part of `Replicas`, whose task calls `step`."""

    def __init__(
        self,
        store: Store,
        plane: ChunkPlane,
        membership: Membership,
        environment: Environment,
        copies: Copies,
        pushes: Pushes,
        leaving: Leaving,
    ) -> None:
        self._store = store
        self._plane = plane
        self._membership = membership
        self._environment = environment
        self._copies = copies
        self._pushes = pushes
        self._leaving = leaving
        self._begins = False
        self._turns: list[tuple[int, float]] = []
        """When each is; see `step`."""
        self._kept: deque[tuple[ChunkId, int]] = deque()
        """Found for these turns, and not owed yet; how many nodes keep each."""

    def begin(self) -> None:
        """Everything this node is responsible for is looked through."""
        self._begins = True

    async def step(self) -> None:
        """The first in a chunk's order acts at once; by the turn of the next one a
        question tells it that nothing is to be done."""
        now = self._environment.now()
        if self._begins and self._membership.others():
            self._begins = False
            last = min(self._copies.most, len(self._membership.members()))
            self._turns = [(turn, now + turn * TURN_S) for turn in range(last + 1)]
        if self._turns and self._turns[0][1] <= now:
            turn, _ = self._turns.pop(0)
            await self._find(turn, is_last=not self._turns)
        await self._owe()

    async def _find(self, turn: int, *, is_last: bool) -> None:
        """Chunks in whose order this node is at `turn`; the last turn is for those
        that others keep now, and that are given up once these say so."""
        kept = await self._environment.offload(
            lambda: [o.cid for o in self._store.stored() if o.flags & RESPONSIBLE]
        )
        exceptions, all_known = await self.exceptions(kept)
        usual = self._copies.of_cluster
        members, me = self._membership.members(), self._membership.me
        for at, cid in enumerate(kept):
            count = exceptions.get(cid, usual)
            keepers = holders(cid, members, count)
            if keepers.index(me) == turn if me in keepers else is_last and all_known:
                self._kept.append((cid, count))
            if at % BATCH == 0:
                await trio.lowlevel.checkpoint()

    async def _owe(self) -> None:
        """Of those that were found as many as are remembered at a time."""
        members, me = self._membership.members(), self._membership.me
        due = self._environment.now() + DELAY_S
        while self._kept and self._pushes.has_room:
            for _ in range(min(BATCH, len(self._kept))):
                cid, count = self._kept.popleft()
                keepers = holders(cid, members, count)
                if me not in keepers and cid not in self._pushes:
                    self._leaving.begin(cid)
                self._pushes.owe(cid, [n for n in keepers if n != me], due)
                if cid not in self._pushes:
                    self._leaving.end(cid)
            await trio.lowlevel.checkpoint()

    async def exceptions(
        self, cids: Collection[ChunkId]
    ) -> tuple[dict[ChunkId, int], bool]:
        """Those that more or fewer nodes keep than the setting says, and whether these
        are all. What is needed of manifests is fetched."""
        for _ in range(MOST_LEVELS):
            found, absent = await self._environment.offload(
                lambda: self._known_exceptions(cids)
            )
            if not absent or not await self._bring(absent):
                break
        return found, not absent

    def _known_exceptions(
        self, cids: Collection[ChunkId]
    ) -> tuple[dict[ChunkId, int], set[ChunkId]]:
        """And the manifest nodes that are not here."""
        absent: set[ChunkId] = set()

        def load(node: ChunkId) -> bytes:
            try:
                return self._store.get(node)
            except FsError:
                absent.add(node)
                raise

        pause = self._environment.pause
        return self._copies.exceptions(cids, load, pause), absent

    async def _bring(self, nodes: Iterable[ChunkId]) -> bool:
        """Whether all of them are here now."""
        waiting = list(nodes)
        for at in range(0, len(waiting), BROUGHT):
            batch = waiting[at : at + BROUGHT]
            if not await self._plane.bring(batch, BRING_LIMIT_S, small=True):
                return False
        return True
