"""The system calls Python has no function for. Raises OSError as `os` does."""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
KEEP_SIZE = 1
PUNCH_HOLE = 2
COLLAPSE_RANGE = 8
ZERO_RANGE = 16
INSERT_RANGE = 32
O_TMPFILE = 0o20000000 | os.O_DIRECTORY


class _Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


class _Dirent(ctypes.Structure):
    _fields_ = [
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    ]


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Dirent)
_libc.readdir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.rewinddir.argtypes = [ctypes.c_void_p]
_libc.closedir.argtypes = [ctypes.c_void_p]


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    _check(_libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, ctypes.c_uint(flags)))


def utimensat(
    path: bytes,
    atime: tuple[int, int],
    mtime: tuple[int, int],
    flags: int = 0,
) -> None:
    """Times as (seconds, nanoseconds); nanoseconds may be UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _check(_libc.utimensat(AT_FDCWD, path, times, flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def linkat_fd(fd: int, new: bytes) -> None:
    """Gives the (unnamed) file of a descriptor a name."""
    old = b"/proc/self/fd/%d" % fd
    _check(_libc.linkat(AT_FDCWD, old, AT_FDCWD, new, AT_SYMLINK_FOLLOW))


def fcntl_lock(kind: int, start: int, length: int, whence: int = 0) -> bytes:
    """A struct flock with pid 0, as OFD locks want it."""
    return struct.pack("hhqqi4x", kind, whence, start, length, 0)


class Directory:
    """opendir, readdir, telldir, seekdir, rewinddir."""

    def __init__(self, path: bytes) -> None:
        pointer = _libc.opendir(path)
        if not pointer:
            _check(-1)
        self._pointer = pointer

    def next(self) -> tuple[bytes, int, int] | None:
        """(name, d_type, d_ino) or None at the end."""
        ctypes.set_errno(0)
        found = _libc.readdir(self._pointer)
        if not found:
            if ctypes.get_errno():
                _check(-1)
            return None
        entry = found.contents
        return entry.name, entry.type, entry.ino

    def names(self) -> list[bytes]:
        """What is left, without . and .."""
        result = []
        while (entry := self.next()) is not None:
            if entry[0] not in (b".", b".."):
                result.append(entry[0])
        return result

    def tell(self) -> int:
        return int(_libc.telldir(self._pointer))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._pointer, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._pointer)

    def close(self) -> None:
        _libc.closedir(self._pointer)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
