"""Files that came to where more nodes keep what there is: moved or linked into a tree
of which more copies are kept, or out of one of fewer (`copies.py`). Each node fetches
what it should keep of them from now on; nobody else does anything about it.

What came to where fewer keep it stays as it is until the members change, or what a
directory says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice

import trio

from fusefs.errors import DiskFailed, NoSpace
from fusefs.model.ids import Ino, NodeId
from fusefs.model.records import (
    ATTRS,
    DIRENT,
    REPLICAS,
    S_DIR,
    XATTR,
    content_key,
    decode_dirent,
    key_ino,
    key_name,
)
from fusefs.model.register import decode_register
from fusefs.model.tx import State, Tx
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.trees import files_below
from fusefs.store.store import Store
from netnode.chunks import ChunkPlane
from netnode.copies import Copies
from netnode.environment import Environment
from netnode.pulling import Pulling
from netnode.versions import DELAY_S

PAGE = 500
"""Files told at once."""
PAUSE_S = 0.5
IDLE = 2
"""So often nothing was under way: between two levels of a manifest that may be so."""
MOST = 10_000
"""Waiting, and missed; of more, everything there is is looked through."""

Version = tuple[NodeId, bytes, bytes]
"""(writer, key, value) of a content register."""


class Moving:
    """One task, `run`."""

    def __init__(
        self,
        namespace: Namespace,
        store: Store,
        plane: ChunkPlane,
        copies: Copies,
        pulling: Pulling,
        environment: Environment,
    ) -> None:
        self._namespace = namespace
        self._store = store
        self._plane = plane
        self._copies = copies
        self._pulling = pulling
        self._environment = environment
        self._waiting: dict[Ino, bool] = {}
        """What was moved, and whether it is a directory."""
        self._missed: dict[Ino, None] = {}
        """Files of which not everything could be had, or there was no room for it."""
        self._too_many = False
        """Waiting, or missed, to remember them all."""
        self._is_noted = store.moves_wait()
        """The next start would look through everything."""
        self._wake = trio.Event()

    # -- inputs ----------------------------------------------------------------

    def seen(self, txs: Iterable[Tx]) -> None:
        """Transactions of this node and of others."""
        if self._copies.trees:
            for tx in txs:
                self._look_at(tx)

    def caught_up(self, states: Iterable[State]) -> None:
        """These registers came without their transactions: what has a name in them may
        have had another before. What is below a directory that says something was
        perhaps moved there before that was known here."""
        if not self._copies.trees:
            return
        for state in states:
            kind = state.key[:1]
            if kind == DIRENT:
                latest = decode_register(state.state).latest
                if latest is not None and latest.value:
                    self._named(latest.value)
            elif kind == XATTR and key_name(state.key) == REPLICAS:
                self._note(key_ino(state.key), True)

    def missed(self, ino: Ino) -> None:
        """Something of a file that was looked at could not be had."""
        self._note_waiting()
        if len(self._missed) < MOST:
            self._missed[ino] = None
        else:
            self._too_many = True

    def try_again(self) -> None:
        """Somebody came who may have what was missed, or there is room for it."""
        for ino in self._missed:
            self._note(ino, False)
        self._missed.clear()
        if self._too_many:
            self._wake.set()

    def _look_at(self, tx: Tx) -> None:
        """All names that are given to something that is not new, but in the directory
        where it had one: nobody knows any more what was said where that was."""
        names = [write for write in tx.writes if write.key[:1] == DIRENT]
        stays = len(names) > 1 and len({key_ino(write.key) for write in names}) == 1
        if not names or stays:
            return
        attrs = (write for write in tx.writes if write.key[:1] == ATTRS)
        new = {key_ino(write.key) for write in attrs if not write.context}
        for write in names:
            if write.value and decode_dirent(write.value).ino not in new:
                self._named(write.value)

    def _named(self, value: bytes) -> None:
        entry = decode_dirent(value)
        if self._copies.of(entry.ino) > self._copies.least:
            self._note(entry.ino, entry.kind == S_DIR)

    def _note(self, ino: Ino, is_directory: bool) -> None:
        self._note_waiting()
        if len(self._waiting) < MOST:
            self._waiting[ino] = is_directory
        else:
            self._too_many = True
        self._wake.set()

    def _note_waiting(self) -> None:
        """This process may be killed before all is done."""
        if not self._is_noted:
            with suppress(NoSpace, DiskFailed):
                self._store.set_moves_wait(True)
                self._is_noted = True

    # -- the task --------------------------------------------------------------

    async def run(self) -> None:
        """Has what was moved looked at."""
        if self._is_noted:  # by a process that was killed
            self._too_many = True
            self._wake.set()
        while True:
            await self._wake.wait()
            await trio.sleep(DELAY_S)
            self._wake = trio.Event()
            if self._too_many:
                with suppress(NoSpace, DiskFailed):  # else with what comes next
                    self._store.note_lost()
                    self._too_many = False
            moved, self._waiting = self._waiting, {}
            for ino, is_directory in moved.items():
                await self._look(ino, is_directory)
            await self._until_done()

    async def _until_done(self) -> None:
        """Or until there is more of it."""
        idle = 0
        while idle < IDLE and not self._wake.is_set():
            await trio.sleep(PAUSE_S)
            idle = 0 if len(self._pulling) or len(self._plane.scheduler) else idle + 1
        if not (self._wake.is_set() or self._missed or self._too_many):
            with suppress(NoSpace, DiskFailed):
                self._store.set_moves_wait(False)
                self._is_noted = False

    async def _look(self, ino: Ino, is_directory: bool) -> None:
        versions = self._versions(ino, is_directory)
        while page := await self._environment.offload(lambda: _next(versions)):
            self._pulling.again(page)
            while len(self._pulling) > PAGE:
                await trio.sleep(PAUSE_S)

    def _versions(self, top: Ino, is_directory: bool) -> Iterator[Version]:
        below = (row.ino for row in files_below(self._namespace, top))
        for ino in below if is_directory else (top,):
            for sibling in self._namespace.content_versions(ino).live:
                yield sibling.node, content_key(ino), sibling.value


def _next(versions: Iterator[Version]) -> Sequence[Version]:
    return list(islice(versions, PAGE))
