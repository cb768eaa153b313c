"""What all threads of one mount share, and the argument for endless validity.

Replies make names, attributes, pages and listings valid for ever; a change from
elsewhere takes them back by a notification (notify.py), sent after the vfs shows
the change. Between computing a reply and the kernel's acting on it such a
notification can overtake it, and the old state would stay for ever. Why it cannot:

* **Names.** The kernel holds the directory's lock (i_rwsem) from before it asks
  LOOKUP, READDIRPLUS, CREATE, ... until the answer is in its cache, and
  NOTIFY_INVAL_ENTRY takes that lock: it waits for the answer, then removes it. (A
  revalidation asks without the lock, but of a name in the cache, which the
  notification unhashes: whatever is answered then is never found again.) Linux
  6.19 looks for the name before it takes the lock and returns ENOENT at once when
  the answer is still on its way; there notify.py repeats it while a reply from
  that directory may be (`recent`).
* **Attributes of an inode the kernel has** when the notification comes: it gives
  the inode a new attr_version, and answers to LOOKUP, READDIRPLUS, GETATTR, STATX
  and short READs asked before are dropped. It does not look at it for SETATTR,
  LINK and CREATE of a file that exists: these get attributes valid for 0 s (SETATTR
  only before Linux 6.18, which looks).
* **Attributes of an inode the kernel does not have yet**: the notification finds
  nothing (ENOENT), then the answer brings the old ones. The serving thread
  1. reads `epoch`, 2. asks the vfs, 3. counts the lookup, 4. compares `epoch` and
  says 0 s if it changed, 5. writes; the notifying thread a. raises `epoch` (the
  vfs already shows the change), b. looks whether the inode is counted, c. sends.
  If a comes before 4, the reply is valid for 0 s. If a comes after 4, then 3 came
  before b: the inode is counted, so ENOENT means "on its way" (or just forgotten)
  and c is repeated until the kernel has the inode or has forgotten it.
* **Attributes of a directory that a request of ours changed** the kernel forgets by
  itself, but without a new attr_version: those in an answer to a READDIRPLUS of the
  directory above, asked before, would come in after it. (An answer to GETATTR would
  not: there is none on its way while the kernel has attributes, and it needs them for
  the request.) Where such an answer may be (`listers`) a notification is sent before
  the request is answered.
* **Changes acknowledged before they are applied** (nodelink/fence.py) concern only
  what the kernel does not hold. 3 marks the inode there, too; a fence raised before 4
  changes `epoch`, and after 3 the node finds the mark. A name that is absent is marked
  likewise between 2 and 4. While the fence is up no name is resolved.
* **Pages.** The kernel locks a page while it is being read or written;
  NOTIFY_INVAL_INODE waits for that lock and then drops the page.
* **Listings** (cached pages of the directory) are filled under the directory's
  lock: NOTIFY_INVAL_ENTRY waits for it, then the pages are dropped. Besides, the
  kernel uses a listing only while the directory's mtime is the one it began with,
  and permission checks fetch attributes that were invalidated.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from fusefs.bindings.kernel import encode
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.encode import FOREVER_S
from fusefs.bindings.kernel.listers import Listers
from fusefs.bindings.kernel.lookups import Lookups
from fusefs.bindings.kernel.places import Place, Places
from fusefs.bindings.kernel.ports import FileSystem
from fusefs.bindings.kernel.renames import Renames
from fusefs.bindings.kernel.session import Session
from fusefs.model.ids import Ino
from fusefs.nodelink.fence import Gate

if TYPE_CHECKING:
    from fusefs.bindings.kernel.channel import Channel


def _locks_first() -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if numbers is None:
        return False
    return (int(numbers[1]), int(numbers[2])) < (6, 19)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to serve. The defaults are those of a mount by hand."""

    locks: bool = True
    """POSIX and flock locks come to the vfs (other nodes); else they stay local."""
    acl: bool = False
    """The kernel checks access control lists; else there are none."""
    readers: int = 2
    """Threads that read requests while none of them waits."""
    most_threads: int = 160
    """Requests that may wait at once (fetches, barriers): more than the kernel has in
    the background (session.MAX_BACKGROUND), so that reads of bytes that do not come
    leave room for others."""
    most_parked: int = 4_000
    """Besides, those that wait for a lock. They end only when its holder is served, who
    must never find all threads waiting for him: further ones are ENOLCK."""
    changes_wait: bool = False
    """Changes of names and attributes wait for peers too (sync=all)."""
    notify_wait_s: float = 0.020
    """Longest a notification holds up its caller; then it goes on behind."""
    directory_lock_fences: bool = msgspec.field(default_factory=_locks_first)
    """NOTIFY_INVAL_ENTRY takes the directory's lock before it looks (to 6.18)."""


class Connection:
    """State of one mount; every field may be touched by any thread."""

    def __init__(
        self,
        fs: FileSystem,
        fd: int,
        settings: Settings,
        session: Session | None,
        gate: Gate | None = None,
    ) -> None:
        """`session`: the agreement of an earlier worker, when taking over."""
        self.gate = gate or Gate()
        self.fs = fs
        self.fd = fd
        self.settings = settings
        self.session = session
        self.adopted = session is not None
        self.lookups = Lookups(exact=session is None, marks=self.gate.inodes)
        self.negative_valid_s = FOREVER_S
        self.setattr_valid_s = 0
        self.locked: set[Ino] = set()
        """Inodes on which a POSIX lock was asked for while the kernel held them. A
        close(2) there sends a FLUSH, which is how it releases the locks of a process;
        elsewhere one that only reads does not (FOPEN_NOFLUSH)."""
        self.generations: dict[Ino, int] = {}
        """Of directories that came back after the kernel had seen them removed; all
        other inodes have 0."""
        self.raised = 0
        """Changes with each notification."""
        self._epochs = itertools.count(1)
        self.listed: set[Ino] = set()
        """Directories of which the kernel may keep a listing."""
        self.recent: tuple[set[Ino], set[Ino]] = (set(), set())
        """Directories with replies on their way: of this and of the last tick."""
        self.listers = Listers()
        self.written: set[int] = set()
        """Handles written since their last flush: their flush may wait."""
        self.channels: tuple[Channel, ...] = ()
        """Of every serving thread; replaced, never changed."""
        self.agreed = threading.Event()
        """Set when requests can be answered, or never will (`failure`)."""
        self.failure: Exception | None = None
        self.on_held: Callable[[tuple[Ino, ...]], None] = lambda inodes: None
        """Told when a request begins to hold the kernel's locks of these."""
        self._held: dict[Ino, int] = {}
        self._crossings = 0
        self.places = Places()
        self.renames = Renames()
        self.forget_name: Callable[[Place], None] = lambda place: None
        """Has the kernel forget a name, without waiting for that."""
        self.moving: dict[Ino, tuple[Ino, float]] = {}
        """Those it had elsewhere a moment ago: where, and until when that counts."""
        self._held_lock = threading.Lock()
        """Protects `_held` and `_crossings`; nothing is called under it."""
        if session is not None:
            self.locked.update(fs.record_locked())
            self.agree(session)

    def agree(self, session: Session) -> None:
        """Keeps the agreement and what follows from it."""
        self.session = session
        can_forget_all = session.minor >= p.INC_EPOCH_MINOR
        self.negative_valid_s = FOREVER_S if can_forget_all else 1
        checks_setattr = session.minor >= p.CHECKED_SETATTR_MINOR
        self.setattr_valid_s = FOREVER_S if checks_setattr else 0
        self.agreed.set()

    def begin(self, session: Session) -> None:
        """A new connection was agreed on: the kernel holds nothing yet."""
        self.adopted = False
        self.lookups.exact = True
        self.agree(session)

    def failed(self, reason: Exception) -> None:
        self.failure = reason
        self.agreed.set()

    @property
    def epoch(self) -> tuple[int, int]:
        """Changes with each notification, and with each change of a peer that is
        acknowledged without one. Equal to none of before or after while one of those is
        not applied yet."""
        received = self.gate.received
        if received > self.gate.settled:
            return next(self._epochs), -1
        return self.raised, received

    def another_generation(self, ino: Ino) -> None:
        self.generations[ino] = self.generations.get(ino, 0) + 1

    def took(self, place: Place, ino: Ino) -> None:
        """A request of ours took this inode from the place (0: there was none), and the
        kernel takes what it has there for dead."""
        dead = self.places.at(place)
        if dead is not None and dead != ino:
            self.places.forget(dead)
            self.raise_epoch()
            self.another_generation(dead)

    def renamed(self, place: Place, to: Place) -> None:
        """A request of ours moved what was there. Called before it is answered."""
        if self.renames.renamed(place, to):
            self.forget_name(to)

    def send_back(self, ino: Ino, offset: int, length: int) -> None:
        """The kernel sends what programs wrote to these pages, and forgets them. Waits
        for that: another thread has to serve it."""
        try:
            os.write(self.fd, encode.inval_inode(ino, offset, length))
        except OSError:
            pass  # it does not have the inode (any more)

    def changed(self, directory: Ino, thread: int) -> None:
        """A request of this thread changed it. Called before that is answered."""
        if directory == p.ROOT_ID:
            return  # in no listing
        place = self.places.get(directory)
        if self.listers.others(place[0] if place is not None else None, thread):
            self.send_back(directory, -1, 0)  # attributes only: takes no lock

    def raise_epoch(self) -> None:
        """Replies that were computed before do not become valid for ever."""
        self.raised = next(self._epochs)

    def tick(self) -> None:
        """Called every few ten milliseconds; ages `recent` and `listers`."""
        self.recent = (set(), self.recent[0])
        self.listers.tick()
        self.renames.tick()

    # -- directories and files whose kernel lock a request of ours holds -------------

    @contextmanager
    def holding(self, *inodes: Ino) -> Iterator[None]:
        """While a request that changes these is served (it may wait for peers)."""
        with self._held_lock:
            for ino in inodes:
                self._held[ino] = self._held.get(ino, 0) + 1
        self.on_held(inodes)
        try:
            yield
        finally:
            with self._held_lock:
                for ino in inodes:
                    left = self._held[ino] - 1
                    if left:
                        self._held[ino] = left
                    else:
                        del self._held[ino]

    def is_held(self, ino: Ino) -> bool:
        return ino in self._held

    @contextmanager
    def crossing(self) -> Iterator[None]:
        """While a request moves something from one directory to another: the kernel
        holds a lock of the whole mount."""
        with self._held_lock:
            self._crossings += 1
        try:
            yield
        finally:
            with self._held_lock:
                self._crossings -= 1

    def must_wait_to_move(self, old_parent: Ino) -> bool:
        """Whether the kernel would refuse now (ESTALE) to take a directory that it has
        in `old_parent` for one that is somewhere else: it tries two locks, and gives
        up when a request of ours holds one of them."""
        return self._crossings > 0 or old_parent in self._held
