"""Files that came to where more nodes keep what there is: moved or linked into a tree
of which more copies are kept, or out of one of fewer (`copies.py`). Each node fetches
what it should keep of them from now on; nobody else does anything about it.

What came to where fewer keep it stays as it is until the members change, or what a
directory says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import trio

from fusefs.model.ids import Ino, NodeId
from fusefs.model.records import (
    DIRENT,
    S_DIR,
    Dirent,
    content_key,
    decode_dirent,
    key_ino,
)
from fusefs.model.tx import Tx
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.trees import files_below
from netnode.copies import Copies
from netnode.environment import Environment
from netnode.pulling import Pulling
from netnode.versions import DELAY_S

PAGE = 500
"""Files told at once."""
PAUSE_S = 0.5
MOST = 10_000
"""Waiting, and missed."""

Version = tuple[NodeId, bytes, bytes]
"""(writer, key, value) of a content register."""


class Moving:
    """One task, `run`."""

    def __init__(
        self,
        namespace: Namespace,
        copies: Copies,
        pulling: Pulling,
        environment: Environment,
        everything: Callable[[], None],
    ) -> None:
        """`everything`: called when the whole tree has to be looked through, for
        nobody knows what was moved."""
        self._namespace = namespace
        self._copies = copies
        self._pulling = pulling
        self._environment = environment
        self._everything = everything
        self._waiting: dict[Ino, bool] = {}
        """What was moved, and whether it is a directory."""
        self._missed: dict[Ino, None] = {}
        """Files of which not everything could be had."""
        self._wake = trio.Event()
        pulling.on_missed = self._note_missed

    # -- inputs ----------------------------------------------------------------

    def seen(self, txs: Iterable[Tx]) -> None:
        """Transactions of this node and of others."""
        if self._copies.trees:
            for tx in txs:
                self._look_at(tx)

    def caught_up(self, keys: Iterable[bytes]) -> None:
        """These registers came without their transactions."""
        if self._copies.trees and any(key[:1] == DIRENT for key in keys):
            self._everything()

    def peer_came(self) -> None:
        """It may have what was missed."""
        for ino in self._missed:
            self._note(ino, False)
        self._missed.clear()

    def _look_at(self, tx: Tx) -> None:
        names = [write for write in tx.writes if write.key[:1] == DIRENT]
        directories = {key_ino(write.key) for write in names}
        for write in names:
            if write.value:
                entry = decode_dirent(write.value)
                if self._gained(entry, directories):
                    self._note(entry.ino, entry.kind == S_DIR)

    def _gained(self, entry: Dirent, directories: set[Ino]) -> bool:
        """`directories`: where names were made and removed together."""
        if len(directories) == 1:
            if entry.kind == S_DIR:
                return False
            directories = {e.parent for e in self._namespace.parents(entry.ino)}
        if len(directories) == 1:
            return False
        now = self._copies.of(entry.ino)
        return any(self._copies.of(directory) < now for directory in directories)

    def _note(self, ino: Ino, is_directory: bool) -> None:
        if len(self._waiting) < MOST:
            self._waiting[ino] = is_directory
            self._wake.set()
        else:
            self._everything()

    def _note_missed(self, ino: Ino) -> None:
        if len(self._missed) < MOST:
            self._missed[ino] = None

    # -- the task --------------------------------------------------------------

    async def run(self) -> None:
        """Has what was moved looked at."""
        while True:
            await self._wake.wait()
            await trio.sleep(DELAY_S)
            self._wake = trio.Event()
            moved, self._waiting = self._waiting, {}
            for ino, is_directory in moved.items():
                await self._look(ino, is_directory)

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
