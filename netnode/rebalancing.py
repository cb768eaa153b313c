"""Whose chunks are whose after a change of members, or of how many copies there are to
be: every keeper sees to it that the others have theirs, and who is one no more has them
confirm that they keep it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from contextlib import suppress

import trio
from xxhash import xxh3_64_intdigest

from fusefs.errors import NoSpace
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
AGAIN_S = 300.0
"""Until what is to be given up is looked for again, where that could not be told."""
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
        self._begins: bool | None = None
        """None: whether everything is balanced since before the start is still to be
        looked at."""
        self._is_done = True
        self._turns: list[tuple[int, float]] = []
        """When each is; see `step`."""
        self._kept: deque[tuple[ChunkId, int]] = deque()
        """Found for these turns, and not owed yet; how many nodes keep each."""
        self._again = False
        """The last turn: it was not known how many nodes should keep what."""

    def begin(self) -> None:
        """Everything this node is responsible for is looked through."""
        self._begins = True
        self._kept.clear()

    def _view(self) -> int:
        """Of whom everything depends on."""
        copies = (self._copies.of_cluster, *sorted(self._copies.trees.items()))
        members = sorted(self._membership.members())
        return xxh3_64_intdigest(repr((members, copies)).encode()) >> 1

    def _note(self, view: int | None) -> None:
        """For the next start, which looks through everything where this fails."""
        with suppress(NoSpace):
            self._store.set_balanced(view)

    async def step(self) -> None:
        """The first in a chunk's order acts at once; by the turn of the next one a
        question tells it that nothing is to be done."""
        now = self._environment.now()
        if self._begins is None:
            self._begins = self._store.balanced() != self._view()
        if self._begins and self._membership.others():
            self._begins = self._is_done = False
            self._note(None)
            self._again = False
            last = min(self._copies.most, len(self._membership.members()))
            self._turns = [(turn, now + turn * TURN_S) for turn in range(last + 1)]
        if self._turns and self._turns[0][1] <= now:
            turn, _ = self._turns.pop(0)
            self._leaving.looks()
            await self._find(turn, is_last=not self._turns)
        await self._owe()
        if not self._kept:
            self._leaving.looked()
        if self._again and not self._turns:
            self._again = False
            self._turns = [(len(self._membership.members()), now + AGAIN_S)]
        if not (self._is_done or self.is_due or self._pushes.is_behind):
            self._is_done = True
            self._note(self._view())

    @property
    def is_due(self) -> bool:
        """Not everything was looked through yet, after a change."""
        begins = self._begins and self._membership.others()
        return bool(begins or self._turns or self._kept)

    async def _find(self, turn: int, *, is_last: bool) -> None:
        """Chunks in whose order this node is at `turn`; the last turn is for those
        that others keep now, and that are given up once these say so."""
        kept = await self._environment.offload(
            lambda: [o.cid for o in self._store.stored() if o.flags & RESPONSIBLE]
        )
        exceptions, all_known = await self.exceptions(kept)
        if self._begins:  # meanwhile: what was found may not be so any more
            return
        self._again |= is_last and not all_known
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
        """Those that more or fewer nodes keep than the setting says, and whether none
        is missing that more do. What is needed of manifests is fetched."""
        for _ in range(MOST_LEVELS):
            found = await self._environment.offload(
                lambda: self._copies.exceptions(
                    cids, self._store.get, self._environment.pause
                )
            )
            absent = found.unread_of_more | found.unread
            if not absent or not await self._bring(absent):
                break
        return found.counts, not found.unread_of_more

    async def _bring(self, nodes: Iterable[ChunkId]) -> bool:
        """Whether all of them are here now."""
        waiting, brought = list(nodes), True
        for at in range(0, len(waiting), BROUGHT):
            batch = waiting[at : at + BROUGHT]
            brought &= await self._plane.bring(batch, BRING_LIMIT_S, small=True)
        return brought
