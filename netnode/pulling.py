"""What this node keeps and missed is fetched: files that were written while it or the
writer was away, and what was lost here. Low priority: it waits while a program waits
for data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

import trio

from fusefs.errors import ChunkMissing, Corrupt, NoSpace
from fusefs.model import manifest
from fusefs.model.ids import HOLE, ChunkId, Ino, NodeId, split_ids
from fusefs.store.store import Store
from fusefs.store.types import ROUND_TRIP_BYTES
from netnode.chunks import ChunkPlane
from netnode.copies import Copies
from netnode.core.fetch import Priority
from netnode.core.membership import Membership
from netnode.core.placement import holders
from netnode.environment import Environment
from netnode.versions import DELAY_S, MAX_WAITING, Seen, Version, version_of

LIMIT_S = 300.0
"""For a fetch."""
BATCH = 64
BUSY_PAUSE_S = 0.05
TICK_S = 0.25


class Pulling:
    """One task, `run`. `seen`: shared with who pushes; `on_missed`: told of files that
    were looked at again and of which something could not be had."""

    def __init__(
        self,
        store: Store,
        plane: ChunkPlane,
        membership: Membership,
        environment: Environment,
        seen: Seen,
        copies: Copies,
        on_missed: Callable[[Ino], None],
    ) -> None:
        self._store = store
        self._plane = plane
        self._membership = membership
        self._environment = environment
        self._seen = seen
        self._copies = copies
        self._on_missed = on_missed
        self._waiting: deque[Version] = deque()

    # -- inputs ----------------------------------------------------------------

    def applied(self, writes: Sequence[tuple[NodeId, bytes, bytes]]) -> None:
        """(writer, key, value) of others' content that came late: we may be one of
        its keepers."""
        due = self._environment.now() + DELAY_S
        for writer, key, value in writes:
            self._note(version_of(writer, key, value, due))

    def again(self, writes: Sequence[tuple[NodeId, bytes, bytes]]) -> None:
        """Chunks of any of these may have to be kept here that are not, or are here as
        cache."""
        now = self._environment.now()
        self._seen.clear()
        for writer, key, value in writes:
            self._note(version_of(writer, key, value, now, again=True))

    def _note(self, version: Version | None) -> None:
        """What is too much to be remembered its writer brings when it is back."""
        if version is not None and len(self._waiting) < MAX_WAITING:
            self._waiting.append(version)

    def __len__(self) -> int:
        """Files that were told and not looked at yet."""
        return len(self._waiting)

    # -- the task --------------------------------------------------------------

    async def run(self) -> None:
        """Turns them into chunks to fetch."""
        while True:
            await trio.sleep(TICK_S)
            await self._look()

    async def _look(self) -> None:
        now = self._environment.now()
        looked = 0
        while self._waiting and self._waiting[0].due <= now and looked < BATCH:
            if self._plane.scheduler.busy or len(self._plane.scheduler) > BATCH:
                return
            looked += 1
            version = self._waiting.popleft()
            await self._pull(version)

    async def _pull(self, version: Version) -> None:
        count = manifest.chunk_count(version.size, version.chunk_log2)
        depth = manifest.depth(count)
        keepers = self._copies.of(version.ino)
        if not depth:
            self._pull_chunks(version, keepers, [ChunkId(version.root)])
        elif keepers > 1 and len(self._membership.members()) > 1:
            await self._pull_tree(version, keepers, ChunkId(version.root), depth)

    async def _pull_tree(
        self, version: Version, keepers: int, node: ChunkId, level: int
    ) -> None:
        """Manifest nodes are small and needed to know the rest: all are fetched."""
        here, writer = not self._store.missing((node,)), version.writer
        seen = self._seen.when(node, keepers, writer) is not None
        if node == HOLE or (here and seen):
            return
        if not here and not await self._plane.bring((node,), LIMIT_S, (writer,)):
            self._missed(version)
            return
        try:
            data = self._store.get(node)
        except (ChunkMissing, Corrupt):
            return
        self._seen.note(node, version.due, keepers, writer)
        self._pull_chunks(version, keepers, [node])
        children = split_ids(data)
        if level > 1:
            for child in children:
                await self._pull_tree(version, keepers, child, level - 1)
            return
        for at in range(0, len(children), BATCH):
            self._pull_chunks(version, keepers, children[at : at + BATCH])
            while len(self._plane.scheduler) > BATCH:
                await trio.sleep(BUSY_PAUSE_S)

    def _pull_chunks(
        self, version: Version, keepers: int, cids: Sequence[ChunkId]
    ) -> None:
        members, me = self._membership.members(), self._membership.me
        mine = [
            cid
            for cid in cids
            if cid != HOLE
            and me in holders(cid, members, keepers, writer=version.writer)
        ]
        missing = self._store.missing(mine)
        if len(missing) < len(mine):
            self._keep(version, set(mine).difference(missing))
        room = self._store.space.room_for_copies_bytes()
        if missing and room <= 0:
            self._plane.space_again.refused(room)
            self._missed(version)
            return
        for cid in missing:

            def done(error: int, reason: str, cid: ChunkId = cid) -> None:
                if error:
                    self._missed(version)
                else:
                    self._keep(version, (cid,))

            self._plane.fetch(
                (cid,),
                LIMIT_S,
                Priority.REPAIR,
                (version.writer,),
                done,
                small=version.size <= ROUND_TRIP_BYTES,
            )

    def _keep(self, version: Version, cids: Collection[ChunkId]) -> None:
        try:
            self._plane.keep(cids)
        except NoSpace:
            self._missed(version)

    def _missed(self, version: Version) -> None:
        """Something of it. What came late, and there was no room for, its writer offers
        until there is."""
        if version.again:
            self._on_missed(version.ino)
