"""Requests about open files: data, locks, and what makes it durable and visible.

A flush, an fsync, a blocking lock and a read or write of bytes that are elsewhere
may wait for peers; `about_to_wait` then lets another thread read requests.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

from fusefs.bindings.kernel import encode
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.channel import Channel, Handler, Reply
from fusefs.bindings.kernel.protocol import REQUEST, Op
from fusefs.errors import NoLocks, NoSuchDevice
from fusefs.model.ids import Ino
from fusefs.vfs.types import FileLock

_DATA: Final = p.PAGE
"""Where file data begins in a channel's `out`."""
_MOST_COPIED: Final = 0xFFFF_F000
"""The reply of COPY_FILE_RANGE counts in 32 bits; the caller asks for the rest."""


def open_(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    flags, open_flags = p.OPEN_IN.unpack_from(ch.buffer, REQUEST)
    kill_suid = bool(open_flags & p.OPEN_KILL_SUIDGID)
    opened = ch.fs.open(nodeid, flags, ch.caller(), kill_suid)
    shown = p.FOPEN_KEEP_CACHE if opened.keep_cache else 0
    if flags & os.O_ACCMODE == os.O_RDONLY and nodeid not in ch.connection.locked:
        shown |= p.FOPEN_NOFLUSH
    return encode.opened(unique, opened.handle, shown)


def read(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    handle, offset, size = p.READ_START.unpack_from(ch.buffer, REQUEST)
    view = ch.out_view
    end = _DATA + min(size, p.MAX_WRITE)
    count = ch.fs.read_into(handle, offset, view[_DATA:end], ch.caller())
    p.OUT_HEADER.pack_into(ch.out, _DATA - 16, 16 + count, 0, unique)
    return view[_DATA - 16 : _DATA + count]


def write(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    handle, offset, size, flags, _, opened, _ = p.READ_IN.unpack_from(
        ch.buffer, REQUEST
    )
    start = REQUEST + p.READ_IN.size
    ch.connection.written.add(handle)
    count = ch.fs.write(
        handle,
        offset,
        ch.view[start : start + size],
        ch.caller(),
        bool(flags & p.WRITE_KILL_SUIDGID),
        bool(opened & os.O_APPEND) and not flags & p.WRITE_CACHE,
        unique & ~p.UNIQUE_RESEND,
    )
    return encode.written(unique, count)


def flush(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """Each close(2) of a descriptor: the close barrier waits in here."""
    handle, _, _, owner = p.FLUSH_IN.unpack_from(ch.buffer, REQUEST)
    if handle in ch.connection.written:
        ch.connection.written.discard(handle)
        ch.about_to_wait()
    ch.fs.flush(handle, owner, ch.caller())
    return encode.ok(unique)


def release(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """The last close of an open file; nobody waits for the answer."""
    handle, _, _, _ = p.RELEASE_IN.unpack_from(ch.buffer, REQUEST)
    ch.connection.written.discard(handle)
    ch.fs.release(handle)
    return encode.ok(unique)


def fsync(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    handle, flags, _ = p.FSYNC_IN.unpack_from(ch.buffer, REQUEST)
    ch.connection.written.discard(handle)
    ch.about_to_wait()
    with ch.changing(nodeid):
        ch.fs.fsync(handle, bool(flags & p.FSYNC_FDATASYNC), ch.caller())
    return encode.ok(unique)


def fsyncdir(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    _, flags, _ = p.FSYNC_IN.unpack_from(ch.buffer, REQUEST)
    ch.about_to_wait()
    with ch.changing(nodeid):
        ch.fs.fsyncdir(nodeid, bool(flags & p.FSYNC_FDATASYNC))
    return encode.ok(unique)


def syncfs(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    ch.about_to_wait()
    ch.fs.sync()
    return encode.ok(unique)


def fallocate(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    handle, offset, length, mode, _ = p.FALLOCATE_IN.unpack_from(ch.buffer, REQUEST)
    ch.connection.written.add(handle)
    ch.fs.fallocate(handle, mode, offset, length)
    return encode.ok(unique)


def lseek(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """SEEK_DATA and SEEK_HOLE; the kernel does the others itself."""
    handle, offset, whence, _ = p.LSEEK_IN.unpack_from(ch.buffer, REQUEST)
    connection = ch.connection
    if whence == os.SEEK_DATA and (connection.adopted or ch.fs.may_be_mapped(handle)):
        _ask_for_mapped(ch, nodeid, handle, offset)
    return encode.number(unique, ch.fs.lseek(handle, offset, whence))


def _ask_for_mapped(ch: Channel, ino: Ino, handle: int, offset: int) -> None:
    """What a program wrote into a hole through a mapping the kernel has, and does not
    send before it passes the hole over: who copies the file would lose it."""
    end = ch.fs.getattr(ino).size
    try:
        end = ch.fs.lseek(handle, offset, os.SEEK_DATA)
    except NoSuchDevice:
        pass  # a hole up to the end, or behind it
    if offset < end:
        ch.about_to_wait()
        ch.connection.send_back(ino, offset, end - offset)


def _copy(ch: Channel, most: int) -> int:
    fh_in, off_in, _, fh_out, off_out, length, _ = p.COPY_IN.unpack_from(
        ch.buffer, REQUEST
    )
    ch.connection.written.add(fh_out)
    length = min(length, most)
    caller = ch.caller()
    return ch.fs.copy_file_range(fh_in, off_in, fh_out, off_out, length, caller)


def copy_file_range(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    return encode.written(unique, _copy(ch, _MOST_COPIED))


def copy_file_range_64(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    return encode.number(unique, _copy(ch, (1 << 63) - 1))


# -- locks ---------------------------------------------------------------------------


def getlk(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    handle, owner, start, end, kind, pid, flags, _ = p.LK_IN.unpack_from(
        ch.buffer, REQUEST
    )
    wanted = FileLock(kind, start, end, pid)
    flock = bool(flags & p.LK_FLOCK)
    found = ch.fs.getlk(handle, owner, wanted, flock, ch.caller())
    return encode.lock(unique, found)


def _setlk(ch: Channel, unique: int, nodeid: Ino, wait: bool) -> bytes:
    handle, owner, start, end, kind, pid, flags, _ = p.LK_IN.unpack_from(
        ch.buffer, REQUEST
    )
    if kind == fcntl.F_UNLCK:  # flock(2) unlocks by a request that may wait, too
        ch.about_to_wait()
    elif wait and not ch.about_to_park():
        raise NoLocks("too many requests wait for locks")
    wanted = FileLock(kind, start, end, pid)
    flock = bool(flags & p.LK_FLOCK)
    if not flock:
        ch.connection.locked.add(nodeid)
    ch.fs.setlk(handle, owner, wanted, wait, flock, ch.caller())
    return encode.ok(unique)


def setlk(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    return _setlk(ch, unique, nodeid, False)


def setlkw(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    return _setlk(ch, unique, nodeid, True)


def access(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """ENOSYS: the kernel checks permissions itself and stops asking."""
    return encode.error(unique, errno.ENOSYS)


HANDLERS: Final[dict[Op, Handler]] = {
    Op.OPEN: open_,
    Op.READ: read,
    Op.WRITE: write,
    Op.FLUSH: flush,
    Op.RELEASE: release,
    Op.FSYNC: fsync,
    Op.FSYNCDIR: fsyncdir,
    Op.SYNCFS: syncfs,
    Op.FALLOCATE: fallocate,
    Op.LSEEK: lseek,
    Op.COPY_FILE_RANGE: copy_file_range,
    Op.COPY_FILE_RANGE_64: copy_file_range_64,
    Op.GETLK: getlk,
    Op.SETLK: setlk,
    Op.SETLKW: setlkw,
    Op.ACCESS: access,
}
