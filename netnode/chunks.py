"""The chunk plane: fetch, serve, and bring replicas to where they belong.

One bulk connection per peer, used in both directions. `core.fetch` decides whom to
ask, `core.pushes` what is owed to whom; this module carries it out. Bytes from
peers are verified by the store before anybody hears of them. A router may forget the
connection, which is idle most of the time, and leave the control connection: both
sides ping here, too.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Iterable, Sequence

import trio

from fusefs.errors import ChunkMissing, Corrupt, DiskFailed, FsError, NoSpace
from fusefs.model.ids import ChunkId, NodeId
from fusefs.store.store import Store
from fusefs.store.types import RESPONSIBLE
from netnode.connection import Connection, Refused
from netnode.core.basis import Basis
from netnode.core.fetch import (
    Action,
    Ask,
    CancelAsk,
    FetchScheduler,
    Find,
    Finished,
    Outcome,
    Priority,
)
from netnode.core.membership import Membership
from netnode.core.placement import holders
from netnode.core.spaceagain import SpaceAgain
from netnode.environment import Environment
from netnode.heartbeat import DEAD_S, HEARTBEAT_S
from netnode.patching import Message, Patching, bases_of
from netnode.source import MAX_TO_SERVE, Source
from netnode.transport import BrokenStream, Buffer
from netnode.wire.frames import ProtocolError
from netnode.wire.messages import (
    AnyMessage,
    CancelGet,
    Chunk,
    Get,
    Have,
    Held,
    NoChunk,
    Patch,
    Ping,
    Pong,
    Put,
    Stored,
)

log = logging.getLogger(__name__)

BAD_BYTES = "the bytes are not those of the id"
NO_BASIS = "its basis is not here"
OF_THIS_CHUNK = (BAD_BYTES, NO_BASIS)
"""Other reasons of a Stored that refuses are of all chunks: there is no space."""

IN_PLACE_BYTES = 64 << 10
"""Chunks up to this size are read and stored without a thread."""
STORING = 4
"""Chunks per connection that are being verified and stored while more arrive."""
QUIET_S = 0.3
"""A peer that fetched within this time is probably not done: pushes wait."""

Done = Callable[[int, str], None]
"""Told (errno or 0, reason) once."""
PushAnswer = Callable[[NodeId, AnyMessage], None]
Promised = Callable[[Iterable[ChunkId]], None]


class ChunkPlane:
    """See the module."""

    def __init__(
        self,
        store: Store,
        membership: Membership,
        environment: Environment,
        replicas: Callable[[], int],
    ) -> None:
        self._store = store
        self._membership = membership
        self._environment = environment
        self._replicas = replicas
        self._sources: dict[NodeId, Source] = {}
        self.scheduler = FetchScheduler(self._likely)
        self.patching = Patching(store)
        self._requests: dict[int, Done] = {}
        self._numbers = 0
        self._timer = trio.Event()
        self.space_again = SpaceAgain()
        self._push_answer: PushAnswer | None = None
        self._on_promise: Promised = lambda _: None
        self.received_bytes = 0
        self.served_bytes = 0
        self.served_chunks = 0
        self.rejected = 0
        """Chunks that were not what they claimed to be."""

    def _likely(self, cid: ChunkId) -> Sequence[NodeId]:
        return holders(cid, self._membership.members(), self._replicas())

    def answers_to(self, handler: PushAnswer, promised: Promised) -> None:
        """Who hears Held and Stored for what was offered and put; `promised`: told of
        what peers are about to be told that it is kept here."""
        self._push_answer = handler
        self._on_promise = promised

    def keep(self, cids: Collection[ChunkId]) -> None:
        """These are here, and counted on from now on. Raises NoSpace."""
        self._on_promise(cids)
        bare = {*self._store.without(RESPONSIBLE, list(cids))}
        self._store.set_flags([c for c in cids if c in bare], set_=RESPONSIBLE)

    # -- fetching ------------------------------------------------------------------

    def fetch(
        self,
        cids: Sequence[ChunkId],
        limit_s: float,
        priority: Priority,
        hint: Sequence[NodeId],
        done: Done,
        *,
        small: bool = False,
    ) -> int:
        """Bring chunks into the store; a number for `cancel`. `small`: many of them may
        be under way together."""
        self._numbers += 1
        number = self._numbers
        missing = self._store.missing(cids)
        if not missing:
            done(0, "")
            return number
        self._requests[number] = done
        now = self._environment.now()
        until = now + limit_s
        self._act(
            self.scheduler.want(number, missing, priority, hint, now, until, small)
        )
        return number

    async def bring(
        self,
        cids: Sequence[ChunkId],
        limit_s: float,
        hint: Sequence[NodeId] = (),
        *,
        small: bool = False,
    ) -> bool:
        """The same for the background. Whether all of them are here when it returns."""
        finished, result = trio.Event(), list[int]()

        def done(error: int, reason: str) -> None:
            result.append(error)
            finished.set()

        self.fetch(cids, limit_s, Priority.REPAIR, hint, done, small=small)
        await finished.wait()
        return result == [0]

    def cancel(self, number: int) -> None:
        """Nobody waits any more; `done` is not called."""
        if self._requests.pop(number, None) is not None:
            self._act(self.scheduler.cancel(number, self._environment.now()))

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Ask():
                    self._ask(self._sources[action.peer], action)
                case CancelAsk():
                    source = self._sources.get(action.peer)
                    if source is not None:
                        source.named.pop(action.cid, None)
                        source.send(CancelGet((action.cid,)))
                case Find():
                    source = self._sources[action.peer]
                    self._numbers += 1
                    source.finding[self._numbers] = action.cids
                    source.send(Have(self._numbers, action.cids))
                case Finished():
                    self._finish(action)
        self._timer.set()  # whatever led to them may have moved the next event

    def _ask(self, source: Source, ask: Ask) -> None:
        bases = source.name(self.patching.named(ask.cids))
        source.send(Get(ask.cids, bases, ask.urgent))

    def _finish(self, finished: Finished) -> None:
        done = self._requests.pop(finished.request, None)
        if done is None:
            return
        match finished.outcome:
            case Outcome.OK:
                done(0, "")
            case Outcome.TIMED_OUT:
                done(errno.ETIMEDOUT, "no peer sent the data in time")
            case Outcome.NO_SPACE:
                done(errno.ENOSPC, "no space left for data from peers")
            case Outcome.NOT_STORED:
                done(errno.EIO, "data from peers cannot be stored here")
            case Outcome.UNREACHABLE:
                count = len(self._sources)
                who = f"none of {count} connected peers" if count else "no peer"
                done(errno.EHOSTUNREACH, f"{who} has the data")

    async def keep_time(self) -> None:
        """The task that lets deadlines and hedges happen."""
        while True:
            at = self.scheduler.next_event()
            now = self._environment.now()
            if at is not None and at <= now:
                self._act(self.scheduler.tick(now))
                await trio.lowlevel.checkpoint()
                continue
            self._timer = trio.Event()
            with trio.move_on_at(at if at is not None else float("inf")):
                await self._timer.wait()

    # -- peers ---------------------------------------------------------------------

    def peer_joined(self, peer: NodeId) -> None:
        """Its control connection is there; the bulk connection will be."""
        self._sources[peer] = Source(peer)
        self._act(self.scheduler.peer_joined(peer, self._environment.now()))

    def peer_gone(self, peer: NodeId) -> None:
        source = self._sources.pop(peer, None)
        if source is not None and source.connection is not None:
            source.connection.stream.close()
        self._act(self.scheduler.peer_gone(peer, self._environment.now()))

    def has_bulk(self, peer: NodeId) -> bool:
        source = self._sources.get(peer)
        return source is not None and source.connection is not None

    def connected(self, peer: NodeId) -> bool:
        return peer in self._sources

    async def serve(self, peer: NodeId, connection: Connection) -> None:
        """One bulk connection, until it ends. Raises as Connection.receive."""
        source = self._sources.get(peer)
        if source is None:
            raise BrokenStream("a bulk connection without a control connection")
        before, source.connection = source.connection, connection
        if before is not None:
            before.stream.close()
            source.lost()
            self._reset(peer)
        unsent, source.unsent = source.unsent, []
        for message in unsent:
            connection.send(message)
        broken: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.stream.run)
                nursery.start_soon(self._serve_chunks, source, connection)
                nursery.start_soon(_keep_alive, source, connection)
                try:
                    await self._receive(source, connection, nursery)
                except (BrokenStream, ProtocolError, Refused) as error:
                    broken = error
                nursery.cancel_scope.cancel()
            if broken is not None:
                raise broken
        finally:
            connection.stream.close()
            if source.connection is connection:
                source.connection = None
                source.lost()
                if self._sources.get(peer) is source:
                    self._reset(peer)

    async def _receive(
        self, source: Source, connection: Connection, nursery: trio.Nursery
    ) -> None:
        room = trio.Semaphore(STORING)
        while received := await connection.receive():
            for message, body in received:
                connection.check_taken()
                if not isinstance(message, Chunk | Put | Patch):
                    self._handle(source, connection, message)
                    continue
                await room.acquire()
                if _size(message, body) <= IN_PLACE_BYTES:
                    await self._take(source, message, body, room)
                else:
                    nursery.start_soon(self._take, source, message, body, room)

    def _reset(self, peer: NodeId) -> None:
        """What was asked on the broken connection is asked again."""
        self._act(self.scheduler.peer_is_back(peer, self._environment.now()))

    # -- messages ------------------------------------------------------------------

    def _handle(
        self, source: Source, connection: Connection, message: AnyMessage
    ) -> None:
        now = self._environment.now()
        match message:
            case Get():
                source.cancelled.difference_update(message.cids)
                at = message.urgent
                source.to_serve.add(message.cids[:at], message.cids[at:])
                theirs, wanted = bases_of(message), set(message.cids)
                source.bases.update((c, b) for c, b in theirs.items() if c in wanted)
                if len(source.to_serve) > MAX_TO_SERVE:
                    raise ProtocolError("it asks for more than it takes")
                source.work.set()
            case CancelGet():
                if source.to_serve:
                    source.cancelled.update(message.cids)
                if len(source.cancelled) > MAX_TO_SERVE:  # most were sent before
                    source.cancelled.intersection_update(source.to_serve)
            case NoChunk():
                for cid in message.cids:
                    source.named.pop(cid, None)
                    self._act(self.scheduler.absent(cid, source.peer, now))
            case Have():
                held = self._held(message)
                absent = set(message.cids).difference(held) if message.keep else ()
                bases = source.name(self.patching.named(absent))
                connection.send(Held(message.number, held, bases))
            case Held():
                asked = source.finding.pop(message.number, None)
                if asked is not None:
                    self._act(
                        self.scheduler.held(source.peer, asked, message.cids, now)
                    )
                elif self._push_answer is not None:
                    self._push_answer(source.peer, message)
            case Stored():
                if self._push_answer is not None:
                    self._push_answer(source.peer, message)
            case Ping():
                source.pings = True
                connection.send(Pong(message.number))

    def _held(self, message: Have) -> tuple[ChunkId, ...]:
        held = self._here(message.cids)
        if message.keep and held:
            try:
                self.keep(held)
            except NoSpace:
                return ()
            # The asker drops its copy for it: what was evicted before the flag was
            # set is not held, and afterwards nothing is evicted.
            held = self._here(held)
        return held

    def _here(self, cids: Sequence[ChunkId]) -> tuple[ChunkId, ...]:
        absent = set(self._store.missing(cids))
        return tuple(cid for cid in cids if cid not in absent)

    async def _take(
        self, source: Source, message: Message, body: Buffer, room: trio.Semaphore
    ) -> None:
        """Verify and store one chunk."""
        cid = message.cid
        is_replica = isinstance(message, Put) or (
            isinstance(message, Patch) and message.keep
        )
        if is_replica:
            self._on_promise((cid,))
        basis = source.named.pop(cid, None)
        problem, why = "", Outcome.OK
        try:
            unasked = isinstance(message, Patch) and basis != _basis_of(message)
            if not unasked:
                await self._keep(message, body, RESPONSIBLE if is_replica else 0)
                self.patching.note(message, body, basis is not None)
            elif not self._store.has(cid):
                raise Corrupt("nobody named that basis")
            elif is_replica:  # it came on another way meanwhile
                self._store.set_flags((cid,), set_=RESPONSIBLE)
        except NoSpace as error:
            why = Outcome.NO_SPACE
            self.space_again.refused(self._store.space.room_for_copies_bytes())
            problem = str(error)
        except DiskFailed as error:
            why = Outcome.NOT_STORED
            log.warning("storing a chunk failed: %s", error)
            problem = str(error)
        except (ChunkMissing, Corrupt) as error:
            if isinstance(message, Patch) and basis is not None:
                self._patch_failed(source, message)
                return
            self.rejected += 1
            log.warning("%x sent a bad chunk: %s", source.peer, error)
            problem = BAD_BYTES
        except (FsError, OSError) as error:
            log.warning("storing a chunk failed: %s", error)
            problem = str(error)
        finally:
            room.release()
            self.received_bytes += len(body)
        now = self._environment.now()
        if is_replica:
            source.send(Stored(cid, problem))
        if not problem:
            self._act(self.scheduler.arrived(cid, source.peer, now))
        elif why != Outcome.OK and not is_replica:
            self._act(self.scheduler.not_kept(cid, source.peer, why, now))
        elif not is_replica:
            self._act(self.scheduler.absent(cid, source.peer, now))
        # Else the answer to a Get of it is still to come, and may find room: copies
        # leave more of it.

    async def _keep(self, message: Message, body: Buffer, flags: int) -> None:
        def keep() -> None:
            whole = self.patching.whole(message, body)
            self._store.put_verified(message.cid, whole, flags)

        if _size(message, body) <= IN_PLACE_BYTES:
            keep()
        else:
            await self._environment.offload(keep)

    def _patch_failed(self, source: Source, patch: Patch) -> None:
        """Its basis is gone, or not what it was: now as a whole."""
        log.info("%s is asked for as a whole", patch.cid.hex())
        self.patching.useless(patch.cid)
        if patch.keep:
            source.send(Stored(patch.cid, NO_BASIS))
        else:
            source.send(Get((patch.cid,), urgent=1))

    # -- serving -------------------------------------------------------------------

    async def _serve_chunks(self, source: Source, connection: Connection) -> None:
        while True:
            while source.to_serve:
                try:
                    await source.room(connection, self._environment.now)
                except BrokenStream:
                    return  # the receiving side notices, too
                cid = source.to_serve.next()
                basis = source.bases.pop(cid, None)
                if cid in source.cancelled:
                    source.cancelled.discard(cid)
                    continue
                source.note_served(cid, self._environment.now())
                absent = NoChunk((cid,))
                await self.send_chunk(connection, Chunk(cid), absent, basis)
            source.cancelled.clear()
            await source.work.wait()
            source.work = trio.Event()

    async def send_chunk(
        self,
        connection: Connection,
        message: Chunk | Put,
        absent: NoChunk | None,
        basis: Basis | None = None,
    ) -> bool:
        """Read a chunk and send it, as a patch over the `basis` that the peer has if
        that is shorter; False: not here."""
        try:
            made, body = await self._made(message, basis)
        except (ChunkMissing, Corrupt) as error:
            log.debug("not served: %s", error)
            if absent is not None:
                connection.send(absent)
            return False
        connection.send_with_body(made, body)
        self.served_bytes += len(body)
        self.served_chunks += 1
        return True

    async def _made(
        self, message: Chunk | Put, basis: Basis | None
    ) -> tuple[Message, bytes]:
        if self._store.size(message.cid) <= IN_PLACE_BYTES:
            return self.patching.made(message, basis)
        return await self._environment.offload(
            lambda: self.patching.made(message, basis)
        )

    async def room(self, peer: NodeId, connection: Connection) -> None:
        """Wait until a push should be sent. Raises BrokenStream."""
        source = self._sources.get(peer)
        if source is not None:
            await source.room(connection, self._environment.now)

    def bulk(self, peer: NodeId) -> Connection | None:
        """The bulk connection, for pushes."""
        source = self._sources.get(peer)
        return source.connection if source is not None else None

    def fetches_now(self, peer: NodeId) -> bool:
        """Programs there or here wait for data: background work should not."""
        source = self._sources.get(peer)
        if source is None or self.scheduler.busy:
            return True
        recent = self._environment.now() - source.served_at < QUIET_S
        return recent or bool(source.to_serve)

    def served_lately(self, peer: NodeId, cid: ChunkId) -> bool:
        """The peer has fetched this chunk from us since it was offered."""
        source = self._sources.get(peer)
        return source is not None and cid in source.served

    def offered(self, peer: NodeId, cids: Iterable[ChunkId]) -> None:
        """The peer is asked whether it has them. What it fetched before and has not, it
        could not store, or did not keep."""
        source = self._sources.get(peer)
        if source is not None:
            for cid in cids:
                source.served.pop(cid, None)

    def next_number(self) -> int:
        """For a Have of the pushes."""
        self._numbers += 1
        return self._numbers


async def _keep_alive(source: Source, connection: Connection) -> None:
    while connection.silent_s <= DEAD_S or not source.pings:
        connection.send(Ping(0))
        await trio.sleep(HEARTBEAT_S)
    log.info("the bulk connection with %x is silent", source.peer)
    connection.stream.close()


def _basis_of(patch: Patch) -> Basis:
    return Basis(patch.basis, patch.offset)


def _size(message: Message, body: Buffer) -> int:
    """Of the chunk that came."""
    return message.size if isinstance(message, Patch) else len(body)
