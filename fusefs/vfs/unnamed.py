"""Inodes without a name that are in use, kept for the next worker of the mount.

Their registers are forgotten when every member knows of the delete, a minute later or
more (docs/formats.md, 3.5); who has such a file open goes on with it for months. So
what is known of them is written aside now and then, more often than that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from fusefs.model.ids import Ino
from fusefs.namespace.types import Inode

log = logging.getLogger(__name__)

Attributes = dict[bytes, bytes]
"""Extended ones, by name."""

_decode = msgspec.msgpack.Decoder(list[Inode]).decode
_decode_attributes = msgspec.msgpack.Decoder(dict[int, Attributes]).decode


class Kept(NamedTuple):
    """`attributes` None: those that the namespace has."""

    row: Inode
    attributes: Attributes | None = None


class Unnamed:
    """Not thread-safe, but for what is `left`."""

    def __init__(self, path: Path | None, *, same_mount: bool) -> None:
        """`path` None: nothing is kept. `same_mount`: what an earlier worker left is
        of this mount; otherwise nobody uses it any more."""
        self._path = path
        self.left: dict[Ino, Kept] = {}
        """What the worker before left, and the kernel may still know."""
        self._written: dict[Ino, Kept] = {}
        if path is not None and same_mount:
            self._read(path)
        elif path is not None:
            path.unlink(missing_ok=True)
            _beside(path).unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        rows: list[Inode] = []
        attributes: dict[int, Attributes] = {}
        try:
            rows = _decode(path.read_bytes())
            attributes = _decode_attributes(_beside(path).read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            log.warning("files without a name may be lost: %s", error)
        self.left = {row.ino: Kept(row, attributes.get(row.ino)) for row in rows}
        self._written = {**self.left}

    def keep(self, open_: Mapping[Ino, Kept]) -> bool:
        """These, and what was left and the kernel did not forget yet."""
        now = {**self.left, **open_}
        if self._path is None or now == self._written:
            return True
        attributes = {
            ino: {**kept.attributes}
            for ino, kept in now.items()
            if kept.attributes is not None
        }
        try:
            _write(_beside(self._path), msgspec.msgpack.encode(attributes))
            rows = [kept.row for kept in now.values()]
            _write(self._path, msgspec.msgpack.encode(rows))
        except OSError as error:  # a full disk: tried again
            log.warning("files without a name are not kept: %s", error)
            return False
        self._written = now
        return True


def _beside(path: Path) -> Path:
    """Where extended attributes are: older programs know nothing of it."""
    return path.with_name(f"{path.name}.attributes")


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(data)
    fresh.replace(path)
