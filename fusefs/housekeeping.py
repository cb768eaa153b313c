"""What a store needs now and then: syncing, evicting, collecting garbage; and what a
process needs that works with it, giving back memory.

One thread with low priority beside the hot path, in the worker, or in the node
when there is no worker. A failure is logged and tried again at the next turn.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from fusefs import memory
from fusefs.errors import ChunkMissing, DiskFailed, FsError, NoSpace
from fusefs.model.ids import ChunkId
from fusefs.model.vector import Vector
from fusefs.namespace.namespace import Namespace
from fusefs.relief import Relief
from fusefs.store import gc
from fusefs.store.marks import MaybeRoot, Root
from fusefs.store.store import Store

log = logging.getLogger("dfs.housekeeping")

SYNC_EVERY_S = 5.0
"""What was written without fsync is on disk after about this long."""
EVICT_EVERY_S = 60.0
GIVE_BACK_EVERY_S = 30.0
"""Memory that was freed, to the system."""
LOOK_EVERY_S = 20.0
COLLECT_EVERY_S = 3600.0
GROWN_BYTES, GROWN_SHARE = 2 << 30, 0.25
"""New objects since the last collection that make one worth while: old versions of
files that are written again and again are most of them."""
GROWN_GRACE_S = 900.0
SCARCE_SHARE = 0.1
"""With less of the disk free than this, or than twice what is never used, old versions
and removed files go after `SCARCE_GRACE_S`."""
SCARCE_EVERY_S, SCARCE_GRACE_S = 60.0, 120.0
FULL_EVERY_S, FULL_GRACE_S = 5.0, 15.0
"""When a write was refused: for what was written here lately. The chunks of unpublished
writes are renewed first, so that this is only for the moment between storing the last
of a version and its transaction."""
DELTA_MARGIN_S = 60.0
"""So long before registers were seen to come, copies of what they name may have."""
REST_FULL = 10
"""As `REST`, while a program waits for what can be collected."""
KEPT_FREE_BYTES, KEPT_FREE_SCARCE_BYTES = 256 << 20, 1 << 20
"""Of the table of small objects, for new ones: as much is kept as it holds, or this if
that is more. What many small files took goes back to a disk that is scarce."""
REST = 50
"""Times as long as a look took it is not repeated: counting what a large store holds
takes a second, and nobody waits for it."""
PAUSE_S = 0.002
"""Given to others between a few hundred objects of a collection."""
HELD, ASIDE = "held", "aside"
"""In the store while changes of others are held back (formats.md, section 12), and
while files of an earlier namespace are not brought into this one yet."""
FETCH_LIMIT_S = 10.0
MOST_FAILURES = 3
"""Of fetches in one collection: then nobody is asked any more."""

Fetch = Callable[[ChunkId, Callable[[], bool]], None]
"""Brings a chunk into the store, from a peer; told whether it is not wanted any more.
Raises FsError."""


class Stopped(Exception):
    """The store is being closed: a collection ends where it is."""


class Housekeeping:
    """Starts its thread; `stop` before the store is closed."""

    def __init__(
        self,
        store: Store,
        namespace: Namespace,
        open_roots: Callable[[], Iterator[Root]] = lambda: iter(()),
        renew_leases: Callable[[], None] = lambda: None,
        late_roots: Callable[[], Iterator[Root]] = lambda: iter(()),
        fetch: Fetch | None = None,
    ) -> None:
        """`open_roots`: data that only open files name, `late_roots`: since they were
        asked for (asked for behind the registers); `renew_leases`: marks what nothing
        names yet as new; `fetch`: None without peers."""
        self._store, self._namespace = store, namespace
        self._open_roots = open_roots
        self._late_roots = late_roots
        self._fetch = fetch
        self._failures = 0
        """Of fetches in this collection."""
        self._renew_leases = renew_leases
        self._collected_s = time.monotonic()
        self._bytes_then = store.statistics().bytes
        self._vector_seen: Vector = {}
        self._changed_s = self._collected_s
        """When the tree was last seen to have changed."""
        self._rested_s = 0.0
        self._settled_s = self._collected_s
        self._delta_began_s: float | None = None
        self._ended = threading.Event()
        self._runs = 0
        self._thread = threading.Thread(target=self._run, name="house", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        self._do(self._store.reserve.make)
        tasks: list[tuple[float, Callable[[], None]]] = [
            (SYNC_EVERY_S, self._sync),
            (EVICT_EVERY_S, self._evict),
            (EVICT_EVERY_S, self._shrink),
            (FULL_EVERY_S, partial(self._unless_resting, self._make_room, REST_FULL)),
            (GIVE_BACK_EVERY_S, memory.give_back),
            (LOOK_EVERY_S, partial(self._unless_resting, self._look, REST)),
        ]
        began_s = time.monotonic()
        due_s = [began_s + every_s for every_s, _ in tasks]
        while not self._ended.wait(max(0.0, min(due_s) - time.monotonic())):
            turn = due_s.index(min(due_s))
            every_s, task = tasks[turn]
            self._do(task)
            due_s[turn] = time.monotonic() + every_s

    def _do(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Stopped:
            pass
        except NoSpace as error:
            log.info("waits for room: %s", error)
        except DiskFailed as error:
            log.warning("trying again later: %s", error)
        except Exception:
            log.exception("failed; trying again later")

    def _sync(self) -> None:
        """What needs no room first: a disk may be full."""
        self._settle()
        self._look_for_delta()
        self._store.reserve.make()
        self._namespace.fold()
        if self._is_scarce():  # later there may be no room for what the logs hold
            self._store.database.checkpoint(0)
            self._namespace.checkpoint(0)
        else:
            self._namespace.checkpoint()

    def _evict(self) -> None:
        if freed := self._store.evict():
            log.info("evicted bytes=%d", freed)

    def _shrink(self) -> None:
        kept = KEPT_FREE_SCARCE_BYTES
        if not self._is_scarce():
            kept = max(KEPT_FREE_BYTES, self._store.database.size_bytes())
        if given := self._store.shrink(kept, self._pause):
            log.info("gave back bytes=%d of small.db", given)

    def _unless_resting(self, look: Callable[[], None], rest: int) -> None:
        began_s = time.monotonic()
        if began_s < self._rested_s:
            return
        look()
        now_s = time.monotonic()
        self._rested_s = now_s + rest * (now_s - began_s)

    def _make_room(self) -> None:
        """Collect at once when a write was refused and that may help."""
        refused = self._store.space.refused
        if refused.is_set() and self._is_scarce() and self._may_have_garbage():
            refused.clear()
            self._collect(SCARCE_GRACE_S, FULL_GRACE_S)

    def _look(self) -> None:
        """Collect when it is time, and sooner when there is a reason."""
        found = self._store.statistics()
        since_s = time.monotonic() - self._collected_s
        grown = found.bytes - self._bytes_then
        if self._is_scarce() and self._may_have_garbage():
            if since_s >= SCARCE_EVERY_S:
                self._collect(SCARCE_GRACE_S)
        elif grown > max(GROWN_BYTES, self._bytes_then * GROWN_SHARE):
            if since_s >= GROWN_GRACE_S:
                self._collect(GROWN_GRACE_S)
        elif since_s >= COLLECT_EVERY_S:
            self._collect(gc.GRACE_S)

    def _is_scarce(self) -> bool:
        space = self._store.space
        least = max(space.total_bytes() * SCARCE_SHARE, 2 * space.min_free_bytes)
        return space.free_bytes() < least

    def _may_have_garbage(self) -> bool:
        """Whether no collection began since all that the last change may have freed is
        old enough. On a full disk nothing grows, and what `rm` took is still there."""
        vector = self._namespace.vector()
        if vector != self._vector_seen:
            self._vector_seen, self._changed_s = vector, time.monotonic()
        return self._collected_s <= self._changed_s + SCARCE_GRACE_S

    def _collect(self, grace_s: float, own_grace_s: float | None = None) -> None:
        collect = partial(self._collect_once, grace_s, own_grace_s)
        Relief(self._namespace, self._store).removing(collect)

    def _collect_once(self, grace_s: float, own_grace_s: float | None) -> None:
        self._runs += 1
        self._failures = 0
        self._renew_leases()
        self._look_for_delta()
        began_s = time.monotonic()
        done = gc.collect(
            self._store,
            itertools.chain(
                self._unknown_roots(),
                self._open_roots(),
                self._namespace.live_roots(),
                self._late_roots(),
            ),
            now_s=time.time(),
            grace_s=max(grace_s, self._delta_takes_s()),
            own_grace_s=own_grace_s,
            load=self._manifest_node,
            sync=self._settle,
            run=self._runs,
            pause=self._pause,
        )
        self._collected_s = began_s
        self._bytes_then = self._store.statistics().bytes
        log.info("collected garbage: %s", done)

    def _settle(self) -> None:
        """All that was written is on disk: chunks, then the registers that name them.
        Before a collection, too, lest a power cut brings a version back whose chunks
        are gone."""
        self._settled_s = time.monotonic()
        self._store.sync_all()
        self._namespace.sync()

    def _unknown_roots(self) -> Iterator[MaybeRoot]:
        """What is kept may be of files that the namespace does not have: of others,
        whose changes are held back, for days perhaps; of this node, which joined anew
        and is not level with the others yet. Looked at before the registers, which have
        them when the reason goes."""
        store = self._namespace.path.parent
        if (store / HELD).exists() or any((store / ASIDE).glob("*/meta.db")):
            yield None

    def _look_for_delta(self) -> None:
        if not self._namespace.in_delta():
            self._delta_began_s = None
        elif self._delta_began_s is None:
            self._delta_began_s = time.time() - DELTA_MARGIN_S

    def _delta_takes_s(self) -> float:
        """How long registers have been on their way here; copies of what they name may
        have come first. 0: none are. What is older may go, also on a full disk, which
        would not take the rest of them otherwise."""
        began_s = self._delta_began_s
        return time.time() - began_s if began_s is not None else 0.0

    def _manifest_node(self, node: ChunkId) -> bytes:
        """From a peer if need be: with more members than replicas not every node is
        kept here, and without one of them nothing but cache could go."""
        try:
            return self._store.get(node)
        except ChunkMissing:
            if self._fetch is None or self._failures >= MOST_FAILURES:
                raise
        try:
            self._fetch(node, self._ended.is_set)
        except FsError:
            self._failures += 1
            raise
        return self._store.get(node)

    def _pause(self) -> None:
        """A collection takes minutes where there is much, or manifests have to come."""
        if self._ended.wait(PAUSE_S):
            raise Stopped
        if time.monotonic() - self._settled_s >= SYNC_EVERY_S:
            self._do(self._settle)
