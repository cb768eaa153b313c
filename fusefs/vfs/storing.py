"""Storing the chunks of drafts: when they are whole, when a version is made of them,
and when buffers run out.

The caller holds the file's lock, but for `seal`. Chunks that are files of their own are
stored several at a time: hashing and writing them leaves the interpreter to others.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from fusefs.model.ids import CHUNK_ID_BYTES, HOLE, ChunkId, chunk_id
from fusefs.model.manifest import chunk_count, differing
from fusefs.model.tx import Body
from fusefs.store.store import Store
from fusefs.vfs.buffers import Pool
from fusefs.vfs.draft import Difference, Draft
from fusefs.vfs.files import File
from fusefs.vfs.missing import Missing
from fusefs.vfs.objects import Objects
from fusefs.vfs.patch import Patch

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

log = logging.getLogger(__name__)

MAX_BODIES = 32
"""Small chunks, and nodes of the manifest, kept for the transaction to take along
(model/tx.py says how many it does)."""
LARGE_NODE = 32 * CHUNK_ID_BYTES
"""Of the manifest; a shorter one travels as it is."""
MAX_UNSYNCED = 4096
"""Objects of a file remembered for its next fsync (4 GiB of writes); beyond it
fsync looks at all of them."""
MAX_UNCOMMITTED = 65_536
"""Beyond it the next transaction waits for all that was stored (`risks.py`)."""
MANY_CHUNKS = 4
"""So many large ones are worth the threads."""
THREADS = min(4, os.cpu_count() or 1)
AT_ONCE = 64
"""Chunks handed to the threads together: an error is noticed after these."""

Numbered = tuple[int, Patch]
T = TypeVar("T")
R = TypeVar("R")


class Storing:
    """Thread-safe, each draft under its file's lock."""

    def __init__(
        self, store: Store, objects: Objects, pool: Pool, body_bytes: int
    ) -> None:
        self._store = store
        self._objects = objects
        self._pool = pool
        self._body_bytes = body_bytes
        self._start_lock = threading.Lock()  # starting the threads once
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    # -- whole chunks ----------------------------------------------------------

    def seal(self, file: File, draft: Draft, index: int, patch: Patch) -> None:
        """Hash and store a chunk that is whole, without the lock: readers go on,
        and a writer that comes along writes to a copy."""
        with file.lock:
            buffer, version = patch.buffer, patch.version
            if (
                buffer is None
                or patch.busy
                or not patch.fresh.covers(0, draft.mask + 1)
            ):
                _journal_anew(file, draft)
                return
            patch.busy = True
        data = buffer[: draft.mask + 1]
        try:
            cid = chunk_id(data)
            self._store.put(data, cid)
        except BaseException:
            self._unseal(file, patch, buffer)
            raise
        with file.lock:
            if patch.buffer is not buffer:
                self._pool.give(buffer)
                _journal_anew(file, draft)
                return
            patch.busy = False
            if patch.version == version:
                patch.stored(cid, self._pool)
                self.note_unsynced(file, (cid,))
                if draft.log is not None:
                    draft.log.shared(draft, index, (cid,))
            else:
                _journal_anew(file, draft)

    def _unseal(self, file: File, patch: Patch, buffer: memoryview) -> None:
        with file.lock:
            if patch.buffer is buffer:
                patch.busy = False
            else:
                self._pool.give(buffer)

    def store_whole(self, file: File, draft: Draft, index: int, patch: Patch) -> None:
        """A chunk of which every byte is fresh, wherever in the draft it will be."""
        ((_, data),) = patch.pieces()
        patch.stored(self.put(file, draft, data), self._pool)

    # -- any chunks ------------------------------------------------------------

    def settle(self, file: File, draft: Draft) -> None:
        """Store every chunk whose id is not known yet. Raises Missing, once for all
        that is not here."""
        absent = self._store_all(
            file, draft, [item for item in draft.patches.items() if item[1].unsettled]
        )
        if absent:
            raise Missing(absent)

    def spill(self, file: File, draft: Draft, wanted_bytes: int) -> bool:
        """Store chunks until the buffers in use are down to that, those first which
        give most for the same work. False when something is missing for it."""
        left = [item for item in draft.patches.items() if item[1].spillable]
        left.sort(key=lambda item: item[1].held_bytes)
        complete = True
        while left and (excess := self._pool.used_bytes - wanted_bytes) > 0:
            chosen: list[Numbered] = []
            while left and excess > 0:
                chosen.append(left.pop())
                excess -= chosen[-1][1].held_bytes
            complete = not self._store_all(file, draft, chosen) and complete
        return complete

    def _store_all(
        self, file: File, draft: Draft, patches: Sequence[Numbered]
    ) -> list[ChunkId]:
        """Gives what is missing; the others are stored."""
        absent: list[ChunkId] = []
        if len(patches) >= MANY_CHUNKS and draft.mask >= self._body_bytes:
            for first in range(0, len(patches), AT_ONCE):
                part = patches[first : first + AT_ONCE]
                absent += self._store_together(file, draft, part)
            return absent
        for index, patch in patches:
            try:
                self._store_one(file, draft, index, patch)
            except Missing as missing:
                absent += missing.cids
        return absent

    def _store_one(self, file: File, draft: Draft, index: int, patch: Patch) -> None:
        assembled = draft.assemble(index, patch)
        try:
            cid = HOLE
            if assembled.data:
                over = draft.difference(index, patch, len(assembled.data))
                cid = self.put(file, draft, assembled.data, over)
        finally:
            if assembled.scratch is not None:
                self._pool.give(assembled.scratch)
        patch.stored(cid, self._pool)

    def _store_together(
        self, file: File, draft: Draft, patches: Sequence[Numbered]
    ) -> list[ChunkId]:
        """All of them end before this returns: they read the draft, which is ours."""
        tasks = self._run(lambda item: self._stored_large(draft, *item), patches)
        absent: list[ChunkId] = []
        problem: BaseException | None = None
        for task, (index, patch) in zip(tasks, patches):
            try:
                self._take_in(file, draft, index, patch, task)
            except Missing as missing:
                absent += missing.cids
            except BaseException as error:
                problem = problem or error
        if problem is not None:
            raise problem
        return absent

    def _take_in(
        self,
        file: File,
        draft: Draft,
        index: int,
        patch: Patch,
        task: Future[ChunkId | None],
    ) -> None:
        cid = task.result()
        if cid is None:
            self._store_one(file, draft, index, patch)
            return
        self.note_unsynced(file, (cid,))
        patch.stored(cid, self._pool)

    def _stored_large(self, draft: Draft, index: int, patch: Patch) -> ChunkId | None:
        """In a thread of ours, changing nothing of the draft. None: it is a hole, or
        travels with the transaction."""
        assembled = draft.assemble(index, patch)
        try:
            if len(assembled.data) <= self._body_bytes:
                return None
            return self._store.put(assembled.data, removes=draft.shrinks)
        finally:
            if assembled.scratch is not None:
                self._pool.give(assembled.scratch)

    def store_in_parts(
        self, file: File, draft: Draft, size: int
    ) -> Iterator[tuple[int, list[ChunkId]]]:
        """Every chunk of the draft that is no hole, cut into objects of `size`: its
        number and theirs. The draft stays as it is. Raises Missing."""
        count = chunk_count(draft.size, draft.base.log2)
        numbers = [i for i in range(count) if draft.chunk_is_data(i)]
        for first in range(0, len(numbers), AT_ONCE):
            part = numbers[first : first + AT_ONCE]
            tasks = self._run(lambda i: self._stored_parts(draft, i, size), part)
            for index, task in zip(part, tasks):
                cids = task.result()
                self.note_unsynced(file, set(cids))
                yield index, cids

    def _stored_parts(self, draft: Draft, index: int, size: int) -> list[ChunkId]:
        length = draft.length(index)
        scratch = self._pool.take(length)
        try:
            reach = draft.read_chunk(index, 0, scratch[:length])
            cuts = range(0, reach, size)
            return [self._store.put(scratch[i : min(i + size, reach)]) for i in cuts]
        finally:
            self._pool.give(scratch)

    def renew(self, cids: Collection[ChunkId]) -> None:
        """What was stored a while ago and nothing names yet. Raises Missing."""
        if gone := self._store.touch(cids):
            raise Missing(gone)

    # -- threads ---------------------------------------------------------------

    def _run(self, work: Callable[[T], R], items: Sequence[T]) -> list[Future[R]]:
        """Each in a thread of ours. All have ended when this returns, well or not: they
        read a draft whose lock the caller holds."""
        threads = self._started()
        if threads is None:
            return [_done(work, item) for item in items]
        tasks: list[Future[R]] = []
        for item in items:
            try:
                tasks.append(threads.submit(work, item))
            except RuntimeError:  # it is over, this moment
                tasks.append(_done(work, item))
        for task in tasks:
            task.exception()
        return tasks

    def _started(self) -> ThreadPoolExecutor | None:
        """All of the threads, or None: there is one processor, the system gives no
        more threads, or it is over."""
        with self._start_lock:
            if self._threads is None and THREADS > 1 and not self._closed:
                # Takes 25 ms, which a mount need not wait for.
                from concurrent.futures import ThreadPoolExecutor

                threads = ThreadPoolExecutor(THREADS, "vfs-store")
                go = threading.Event()
                try:  # each waits, so that the next one needs a thread of its own
                    for _ in range(THREADS):
                        threads.submit(go.wait)
                    self._threads = threads
                except RuntimeError as error:
                    log.warning("storing without threads: %s", error)
                    threads.shutdown(wait=False, cancel_futures=True)
                finally:
                    go.set()
            return self._threads

    def close(self) -> None:
        """Nothing will be stored in threads any more."""
        with self._start_lock:
            self._closed = True
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()

    # -- one object ------------------------------------------------------------

    def put(
        self,
        file: File,
        draft: Draft,
        data: bytes | memoryview,
        over: Difference | None = None,
        *,
        most_bodies: int = MAX_BODIES,
    ) -> ChunkId:
        """Store a chunk of the draft's next version, and keep it, or how it differs
        from an older one, for the transaction to take along."""
        if len(data) > self._body_bytes or len(draft.bodies) >= most_bodies:
            cid = self._store.put(data, removes=draft.shrinks)
        elif over is not None:
            cid = self._store.put(data, removes=draft.shrinks)
            draft.bodies.append(over.body(cid, data))
        else:
            data = bytes(data)
            cid = self._store.put(data, removes=draft.shrinks)
            draft.bodies.append(Body(cid, data))
        self.note_unsynced(file, (cid,))
        return cid

    def put_node(
        self, file: File, draft: Draft, node: bytes, instead: ChunkId
    ) -> ChunkId:
        """A node of the next version's manifest, which is read again soon."""
        over = None
        if len(node) >= LARGE_NODE and instead != HOLE:
            over = self._node_difference(node, instead)
        cid = self.put(file, draft, node, over, most_bodies=2 * MAX_BODIES)
        self._objects.remember(cid, node)
        return cid

    def _node_difference(self, node: bytes, instead: ChunkId) -> Difference | None:
        """None when most of it differs."""
        ranges = tuple(differing(self._objects.node(instead), node))
        if 2 * sum(end - start for start, end in ranges) > len(node):
            return None
        return Difference(instead, ranges)

    def note_unsynced(self, file: File, cids: Collection[ChunkId]) -> None:
        """The file consists of these, too, and nobody knows whether they are durable.
        The caller holds `file.lock`."""
        if len(file.uncommitted) < MAX_UNCOMMITTED:
            file.uncommitted.update(cids)
        if len(file.unsynced) + len(cids) > MAX_UNSYNCED:
            file.unsynced.clear()
            file.synced = False
            file.overflows += 1
        else:
            file.unsynced.update(cids)


def _done(work: Callable[[T], R], item: T) -> Future[R]:
    """The work, done here."""
    from concurrent.futures import Future

    task: Future[R] = Future()
    try:
        task.set_result(work(item))
    except Exception as error:
        task.set_exception(error)
    return task


def _journal_anew(file: File, draft: Draft) -> None:
    """A whole chunk was not stored by whom the journal counted on."""
    if draft.log is not None and file.draft is draft:
        draft.log.rewrite(draft)
