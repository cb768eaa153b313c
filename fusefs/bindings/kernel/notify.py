"""Telling the kernel what changed elsewhere: the binding's `Invalidator`.

connection.py says why this suffices for answers on their way. Two more rules:

* A notification may wait in the kernel: of a name for the lock of its directory (a
  local mkdir, which with sync=all itself waits for peers), of data for a page that
  is being read (which may wait for a fetch). So none of these is sent by a thread
  that serves requests or brings answers of peers: they go to threads of their own,
  started as needed. Attributes alone take no lock and are sent at once.
* The caller waits until the kernel has forgotten (once for all it tells `together`),
  because then the change is acknowledged to its origin; but where a request in flight
  holds the lock (`Connection.is_held`), or turns out to (`let_go`: it held the lock
  before we heard of it), no longer, and never longer than `notify_wait_s`: the
  notification is then queued behind that request, and two nodes that change one
  directory at once do not wait for each other.
* A kill does not end a thread that waits in the kernel so, and the process keeps its
  descriptors as long as one that shares them is left. Somebody was in the middle of a
  transaction, perhaps: his locks would stay, and the next worker could not give the
  answer that all of it waits for. So these threads have a table of descriptors of their
  own, and read no file.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final, TypeAlias

from fusefs.bindings.kernel import encode
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.connection import Connection
from fusefs.bindings.kernel.everything import Everything
from fusefs.bindings.kernel.places import Place
from fusefs.model.ids import Ino

log = logging.getLogger("dfs.kernel")

_SOON_S: Final = (0.00005, 0.0002, 0.001, 0.005, 0.02)
"""When to repeat what may have come before the answer it is about: a woken task
runs within microseconds. On a crowded machine it may take longer: see `tick`."""
_LATER_S: Final = 60.0
"""Repeated at every tick for so long; then the lookup count must be wrong."""
_MOST_THREADS: Final = 16
"""Notifications that may wait in the kernel at once; more wait in our queue."""
_IDLE_S: Final = 30.0
"""A notifying thread without work ends after this."""
_EVERYTHING_S: Final = 5.0
"""Longest `everything` holds up its caller."""
_CLONE_FILES: Final = 0x400
_libc = ctypes.CDLL(None, use_errno=True)

Work: TypeAlias = Callable[[], None]
Job: TypeAlias = "tuple[Work, threading.Event | None]"


class Told:
    """What one caller waits for."""

    __slots__ = ("done", "finished", "locks", "works")

    def __init__(self) -> None:
        self.works: deque[tuple[Work, tuple[Ino, ...]]] = deque()
        """And which locks each may meet in the kernel. Another thread may do some."""
        self.locks: set[Ino] = set()
        self.done = threading.Event()
        """The caller need not wait any longer; `finished`: all is done."""
        self.finished = False

    def add(self, work: Work, locks: tuple[Ino, ...]) -> None:
        self.works.append((work, locks))
        self.locks.update(locks)

    def do(self) -> None:
        """In a notifying thread."""
        while (item := self.take()) is not None:
            try:
                item[0]()
            except Exception:
                log.exception("bug while notifying the kernel")
        self.finished = True

    def take(self) -> tuple[Work, tuple[Ino, ...]] | None:
        try:
            return self.works.popleft()
        except IndexError:
            return None


class Notifier:
    """Implements fusefs.vfs.types.Invalidator. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        connection.on_held = self.let_go
        connection.forget_name = self._forget_soon
        self._waiting: set[Told] = set()
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._lock = threading.Lock()
        """Protects the counts of threads; nothing waits under it."""
        self._threads = 0
        self._idle = 0
        self._everything = Everything(connection, self._send, self._have_done)
        self._gathering = threading.local()
        """`told`: what this thread tells together."""
        self._later: deque[tuple[Ino, bytes, float]] = deque()
        self.sent = 0
        self.queued_behind = 0
        """Notifications whose caller did not wait for the end."""
        self.repeated = 0

    # -- Invalidator -----------------------------------------------------------------

    def entry(self, parent: Ino, name: bytes) -> None:
        """Forget what `name` is in `parent`, and the cached listing of `parent`."""
        self._connection.raise_epoch()
        if self._connection.lookups.knows(parent):
            self._forget_name((parent, name), encode.inval_entry(parent, name))

    def deleted(self, parent: Ino, child: Ino, name: bytes) -> None:
        """As `entry`, and watchers (inotify) of directory and file are told."""
        self._connection.raise_epoch()
        if self._connection.lookups.knows(parent):
            self._forget_name((parent, name), encode.delete(parent, child, name), child)

    def _forget_name(self, place: Place, message: bytes, *children: Ino) -> None:
        for at in self._connection.renames.begin_telling(place):
            told = message if at == place else _expired(at)
            self._run(partial(self._tell_name, at, told), (at[0], *children))

    def _tell_name(self, place: Place, message: bytes) -> None:
        try:
            self._name_gone(*place, message)
        finally:
            self._connection.renames.told(place)

    def _forget_soon(self, place: Place) -> None:
        """Behind the request whose answer brings the kernel the name."""
        self._put(lambda: self._name_gone(*place, _expired(place)), None)

    def knows(self, ino: Ino) -> bool:
        return ino in self._connection.lookups.table

    def returned(self, directory: Ino) -> None:
        """Its next answer to a lookup has another generation: the kernel makes a new
        inode of it, and leaves the dead one to who is still in it."""
        self._connection.raise_epoch()
        self._connection.another_generation(directory)

    def attributes(self, ino: Ino) -> None:
        """Forget attributes; of a directory also its cached listing."""
        connection = self._connection
        connection.raise_epoch()
        if not connection.lookups.knows(ino):
            return
        if ino in connection.listed:
            connection.listed.discard(ino)
            self._run(lambda: self._inode_gone(ino, 0, 0), (ino,))
        elif self._send(encode.inval_inode(ino, -1, 0)) == errno.ENOENT:
            self._run(lambda: self._inode_gone(ino, -1, 0), ())

    def data(self, ino: Ino, offset: int, length: int) -> None:
        """Forget the pages of a range (length 0: to the end) and the attributes."""
        self._connection.raise_epoch()
        if self._connection.lookups.knows(ino):
            self._run(lambda: self._inode_gone(ino, offset, length), ())

    def everything(self) -> None:
        """Forget all names, attributes, pages and listings."""
        self._everything.begin().wait(_EVERYTHING_S)

    def everything_later(self) -> None:
        """As `everything`, without waiting."""
        self._everything.begin()

    @contextmanager
    def together(self) -> Iterator[None]:
        """One thread is woken for all that is told within it, and waited for once."""
        told = self._gathering.told = Told()
        try:
            yield
        finally:
            self._gathering.told = None
            if told.works:
                self._hand_over(told, self._connection.settings.notify_wait_s)

    def let_go(self, inodes: tuple[Ino, ...]) -> None:
        """A request was read that holds the kernel's locks of these: whoever waits for
        a notification about them waits for it, and need not."""
        if not self._waiting:
            return
        with self._lock:
            waiting = list(self._waiting)
        for told in waiting:
            if not told.locks.isdisjoint(inodes):
                told.done.set()

    # -- in a notifying thread -------------------------------------------------------

    def _name_gone(self, parent: Ino, name: bytes, message: bytes) -> None:
        connection = self._connection
        fenced = connection.settings.directory_lock_fences
        told = connection.gate.listing_told(parent)
        there = connection.places.at((parent, name))
        problem = self._send(message)
        connection.places.left((parent, name), there)
        if problem == errno.ENOENT and not fenced:
            self._repeat_while_recent(parent, message)
        if parent in connection.listed:
            connection.listed.discard(parent)
            self._send(encode.inval_inode(parent, 0, 0))
            if fenced:  # a listing told before had the lock, and is in the kernel
                connection.gate.listing_gone(parent, told)

    def _repeat_while_recent(self, parent: Ino, message: bytes) -> None:
        """The kernel did not find the name: its answer may be on its way."""
        new, old = self._connection.recent
        for delay in _SOON_S:
            if parent not in new and parent not in old:
                return
            time.sleep(delay)
            self.repeated += 1
            if self._send(message) != errno.ENOENT:
                return

    def _inode_gone(self, ino: Ino, offset: int, length: int) -> None:
        """Sent until the kernel, which was told of the inode, has it or forgot it."""
        message = encode.inval_inode(ino, offset, length)
        lookups = self._connection.lookups
        for delay in (0.0, *_SOON_S):
            if delay:
                time.sleep(delay)
                self.repeated += 1
            if self._send(message) != errno.ENOENT or ino not in lookups.table:
                return
        self._later.append((ino, message, time.monotonic() + _LATER_S))

    def tick(self) -> None:
        """Repeats what the kernel should have had long ago. Called every few ten
        milliseconds by the server's watch."""
        if self._later:
            self._put(self._try_later, None)
        elif self._jobs.qsize():  # there was no thread to be had
            self._see_to_it()

    def _try_later(self) -> None:
        table = self._connection.lookups.table
        for _ in range(len(self._later)):
            try:
                ino, message, until = self._later.popleft()
            except IndexError:
                return
            self.repeated += 1
            if self._send(message) != errno.ENOENT or ino not in table:
                continue
            if time.monotonic() < until:
                self._later.append((ino, message, until))
            else:
                log.error("the kernel neither has nor forgets inode %d", ino)

    @property
    def settled(self) -> bool:
        """Nothing is waiting to be sent, in the kernel, or to be repeated."""
        with self._lock:
            return self._idle == self._threads and not (
                self._later or self._jobs.qsize()
            )

    def _send(self, message: bytes) -> int | None:
        """The errno of the kernel's refusal, or None."""
        self.sent += 1
        try:
            os.write(self._connection.fd, message)
        except OSError as problem:
            return problem.errno
        return None

    def _have_done(self, work: Work) -> None:
        """By a notifying thread, however long that takes."""
        done = threading.Event()
        self._put(work, done)
        done.wait()

    # -- threads ---------------------------------------------------------------------

    def _run(self, work: Work, locks: tuple[Ino, ...], wait_s: float = -1) -> None:
        """Has the work done by a notifying thread; waits as the module says."""
        if any(self._connection.is_held(ino) for ino in locks):
            self._put(work, None)
            self.queued_behind += 1
            return
        gathered = getattr(self._gathering, "told", None)
        told = Told() if gathered is None else gathered
        told.add(work, locks)
        if gathered is not None:
            return
        if wait_s < 0:
            wait_s = self._connection.settings.notify_wait_s
        self._hand_over(told, wait_s)

    def _hand_over(self, told: Told, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        with self._lock:
            self._waiting.add(told)
        if any(self._connection.is_held(ino) for ino in told.locks):
            told.done.set()
        self._put(told.do, told.done)
        told.done.wait(wait_s)
        with self._lock:
            self._waiting.discard(told)
        if not told.finished:
            self.queued_behind += 1
            self._without(told, deadline - time.monotonic())

    def _without(self, told: Told, wait_s: float) -> None:
        """One of them waits in the kernel: the rest need not, and is waited for but
        where it would wait, too."""
        rest = Told()
        while (item := told.take()) is not None:
            if any(self._connection.is_held(ino) for ino in item[1]):
                self._put(item[0], None)
            else:
                rest.add(*item)
        if rest.works and wait_s > 0:
            self._hand_over(rest, wait_s)
        else:
            for work, _ in rest.works:  # each may be the one that waits
                self._put(work, None)

    def _put(self, work: Work, done: threading.Event | None) -> None:
        self._jobs.put((work, done))
        self._see_to_it()

    def _see_to_it(self) -> None:
        """That there is a thread for what is to be done; else at the next tick."""
        with self._lock:
            if self._idle >= self._jobs.qsize() or self._threads >= _MOST_THREADS:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, name="notify", daemon=True).start()
        except RuntimeError as problem:
            log.warning("the kernel is told later: %s", problem)
            with self._lock:
                self._threads -= 1

    def _work(self) -> None:
        _leave_descriptors(self._connection.fd)
        while True:
            with self._lock:
                self._idle += 1
            try:
                work, done = self._jobs.get(timeout=_IDLE_S)
            except Empty:
                with self._lock:
                    self._idle -= 1
                    if self._jobs.empty():
                        self._threads -= 1
                        return
                continue
            with self._lock:
                self._idle -= 1
            try:
                work()
            except Exception:
                log.exception("bug while notifying the kernel")
            if done is not None:
                done.set()


def _expired(place: Place) -> bytes:
    """The kernel asks again before it uses the name: what is mounted there stays where
    nothing was wrong with it."""
    return encode.inval_entry(*place, p.INVAL_ENTRY_EXPIRE)


def _leave_descriptors(kept: int) -> None:
    """This thread has only this one from now on, and those below 3. In a container that
    does not allow it, or without a descriptor to look, all stays as it is."""
    if _libc.unshare(_CLONE_FILES):
        return
    try:
        highest = max(map(int, os.listdir("/proc/thread-self/fd")))
    except OSError as problem:
        log.warning("a notifying thread keeps all descriptors: %s", problem)
        return
    os.closerange(3, kept)
    os.closerange(kept + 1, highest + 1)
