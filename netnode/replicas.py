"""Background replication: what was written here goes to the nodes that keep it. Low
priority: it waits while a program waits for data. What this node keeps and missed is
fetched in `pulling`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import trio

from fusefs.errors import ChunkMissing, Corrupt
from fusefs.model import manifest
from fusefs.model.ids import HOLE, ChunkId, NodeId, split_ids
from fusefs.model.records import CONTENT
from fusefs.model.tx import Tx
from fusefs.store.marks import MaybeRoot, reached
from fusefs.store.store import Store
from fusefs.store.types import PUSHED, RESPONSIBLE
from netnode.chunks import OF_THIS_CHUNK, ChunkPlane
from netnode.copies import Copies
from netnode.core.basis import Basis
from netnode.core.leaving import Leaving
from netnode.core.membership import Membership
from netnode.core.placement import holders
from netnode.core.pushes import Pushes
from netnode.environment import Environment
from netnode.patching import bases_of
from netnode.peers import Peer
from netnode.rebalancing import Rebalancing
from netnode.transport import BrokenStream
from netnode.versions import DELAY_S, MAX_WAITING, Seen, Version, version_of
from netnode.wire.messages import AnyMessage, Have, Held, Put, Stored

log = logging.getLogger(__name__)

BUSY_PAUSE_S = 0.05
RETRY_S = 30.0
"""After a peer refused a chunk."""
SEEN_S = 60.0
"""So long a node that is still owed is not looked at again: its chunks have hardly
been collected meanwhile, with the least grace of twice that."""
SETTLE_BATCH = 512
TICK_S = 0.25
SCAN_S = 3600.0
"""What could not be remembered is looked for again after so long at the latest."""
WORTH_A_LOOK = 64
"""Chunks owed to a peer that comes: some may be replaced already."""
LOOK_S = 600.0
"""What was removed and collected here is owed to nobody; from one look to the next."""
MOST_UNOWED = 10_000
"""Remembered of what was replaced before it was owed."""


class Replicas:
    """Three tasks: `run` looks at what was published, `look_through` at what there is,
    `push` serves one peer."""

    def __init__(
        self,
        store: Store,
        plane: ChunkPlane,
        membership: Membership,
        environment: Environment,
        roots: Callable[[], Iterable[MaybeRoot]],
        seen: Seen,
        copies: Copies,
    ) -> None:
        """`roots`: of all versions that there are; `seen`: shared with who fetches."""
        self._store = store
        self._plane = plane
        self._membership = membership
        self._environment = environment
        self._roots = roots
        self._seen = seen
        self._copies = copies
        self._pushes = Pushes()
        self._leaving = Leaving()
        self._rebalancing = Rebalancing(
            store,
            plane,
            membership,
            environment,
            copies,
            self._pushes,
            self._leaving,
        )
        self._offers: dict[NodeId, dict[int, tuple[ChunkId, ...]]] = {}
        self._to_put: dict[NodeId, deque[tuple[ChunkId, Basis | None]]] = {}
        """Each with what the peer has in its place."""
        self._written: dict[bytes, Version] = {}
        """By register, or by root where others name it, in the order in which they are
        due: a file that is written again and again is looked at once a second, as it is
        then."""
        self._unowed: OrderedDict[bytes, None] = OrderedDict()
        """Roots and chunks that were written here and are owed to nobody yet, or were
        replaced before: the latest ones. A peer that saw one may name it again."""
        self._settled: list[ChunkId] = []
        self._scan = True
        """Look through everything not yet confirmed in the store."""
        self._room: dict[NodeId, int] = {}
        """What connected peers said; see `room_told`."""
        self._doubtful: set[NodeId] = set()
        """Peers that waited for what they are owed: some of it nobody needs by now."""
        self._scanned = self._looked = environment.now()
        plane.answers_to(self._answered, self._leaving.promised)

    # -- inputs ----------------------------------------------------------------

    def committed(self, txs: Iterable[Tx]) -> None:
        """Local transactions: their data is owed to others."""
        due = self._environment.now() + DELAY_S
        for tx in txs:
            for write in tx.writes:
                if write.key[:1] == CONTENT:
                    self._note(write.key, tx.node, write.value, due)

    def _note(self, key: bytes, writer: NodeId, value: bytes, due: float) -> None:
        """In place of the version that waits, when it does."""
        before = self._written.get(key)
        version = version_of(writer, key, value, before.due if before else due)
        if version is None:
            self._written.pop(key, None)
            return
        self._leave_out((version.root,))
        if before is None and len(self._written) >= MAX_WAITING:
            self._scan = True
        else:
            self._written[key] = version

    def _leave_out(self, cids: Iterable[bytes]) -> None:
        for cid in cids:
            self._unowed[cid] = None
            self._unowed.move_to_end(cid)
        while len(self._unowed) > MOST_UNOWED:
            self._unowed.popitem(last=False)

    def named(self, contents: Iterable[tuple[bytes, bytes]]) -> None:
        """Others wrote these: (key, `Content`, encoded). They merge, copy and bring
        back what was written here, whose bytes they need not have."""
        if not self._unowed:
            return
        due = self._environment.now() + DELAY_S
        for key, value in contents:
            version = version_of(self._membership.me, key, value, due)
            if version is not None and version.root in self._unowed:
                self._written.setdefault(version.root, version)

    def peer_came(self, peer: NodeId) -> None:
        self._pushes.peer_came(peer)
        if self._pushes.owed_to(peer) > WORTH_A_LOOK:
            self._doubtful.add(peer)
        if self._pushes.left_out:
            self._look_at_everything()

    def room_told(self, peer: NodeId, times: int) -> None:
        """How often it had room again."""
        if self._room.setdefault(peer, times) != times:
            self._room[peer] = times
            self._pushes.room_again(peer, self._environment.now())

    def peer_gone(self, peer: NodeId) -> None:
        self._room.pop(peer, None)
        self._pushes.peer_gone(peer)
        self._doubtful.discard(peer)
        self._interrupted(peer)

    def _interrupted(self, peer: NodeId) -> None:
        """What was open on a connection for data is lost with it."""
        self._pushes.interrupted(peer)
        self._offers.pop(peer, None)
        self._to_put.pop(peer, None)

    def members_changed(self) -> None:
        """Or how many keep a chunk. Other nodes keep what was written here now, and
        what is kept here may have lost a keeper, or need us no more."""
        self._pushes.keep_only(self._membership.members())
        self._leaving.clear()
        self._look_at_everything()

    def committed_unseen(self) -> None:
        """Local transactions that nobody told us of."""
        self._scan = True

    def _look_at_everything(self) -> None:
        self._scan = True
        self._rebalancing.begin()

    def backlog(self) -> int:
        """Chunks not confirmed by everyone who should keep them."""
        return len(self._pushes) + self._pushes.left_out + len(self._written)

    @property
    def rebalances(self) -> bool:
        """What more there is of it is not known yet, after a change of who keeps
        what."""
        return self._rebalancing.is_due

    # -- looking at what was published -----------------------------------------------

    async def run(self) -> None:
        """Turns published files into chunks owed."""
        while True:
            await trio.sleep(TICK_S)
            await self._settle()
            await self._forget_collected()
            await self._forget_replaced()
            await self._look_at_written()

    async def look_through(self) -> None:
        """What this node has, after a change: takes as long as that is much."""
        while True:
            await trio.sleep(TICK_S)
            if self._scan_is_due() and self._membership.others():
                await self._owe_unconfirmed()
            await self._rebalancing.step()

    def _scan_is_due(self) -> bool:
        pushes = self._pushes
        late = self._environment.now() - self._scanned >= SCAN_S
        again = pushes.overflowed or (late and pushes.left_out > 0)
        return self._scan or (again and pushes.has_room)

    async def _owe_unconfirmed(self) -> None:
        self._scan, self._scanned = False, self._environment.now()
        self._pushes.scan_begins()
        pushed = await self._environment.offload(
            lambda: [cid for cid, _ in self._store.pushed()]
        )
        self._leave_out(pushed[-MOST_UNOWED:])
        unconfirmed = await self._environment.offload(lambda: list(self._named(pushed)))
        exceptions, _ = await self._rebalancing.exceptions(unconfirmed)
        now, usual = self._environment.now(), self._copies.of_cluster
        for at, cid in enumerate(unconfirmed):
            self._owe((cid,), now + DELAY_S, exceptions.get(cid, usual))
            if at % SETTLE_BATCH == 0:
                await trio.lowlevel.checkpoint()

    async def _forget_collected(self) -> None:
        """Of what members that are away should get, too."""
        if self._environment.now() - self._looked < LOOK_S:
            return
        self._looked = self._environment.now()
        owed = self._pushes.owed()
        for cid in await self._environment.offload(lambda: self._store.missing(owed)):
            self._pushes.forget(cid)

    async def _forget_replaced(self) -> None:
        """Lest the disk of a member that had no room, or was away, is filled with
        versions of files that are not there any more."""
        now = self._environment.now()
        peers = {p for p in self._doubtful if not self._pushes.is_full(p, now)}
        if not peers:
            return
        owed = self._pushes.owed()
        named = await self._environment.offload(lambda: self._named(owed))
        replaced = set(owed) - named
        self._leave_out(replaced)
        for cid in replaced:
            self._pushes.forget(cid)
            self._leaving.end(cid)
        self._doubtful -= peers

    def _named(self, cids: Iterable[ChunkId]) -> set[ChunkId]:
        """Which of these belong to a file."""
        pause = self._environment.pause
        return reached(cids, self._roots(), self._store.get, pause)

    async def _look_at_written(self) -> None:
        now = self._environment.now()
        while self._written:
            key, version = next(iter(self._written.items()))
            if version.due > now:
                return
            del self._written[key]
            count = self._copies.of(version.ino)
            if version.size >> version.chunk_log2 < 2:
                self._owe(self._expand(version, count), now, count)
            else:
                found = await self._environment.offload(
                    lambda version=version, count=count: list(  # type: ignore[misc]
                        self._expand(version, count)
                    )
                )
                self._owe(found, now, count)

    def _expand(self, version: Version, keepers: int) -> Iterator[ChunkId]:
        """Chunks and manifest nodes of a file, without parts looked at before for as
        many keepers."""
        depth = manifest.depth(manifest.chunk_count(version.size, version.chunk_log2))
        yield from self._walk(version.root, depth, version.due, keepers)

    def _walk(
        self, node: bytes, level: int, due: float, keepers: int
    ) -> Iterator[ChunkId]:
        if not node or node == HOLE:
            return
        if level == 0:
            yield ChunkId(node)
            return
        cid = ChunkId(node)
        try:
            if self._is_known(cid, due, keepers):
                return
            data = self._store.get(cid)
        except (ChunkMissing, Corrupt):
            return
        self._seen.note(cid, due, keepers, self._membership.me)
        yield cid
        for child in split_ids(data):
            yield from self._walk(child, level - 1, due, keepers)

    def _is_known(self, node: ChunkId, due: float, keepers: int) -> bool:
        """Whether its chunks were owed when it was looked at, and not written anew
        since: after a collection the same bytes are pushed data again, in the node
        as in its chunks. Raises ChunkMissing."""
        seen_at = self._seen.when(node, keepers, self._membership.me)
        if seen_at is None:
            return False
        if due - seen_at < SEEN_S and node in self._pushes:
            return True
        return not self._store.flags(node) & PUSHED

    def _owe(self, cids: Iterable[ChunkId], due: float, count: int) -> None:
        """To the others of so many nodes."""
        members = self._membership.members()
        me = self._membership.me
        for cid in cids:
            self._unowed.pop(cid, None)
            self._leaving.promised((cid,))
            keepers = holders(cid, members, count, writer=me)
            others = [node for node in keepers if node != me]
            if self._pushes.owe(cid, others, due):
                self._settled.append(cid)

    # -- pushing -----------------------------------------------------------------------

    async def push(self, to: Peer) -> None:
        """The task of one connected peer: offers, then sends what it lacks."""
        peer = to.id
        last = None
        while True:
            while self._plane.fetches_now(peer):
                await trio.sleep(BUSY_PAUSE_S)
            connection = self._plane.bulk(peer)
            if connection is not last:
                self._interrupted(peer)
                last = connection
            if connection is None:
                await trio.sleep(TICK_S)
                continue
            to_put = self._to_put.get(peer)
            if to_put:
                cid, basis = to_put.popleft()
                now = self._environment.now()
                if self._pushes.is_full(peer, now):
                    self._pushes.full(peer, cid, now)
                    continue
                if self._plane.served_lately(peer, cid):
                    # It fetched it meanwhile; another offer settles it.
                    self._pushes.refused(peer, cid, now)
                    continue
                try:
                    await self._plane.room(peer, connection)
                    put = Put(cid)
                    if not await self._plane.send_chunk(connection, put, None, basis):
                        self._pushes.forget(cid)
                except BrokenStream:
                    self._interrupted(peer)
                continue
            batch = self._offer(peer)
            if batch:
                number = self._plane.next_number()
                self._offers.setdefault(peer, {})[number] = batch
                self._plane.offered(peer, batch)
                connection.send(Have(number, batch, keep=True))
            await trio.sleep(TICK_S)

    def _offer(self, peer: NodeId) -> tuple[ChunkId, ...]:
        if peer in self._doubtful:
            return ()
        return self._pushes.offer(peer, self._environment.now())

    def _answered(self, peer: NodeId, message: AnyMessage) -> None:
        if isinstance(message, Held):
            offered = self._offers.get(peer, {}).pop(message.number, None)
            if offered is None:
                return
            lacked, settled = self._pushes.answered(peer, offered, message.cids)
            self._settled += settled
            bases = bases_of(message)
            to_put = self._to_put.setdefault(peer, deque())
            to_put.extend((cid, bases.get(cid)) for cid in lacked)
        elif isinstance(message, Stored):
            now = self._environment.now()
            if message.refused in OF_THIS_CHUNK:
                self._pushes.refused(peer, message.cid, now + RETRY_S)
            elif message.refused:
                self._pushes.full(peer, message.cid, now)
                self._doubtful.add(peer)
            else:
                self._pushes.has_space(peer)
                if self._pushes.confirmed(peer, message.cid):
                    self._settled.append(message.cid)

    async def _settle(self) -> None:
        """Enough others keep them: our copy is one of the replicas from now on, or
        cache where we are no keeper."""
        while self._settled:
            self._give_up(self._settled[:SETTLE_BATCH])
            batch = self._settled[:SETTLE_BATCH]
            await self._environment.offload(
                lambda batch=batch: self._store.set_flags(  # type: ignore[misc]
                    batch, set_=RESPONSIBLE, clear=PUSHED
                )
            )
            del self._settled[: len(batch)]

    def _give_up(self, confirmed: Sequence[ChunkId]) -> None:
        """Not in a thread: nothing is promised while it happens."""
        gone = self._leaving.taken(confirmed)
        if gone:
            self._store.set_flags(gone, clear=PUSHED | RESPONSIBLE)
            left = set(gone)
            self._settled = [cid for cid in self._settled if cid not in left]
            log.info("chunks that others keep now: %d", len(gone))
