"""Trees that this node keeps whole, whoever else keeps them (`dfs pin`).

`STORE/pins` (docs/formats.md, 4.6) names their tops. Everything below is looked through
again after each change of the tree: what is not here is fetched, and what is here gets
the flag PINNED, so that it is not evicted. Low priority: it waits while a program waits
for data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import trio

from fusefs.errors import ChunkMissing, Corrupt
from fusefs.model import manifest
from fusefs.model.ids import HOLE, ChunkId, Ino, NodeId, split_ids
from fusefs.namespace import trees
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.types import Inode
from fusefs.store.marks import MaybeRoot, reached
from fusefs.store.store import Store
from fusefs.store.types import MAX_OBJECT_BYTES, PINNED, ROUND_TRIP_BYTES
from netnode.chunks import ChunkPlane
from netnode.core.fetch import Priority
from netnode.environment import Environment
from netnode.identity import write_private

log = logging.getLogger(__name__)

NAME = "pins"
FILES = 200
"""Looked at together."""
BATCH = 64
"""Chunks asked for at once."""
LIMIT_S = 300.0
"""For a fetch."""
GATHER_S = 1.0
"""From a change to the look at what changed."""
REST, LONGEST_REST_S = 20, 600.0
"""Times as long as a look took, but for fetching, nothing is looked at again."""
RETRY_S = 60.0
"""For what nobody had, or there was no room for."""
BUSY_PAUSE_S = 0.05
LOOK_S = 0.5
"""Whether what is fetched is wanted still."""

_decode = msgspec.json.Decoder(list[int]).decode


class Found(msgspec.Struct, frozen=True):
    """Of one tree, when it was looked through last."""

    files: int = 0
    bytes: int = 0
    missing: int = 0
    """Chunks that are not here; of what is behind a manifest node that is not, only
    that one is known."""


class Pinning:
    """One task, `run`."""

    def __init__(
        self,
        namespace: Namespace,
        store: Store,
        plane: ChunkPlane,
        environment: Environment,
    ) -> None:
        self._namespace = namespace
        self._store = store
        self._plane = plane
        self._environment = environment
        self._file = namespace.path.parent / NAME
        known = _read(self._file)
        self._pins: dict[Ino, Found | None] = dict.fromkeys(known or ())
        """None: it was not looked through yet."""
        self._wake, self._asked = trio.Event(), trio.Event()
        self._wake.set()
        self._ends, self._ended = int(known is not None), 0
        """Pins that ended, and those of them whose chunks have the flag no more. One at
        the start: for what left a pinned tree."""
        self._took_s = 0.0

    # -- inputs ----------------------------------------------------------------

    def pin(self, ino: Ino) -> None:
        """From now on. Raises OSError."""
        if ino not in self._pins:
            self._write([*self._pins, ino])
        self._pins[ino] = None
        self._at_once()

    def unpin(self, ino: Ino) -> bool:
        """What was kept for it is cache now; False: it was not pinned. Raises
        OSError."""
        if ino not in self._pins:
            return False
        self._write([other for other in self._pins if other != ino])
        del self._pins[ino]
        self._ends += 1
        self._at_once()
        return True

    def _at_once(self) -> None:
        self._wake.set()
        self._asked.set()

    async def unpinned(self) -> None:
        """Returns when what only `unpin` was called for is cache."""
        ends = self._ends
        while self._ended < ends:
            await trio.sleep(BUSY_PAUSE_S)

    def _write(self, pins: Sequence[Ino]) -> None:
        write_private(self._file, msgspec.json.encode(pins))

    def changed(self) -> None:
        """Something of the tree, or who is connected."""
        if self._pins:
            self._wake.set()

    def pins(self) -> dict[Ino, Found | None]:
        return dict(self._pins)

    # -- the task --------------------------------------------------------------

    async def run(self) -> None:
        """Keeps here what is pinned."""
        while True:
            await self._until_due()
            self._wake, self._asked = trio.Event(), trio.Event()
            if (ends := self._ends) > self._ended:
                await self._unpin_others()
                self._ended = ends
            self._took_s = 0.0
            for ino in tuple(self._pins):
                await self._look(ino)

    async def _until_due(self) -> None:
        incomplete = any(
            found is None or found.missing for found in self._pins.values()
        )
        with trio.move_on_after(RETRY_S if incomplete else float("inf")):
            await self._wake.wait()
        rest_s = min(REST * self._took_s, LONGEST_REST_S)
        with trio.move_on_after(max(GATHER_S, rest_s)):
            await self._asked.wait()

    async def _look(self, ino: Ino) -> None:
        asked, began = self._asked, self._environment.now()

        def goes_on() -> bool:
            """Who ends a pin waits for it; a large tree is looked through for hours."""
            return ino in self._pins and self._ends == self._ended

        look = _Look(self._store, self._plane, self._environment, goes_on)
        files = trees.files_below(self._namespace, ino)
        while page := await self._environment.offload(lambda: _next(files)):
            for row in page:
                await look.file(row)
            await look.flush()
            if not goes_on():
                return
        if not asked.is_set():  # else there may be more to find by now
            self._pins[ino] = look.found()
        self._took_s += self._environment.now() - began - look.fetching_s

    async def _unpin_others(self) -> None:
        """While a manifest of a pinned file cannot be read nobody knows which: they
        keep the flag until the next start."""

        def others() -> list[ChunkId]:
            pause = self._environment.pause
            flagged = [o.cid for o in self._store.stored() if o.flags & PINNED]
            kept = reached(flagged, self._roots(), self._store.get, pause)
            return [cid for cid in flagged if cid not in kept]

        cids = await self._environment.offload(others)
        await self._environment.offload(
            lambda: self._store.set_flags(cids, clear=PINNED)
        )

    def _roots(self) -> Iterator[MaybeRoot]:
        for ino in tuple(self._pins):
            for row in trees.files_below(self._namespace, ino):
                yield row.root, row.size, row.chunk_log2


class _Look:
    """One look through one tree."""

    def __init__(
        self,
        store: Store,
        plane: ChunkPlane,
        environment: Environment,
        goes_on: Callable[[], bool],
    ) -> None:
        """`goes_on`: no more, and what is asked for after it is left alone."""
        self._store = store
        self._plane = plane
        self._environment = environment
        self._goes_on = goes_on
        self._single: dict[bool, list[ChunkId]] = {True: [], False: []}
        """Chunks of files that have one, small ones apart."""
        self._writers: dict[NodeId, None] = {}
        self._files = self._bytes = self._missing = 0
        self.fetching_s = 0.0

    def found(self) -> Found:
        return Found(self._files, self._bytes, self._missing)

    async def file(self, row: Inode) -> None:
        self._files += 1
        self._bytes += row.size
        depth = manifest.depth(manifest.chunk_count(row.size, row.chunk_log2))
        root, writer = ChunkId(row.root), NodeId(row.node)
        if depth:
            await self._tree(root, depth, writer)
            return
        self._writers[writer] = None
        waiting = self._single[row.size <= ROUND_TRIP_BYTES]
        waiting.append(root)
        if len(waiting) >= BATCH:
            await self.flush()

    async def flush(self) -> None:
        """What was gathered of several files."""
        single, writers = self._single, tuple(self._writers)
        self._single, self._writers = {True: [], False: []}, {}
        for small, cids in single.items():
            await self._keep(cids, writers, small=small)

    async def _tree(self, node: ChunkId, level: int, writer: NodeId) -> None:
        if node == HOLE:
            return
        await self._keep([node], (writer,), small=True)
        try:
            data = self._store.get(node)
        except (ChunkMissing, Corrupt):
            return
        children = split_ids(data)
        if level == 1:
            for at in range(0, len(children), BATCH):
                await self._keep(children[at : at + BATCH], (writer,))
            return
        for child in children:
            await self._tree(child, level - 1, writer)

    async def _keep(
        self, cids: list[ChunkId], hint: Sequence[NodeId], *, small: bool = False
    ) -> None:
        offload, store = self._environment.offload, self._store
        if not self._goes_on():
            return
        absent = await offload(lambda: store.missing(cids))
        if absent:
            await self._fetch(absent, hint, small)
            self._missing += len(store.missing(absent))
        bare = await offload(lambda: store.without(PINNED, cids))
        if bare:
            await offload(lambda: store.set_flags(bare, set_=PINNED))

    async def _fetch(
        self, cids: list[ChunkId], hint: Sequence[NodeId], small: bool
    ) -> None:
        while self._plane.scheduler.busy:
            await trio.sleep(BUSY_PAUSE_S)
        need = len(cids) * (ROUND_TRIP_BYTES if small else MAX_OBJECT_BYTES)
        if not await self._environment.offload(lambda: self._has_room(need)):
            return
        left, finished = len(cids), trio.Event()

        def done(error: int, reason: str) -> None:
            nonlocal left
            left -= 1
            if not left:
                finished.set()

        began, fetch = self._environment.now(), self._plane.fetch
        numbers = [
            fetch((cid,), LIMIT_S, Priority.REPAIR, hint, done, small=small)
            for cid in cids
        ]
        while not finished.is_set() and self._goes_on():
            with trio.move_on_after(LOOK_S):
                await finished.wait()
        for number in numbers:
            self._plane.cancel(number)
        self.fetching_s += self._environment.now() - began

    def _has_room(self, need: int) -> bool:
        """Cache makes way for so many bytes; what programs here may write does not."""
        space = self._store.space
        if space.free_bytes() - need < space.min_free_bytes:
            self._store.evict(need)
        return space.free_bytes() - need >= space.min_free_bytes


def _next(files: Iterator[Inode]) -> list[Inode]:
    return list(islice(files, FILES))


def _read(file: Path) -> list[Ino] | None:
    """None when nothing ever was pinned, or nobody knows what."""
    try:
        return [Ino(ino) for ino in _decode(file.read_bytes())]
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        log.error("%s is damaged (%s): nothing more is pinned", file, error)
        return None
