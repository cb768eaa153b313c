"""Inodes without a name that are in use, kept for the next worker of the mount.

Their registers are forgotten when every member knows of the delete, a minute later or
more (docs/formats.md, 3.5); who has such a file open goes on with it for months. So
what is known of them is written aside now and then, more often than that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec

from fusefs.model.ids import Ino
from fusefs.namespace.types import Inode

log = logging.getLogger(__name__)

_decode = msgspec.msgpack.Decoder(list[Inode]).decode


class Unnamed:
    """Not thread-safe, but for what is `left`."""

    def __init__(self, path: Path | None, *, same_mount: bool) -> None:
        """`path` None: nothing is kept. `same_mount`: what an earlier worker left is
        of this mount; otherwise nobody uses it any more."""
        self._path = path
        self.left: dict[Ino, Inode] = {}
        """What the worker before left, and the kernel may still know."""
        self._written: list[Inode] = []
        if path is not None and same_mount:
            self._read(path)
        elif path is not None:
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        try:
            self._written = _decode(path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("files without a name may be lost: %s", error)
        self.left = {row.ino: row for row in self._written}

    def keep(self, rows: Iterable[Inode]) -> bool:
        """These, and what was left and the kernel did not forget yet."""
        now = [*(self.left | {row.ino: row for row in rows}).values()]
        if self._path is None or now == self._written:
            return True
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.msgpack.encode(now))
            fresh.replace(self._path)
        except OSError as error:  # a full disk: tried again
            log.warning("files without a name are not kept: %s", error)
            return False
        self._written = now
        return True
