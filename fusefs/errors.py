"""Everything that can go wrong, each with the errno its class fixes.

A binding translates an `FsError` to its errno in one place; anything else that
reaches a binding is a bug, logged with a traceback and answered with EIO.
"""

from __future__ import annotations

import errno as _e
from typing import ClassVar


class FsError(OSError):
    """An error a program should see, with the errno fixed by its class."""

    ERRNO: ClassVar[int] = _e.EIO

    def __init__(self, message: str = "", *, errno: int | None = None) -> None:
        super().__init__(errno or self.ERRNO, message or type(self).__name__)


# -- local: what POSIX says about the request itself -------------------------


class NotFound(FsError):
    ERRNO = _e.ENOENT


class Exists(FsError):
    ERRNO = _e.EEXIST


class NotADirectory(FsError):
    ERRNO = _e.ENOTDIR


class IsADirectory(FsError):
    ERRNO = _e.EISDIR


class NotEmpty(FsError):
    ERRNO = _e.ENOTEMPTY


class NotPermitted(FsError):
    """EPERM: the operation is not allowed to this caller at all."""

    ERRNO = _e.EPERM


class AccessDenied(FsError):
    ERRNO = _e.EACCES


class Invalid(FsError):
    ERRNO = _e.EINVAL


class NameTooLong(FsError):
    ERRNO = _e.ENAMETOOLONG


class TooManyLinks(FsError):
    ERRNO = _e.EMLINK


class TooBig(FsError):
    ERRNO = _e.EFBIG


class BadHandle(FsError):
    ERRNO = _e.EBADF


class NoSpace(FsError):
    ERRNO = _e.ENOSPC


class ReadOnly(FsError):
    ERRNO = _e.EROFS


class NoAttribute(FsError):
    ERRNO = _e.ENODATA


class OutOfRange(FsError):
    ERRNO = _e.ERANGE


class ArgumentTooBig(FsError):
    """E2BIG: an extended attribute value over the limit."""

    ERRNO = _e.E2BIG


class NoSuchDevice(FsError):
    """ENXIO: SEEK_DATA or SEEK_HOLE past the end."""

    ERRNO = _e.ENXIO


class NotSupported(FsError):
    ERRNO = _e.EOPNOTSUPP


class WouldBlock(FsError):
    ERRNO = _e.EAGAIN


class Interrupted(FsError):
    ERRNO = _e.EINTR


class NoLocks(FsError):
    ERRNO = _e.ENOLCK


class Stale(FsError):
    """ESTALE: the inode is gone."""

    ERRNO = _e.ESTALE


class Busy(FsError):
    ERRNO = _e.EBUSY


# -- integrity ----------------------------------------------------------------


class Corrupt(FsError):
    """Bytes or records on this disk fail their check."""

    ERRNO = _e.EIO


class DiskFailed(Corrupt):
    """The store's own disk or database fails. EIO; EROFS where it takes no writes."""


class WritesLost(FsError):
    """What fsync should make durable is gone with a worker that was killed."""

    ERRNO = _e.EIO


class ChunkMissing(FsError):
    """The chunk is not in the local store (never leaves the vfs unhandled)."""

    ERRNO = _e.EIO


# -- remote -------------------------------------------------------------------


class Unreachable(FsError):
    """No reachable peer has the bytes."""

    ERRNO = _e.EHOSTUNREACH


class TimedOut(FsError):
    """The deadline passed before a peer answered."""

    ERRNO = _e.ETIMEDOUT


class Unacceptable(Exception):
    """What a peer sent cannot be taken into the namespace; the message says why."""


# -- set-up -------------------------------------------------------------------


class StoreInUse(FsError):
    ERRNO = _e.EBUSY


class ConfigError(Exception):
    """A setting is wrong; the message says which, where from and what is valid."""
