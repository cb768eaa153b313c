"""Values of the vfs to the bytes of replies, and device numbers both ways. Pure.

Called for nearly every reply: one pack call each, no intermediate objects.
"""

from __future__ import annotations

import os
from typing import Final

from fusefs.bindings.kernel import protocol as p
from fusefs.model.ids import Ino
from fusefs.vfs.types import Attr, DirEntry, FileLock, StatFs

FOREVER_S: Final = 10 * 365 * 24 * 3600
"""Validity of names and attributes: until the vfs says otherwise (see notify)."""
BLOCK_SIZE: Final = 128 * 1024
"""st_blksize: stdio and cp then write in pieces worth a request each."""
_NS: Final = 1_000_000_000

_OUT = p.OUT_HEADER.pack
_ENTRY = p.ENTRY_REPLY.pack
_ATTR = p.ATTR_REPLY.pack
_DIRENT = p.DIRENT.pack
_DIRENTPLUS = p.DIRENTPLUS.pack
_PAD: Final = tuple(bytes(-n % 8) for n in range(8))


def ok(unique: int) -> bytes:
    return _OUT(16, 0, unique)


def error(unique: int, errno: int) -> bytes:
    """`errno` positive, as in the errno module."""
    return _OUT(16, -errno, unique)


def data(unique: int, payload: bytes) -> bytes:
    """A reply of plain bytes: a link target, names, an attribute."""
    return _OUT(16 + len(payload), 0, unique) + payload


def entry(unique: int, attr: Attr, entry_valid_s: int, attr_valid_s: int) -> bytes:
    ino, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, _, _ = attr
    asec, ansec = divmod(atime, _NS)
    msec, mnsec = divmod(mtime, _NS)
    csec, cnsec = divmod(ctime, _NS)
    if rdev:
        rdev = encode_dev(rdev)
    return _ENTRY(
        144, 0, unique, ino, 0, entry_valid_s, attr_valid_s, 0, 0,
        ino, size, blocks, asec, msec, csec, ansec, mnsec, cnsec,
        mode, nlink, uid, gid, rdev, BLOCK_SIZE, 0,
    )  # fmt: skip


def of_generation(reply: bytes, generation: int, at: int = 16) -> bytes:
    """An answer with an entry, which begins there, of this generation of the inode."""
    number = generation.to_bytes(8, "little")
    return reply[: at + 8] + number + reply[at + 16 :]


_NOTHING: Final = (0,) * 16


def no_entry(unique: int, valid_s: int) -> bytes:
    """The name does not exist, and the kernel may remember that for `valid_s`."""
    return _ENTRY(144, 0, unique, 0, 0, valid_s, 0, 0, 0, *_NOTHING)


def attributes(unique: int, attr: Attr, valid_s: int) -> bytes:
    ino, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, _, _ = attr
    asec, ansec = divmod(atime, _NS)
    msec, mnsec = divmod(mtime, _NS)
    csec, cnsec = divmod(ctime, _NS)
    if rdev:
        rdev = encode_dev(rdev)
    return _ATTR(
        120, 0, unique, valid_s, 0, 0,
        ino, size, blocks, asec, msec, csec, ansec, mnsec, cnsec,
        mode, nlink, uid, gid, rdev, BLOCK_SIZE, 0,
    )  # fmt: skip


def created(entry_reply: bytes, unique: int, handle: int, flags: int) -> bytes:
    """The reply of CREATE and TMPFILE: an entry and an open file."""
    head = _OUT(160, 0, unique)
    return head + entry_reply[16:] + p.OPEN_OUT.pack(handle, flags, 0)


def opened(unique: int, handle: int, flags: int) -> bytes:
    return p.OPEN_REPLY.pack(32, 0, unique, handle, flags, 0)


def written(unique: int, count: int) -> bytes:
    return p.WRITE_REPLY.pack(24, 0, unique, count, 0)


def number(unique: int, value: int) -> bytes:
    """lseek: an offset; copy_file_range_64: a count."""
    return p.U64_REPLY.pack(24, 0, unique, value)


def statfs(unique: int, s: StatFs) -> bytes:
    return p.STATFS_REPLY.pack(
        96, 0, unique, s.blocks, s.blocks_free, s.blocks_available, s.files,
        s.files_free, s.block_size, s.name_max, s.block_size, 0,
    )  # fmt: skip


def lock(unique: int, found: FileLock) -> bytes:
    return p.LK_REPLY.pack(40, 0, unique, found.start, found.end, found.kind, found.pid)


def statx(unique: int, a: Attr, valid_s: int) -> bytes:
    """Everything statx(2) shows of a regular file system, birth time included."""
    asec, ansec = divmod(a.atime_ns, _NS)
    msec, mnsec = divmod(a.mtime_ns, _NS)
    csec, cnsec = divmod(a.ctime_ns, _NS)
    bsec, bnsec = divmod(a.btime_ns, _NS)
    return p.STATX_REPLY.pack(
        304, 0, unique, valid_s, 0, 0,
        p.STATX_BASIC_AND_BTIME, BLOCK_SIZE, 0, a.nlink, a.uid, a.gid, a.mode,
        a.ino, a.size, a.blocks, 0, asec, ansec, 0, bsec, bnsec, 0, csec, cnsec, 0,
        msec, mnsec, 0, os.major(a.rdev), os.minor(a.rdev), 0, 0,
    )  # fmt: skip


# -- listings ------------------------------------------------------------------------


def dirent(line: DirEntry) -> bytes:
    cookie, name, ino, kind = line
    length = len(name)
    return _DIRENT(ino, cookie, length, kind) + name + _PAD[length & 7]


def dirent_plus(line: DirEntry, attr: Attr) -> bytes:
    """A line with the entry's attributes, which count as one lookup of it."""
    cookie, name, _, kind = line
    ino, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, _, _ = attr
    asec, ansec = divmod(atime, _NS)
    msec, mnsec = divmod(mtime, _NS)
    csec, cnsec = divmod(ctime, _NS)
    if rdev:
        rdev = encode_dev(rdev)
    length = len(name)
    return (
        _DIRENTPLUS(
            ino, 0, FOREVER_S, FOREVER_S, 0, 0,
            ino, size, blocks, asec, msec, csec, ansec, mnsec, cnsec,
            mode, nlink, uid, gid, rdev, BLOCK_SIZE, 0,
            ino, cookie, length, kind,
        )
        + name
        + _PAD[length & 7]
    )  # fmt: skip


def dirent_bare(line: DirEntry) -> bytes:
    """A line of READDIRPLUS without a lookup: node id 0, as for "." and ".."."""
    return bytes(p.ENTRY_BYTES) + dirent(line)


VALID_AT: Final = 16
"""Offset of entry_valid and attr_valid (8 bytes each) in a line with attributes."""

# -- device numbers ------------------------------------------------------------------


def encode_dev(rdev: int) -> int:
    """A device number as stat(2) shows it, to the kernel's 32 bits (new_encode_dev)."""
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF) | ((major & 0xFFF) << 8) | ((minor & 0xFFF00) << 12)


def decode_dev(rdev: int) -> int:
    """The inverse."""
    major = (rdev & 0xFFF00) >> 8
    minor = (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00)
    return os.makedev(major, minor)


def inval_inode(ino: Ino, offset: int, length: int) -> bytes:
    """The notification; `offset` -1: attributes only; `length` 0: to the end."""
    return p.INVAL_INODE.pack(40, p.NOTIFY_INVAL_INODE, 0, ino, offset, length)


def inval_entry(parent: Ino, name: bytes, flags: int = 0) -> bytes:
    head = p.INVAL_ENTRY
    length = head.size + len(name) + 1
    start = head.pack(length, p.NOTIFY_INVAL_ENTRY, 0, parent, len(name), flags)
    return start + name + b"\0"


def delete(parent: Ino, child: Ino, name: bytes) -> bytes:
    head = p.DELETE
    length = head.size + len(name) + 1
    start = head.pack(length, p.NOTIFY_DELETE, 0, parent, child, len(name), 0)
    return start + name + b"\0"
