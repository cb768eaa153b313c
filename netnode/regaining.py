"""Copies that this node should keep and has lost: found damaged by a reader or by fsck,
forgotten with the index of objects, or taken by a power cut (by going back to a copy of
the store, likewise), after others were told that they are here.

Others count on them: whoever wrote a chunk gives its own copy up to eviction once
enough nodes have said that they keep it. So the whole tree is looked through, and what
is missing of what this node keeps is fetched, each time that a member is connected
which was not asked yet.
"""

from __future__ import annotations

import logging
from contextlib import suppress

import trio

from fusefs.errors import NoSpace
from fusefs.model.ids import NodeId
from fusefs.namespace.namespace import Namespace
from fusefs.store.store import Store
from netnode.chunks import ChunkPlane
from netnode.core.membership import Membership
from netnode.environment import Environment
from netnode.pulling import LIMIT_S, Pulling

log = logging.getLogger(__name__)

LOOK_S = 10.0
PAUSE_S = 0.5
PAGE = 500
"""Files told at once: about as many as are looked at in two seconds."""


class Regaining:
    """One task."""

    def __init__(
        self,
        namespace: Namespace,
        store: Store,
        plane: ChunkPlane,
        pulling: Pulling,
        membership: Membership,
        environment: Environment,
    ) -> None:
        self._namespace = namespace
        self._store = store
        self._plane = plane
        self._pulling = pulling
        self._membership = membership
        self._environment = environment
        self._lost_s: float | None = None
        self._asked: set[NodeId] = set()
        """Who was connected when everything was looked through."""

    async def run(self) -> None:
        """Looks now and then whether something was lost."""
        if self._namespace.life.lost_after() is not None:
            with suppress(NoSpace):  # a disk that is full took little of late
                self._store.note_lost()
        while True:
            await trio.sleep(LOOK_S)
            lost_s = self._store.lost_s()
            if lost_s != self._lost_s:
                self._lost_s = lost_s
                self._asked.clear()
            if lost_s is None:
                continue
            others = self._membership.others()
            connected = {node for node in others if self._plane.connected(node)}
            if connected <= self._asked:
                continue
            log.info("looking for what this node should keep and has not")
            await self._look()
            self._asked |= connected
            if self._asked.issuperset(others):
                self._store.regained(lost_s)

    async def _look(self) -> None:
        """Ends when everything is here that could be had."""
        after: bytes | None = b""
        while after is not None:
            await self._until_looked_at_but(PAGE)
            after, versions = await self._environment.offload(
                lambda after=after: self._namespace.contents(after, PAGE)  # type: ignore[misc]
            )
            self._pulling.again(versions)
        await self._until_looked_at_but(0)
        with trio.move_on_after(LIMIT_S):
            while len(self._plane.scheduler):
                await trio.sleep(PAUSE_S)

    async def _until_looked_at_but(self, files: int) -> None:
        while len(self._pulling) > files:
            await trio.sleep(PAUSE_S)
