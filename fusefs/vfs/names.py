"""What a name may be, and what a directory must be, before anything is changed."""

from __future__ import annotations

import stat

from fusefs.errors import Invalid, NameTooLong, NotADirectory, NotFound
from fusefs.model.ids import NAME_MAX, Ino
from fusefs.namespace.transaction import Transaction
from fusefs.namespace.types import Inode

PATH_MAX_BYTES = 4095
"""Longest symlink target (limits.h, without the NUL)."""


def check_name(name: bytes) -> None:
    """Any bytes but `/` and NUL, 1 to 255 of them, and not the dots."""
    if len(name) > NAME_MAX:
        raise NameTooLong(f"a name of {len(name)} bytes")
    if not name or name in (b".", b".."):
        raise Invalid(f"{name!r} names no entry")
    if b"/" in name or b"\0" in name:
        raise Invalid("a name holds no slash and no NUL")


def directory(tx: Transaction, ino: Ino) -> Inode:
    """The directory's row. Raises NotFound (removed meanwhile), NotADirectory."""
    row = tx.inode(ino)
    if row is None:
        raise NotFound("the directory was removed")
    if not stat.S_ISDIR(row.mode):
        raise NotADirectory("not a directory")
    return row
