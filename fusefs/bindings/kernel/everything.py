"""Having the kernel forget all it holds: names, attributes, pages and listings."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Final

from fusefs.bindings.kernel import encode, mounting
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.connection import Connection
from fusefs.errors import NotFound
from fusefs.model.ids import Ino
from fusefs.model.records import S_DIR
from fusefs.mountpoint import table
from fusefs.vfs.types import DirEntry

log = logging.getLogger("dfs.kernel")

_SOME_NAMES: Final = 1000
"""Read, then told, then the next."""


class Everything:
    """Reads the tree in a thread of its own, and has others send what it found."""

    def __init__(
        self,
        connection: Connection,
        send: Callable[[bytes], int | None],
        done: Callable[[Callable[[], None]], None],
    ) -> None:
        """`send`: a notification, gives the errno of its refusal; `done`: has that done
        by a thread that may wait in the kernel, and returns after it."""
        self._connection = connection
        self._send = send
        self._done = done

    def begin(self) -> threading.Event:
        """Set when all is forgotten."""
        self._connection.raise_epoch()
        done = threading.Event()
        thread = threading.Thread(
            target=self._go, args=(done,), name="notify-all", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as problem:
            log.warning("the kernel is told by who asked for it: %s", problem)
            self._go(done)
        return done

    def _go(self, done: threading.Event) -> None:
        try:
            names = self._names_each()
            self._done(partial(self._known_gone, names))
            if names or not self._connection.lookups.exact:
                self._walk(names)
        except Exception:
            log.exception("bug while notifying the kernel")
        finally:
            done.set()

    def _names_each(self) -> bool:
        """Whether names have to be told one by one. They expire then: what is mounted
        on a directory goes with a name that the kernel drops."""
        session = self._connection.session
        if session is None or session.minor < p.INC_EPOCH_MINOR:
            return True
        of_fd = mounting.connection_of(self._connection.fd)
        return bool(of_fd) and table.is_built_upon(of_fd)

    def _walk(self, names: bool) -> None:
        """Goes through the whole tree: what the kernel holds of it is not known. Names
        that are no more expire, too."""
        fs = self._connection.fs
        given = fs.names_given() if names else iter(())
        while some := list(islice(given, _SOME_NAMES)):
            self._done(partial(self._names_expire, some))
        todo = [Ino(p.ROOT_ID)]
        while todo:
            directory = todo.pop()
            with suppress(NotFound):  # removed meanwhile: nothing is below it
                lines = (
                    line
                    for line in fs.readdir_ino(directory, 0)
                    if line.name not in (b".", b"..")
                )
                while below := list(islice(lines, _SOME_NAMES)):
                    work = partial(self._lines_gone, directory, below, names, todo)
                    self._done(work)

    # -- in a notifying thread -------------------------------------------------------

    def _known_gone(self, names: bool) -> None:
        """All that the kernel was told of; of names all at once, unless `names` follow
        one by one."""
        connection = self._connection
        if not names:
            self._send(p.OUT_HEADER.pack(16, p.NOTIFY_INC_EPOCH, 0))
        for ino in connection.lookups.all():
            connection.listed.discard(ino)
            self._send(encode.inval_inode(ino, 0, 0))

    def _names_expire(self, names: list[tuple[Ino, bytes]]) -> None:
        for parent, name in names:
            self._send(encode.inval_entry(parent, name, p.INVAL_ENTRY_EXPIRE))

    def _lines_gone(
        self, parent: Ino, lines: list[DirEntry], names: bool, found: list[Ino]
    ) -> None:
        """`found`: gets the directories in which there may be more."""
        for line in lines:
            known = self._send(encode.inval_inode(line.ino, 0, 0)) is None
            if names:
                self._send(encode.inval_entry(parent, line.name, p.INVAL_ENTRY_EXPIRE))
            if line.kind == S_DIR and (names or known):
                found.append(line.ino)
