"""The constants and records of the kernel's FUSE protocol, as precompiled structs.

Source: include/uapi/linux/fuse.h, protocol 7.31 to 7.45. Everything is in the
byte order of the machine, records are padded to 8 bytes. Names are those of the
header without the prefix FUSE_. Pure: no descriptor, no clock.

A request is IN_HEADER, then a record of its opcode at REQUEST (40), then names
ending in a zero byte. A reply is OUT_HEADER, then a record. The reply structs here
start with the header, so that a reply is one pack call.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

KERNEL_VERSION: Final = 7
OLDEST_MINOR: Final = 31
"""Linux 5.4: readdir cache, no_opendir, explicit_inval_data, write_kill_priv."""
NEWEST_MINOR: Final = 45
"""Linux 6.18. A newer kernel speaks what we ask for."""

ROOT_ID: Final = 1
PAGE: Final = 4096
MAX_WRITE: Final = 1 << 20
"""Bytes of data per request: 256 pages, the kernel's default limit."""
HEADER_ROOM: Final = PAGE
"""Room for a request's headers and names before its data."""

# -- opcodes -------------------------------------------------------------------------


class Op(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


OPCODES: Final = 64
"""One more than any opcode we know, rounded up: the length of per-opcode tables."""

# -- flags of INIT -------------------------------------------------------------------

ASYNC_READ: Final = 1 << 0
POSIX_LOCKS: Final = 1 << 1
ATOMIC_O_TRUNC: Final = 1 << 3
EXPORT_SUPPORT: Final = 1 << 4
BIG_WRITES: Final = 1 << 5
DONT_MASK: Final = 1 << 6
FLOCK_LOCKS: Final = 1 << 10
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
READDIRPLUS_AUTO: Final = 1 << 14
ASYNC_DIO: Final = 1 << 15
WRITEBACK_CACHE: Final = 1 << 16
NO_OPEN_SUPPORT: Final = 1 << 17
PARALLEL_DIROPS: Final = 1 << 18
POSIX_ACL: Final = 1 << 20
ABORT_ERROR: Final = 1 << 21
MAX_PAGES: Final = 1 << 22
CACHE_SYMLINKS: Final = 1 << 23
NO_OPENDIR_SUPPORT: Final = 1 << 24
EXPLICIT_INVAL_DATA: Final = 1 << 25
HANDLE_KILLPRIV_V2: Final = 1 << 28
SETXATTR_EXT: Final = 1 << 29
INIT_EXT: Final = 1 << 30
HAS_EXPIRE_ONLY: Final = 1 << 35
HAS_RESEND: Final = 1 << 39

# -- flags of other requests ---------------------------------------------------------

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_NOFLUSH: Final = 1 << 5

FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_KILL_SUIDGID: Final = 1 << 11

GETATTR_FH: Final = 1 << 0
LK_FLOCK: Final = 1 << 0
OPEN_KILL_SUIDGID: Final = 1 << 0
WRITE_CACHE: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
RELEASE_FLOCK_UNLOCK: Final = 1 << 1
FSYNC_FDATASYNC: Final = 1 << 0

UNIQUE_RESEND: Final = 1 << 63
"""Set in the unique id of a request that an earlier server may have answered."""

# -- notifications -------------------------------------------------------------------

NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_STORE: Final = 4
NOTIFY_RETRIEVE: Final = 5
NOTIFY_DELETE: Final = 6
NOTIFY_RESEND: Final = 7
NOTIFY_INC_EPOCH: Final = 8
INVAL_ENTRY_EXPIRE: Final = 1 << 0
"""Of NOTIFY_INVAL_ENTRY, from 7.38: the name stays, and is asked for when it is used
next. Older kernels do not look at it."""
INC_EPOCH_MINOR: Final = 44
"""Linux 6.16: all names can be invalidated at once."""
CHECKED_SETATTR_MINOR: Final = 45
"""Linux 6.18 for certain: a SETATTR reply overtaken by an invalidation is not kept
("fuse: fix race between concurrent setattrs from multiple nodes", 2025)."""

# -- requests ------------------------------------------------------------------------

HEADER_BYTES: Final = 40
REQUEST: Final = HEADER_BYTES
"""Where the record of the opcode begins."""
IN_HEADER = Struct("<IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding"""
IN_START = Struct("<IIQQ")
"""The part of it that every request needs: len, opcode, unique, nodeid."""
IN_WHO = Struct("<III")
WHO: Final = 24
"""Where uid, gid, pid are in the header."""
IN_PID = Struct("<I")
PID: Final = 32
"""Where pid is: that of the thread."""

INIT_IN = Struct("<IIII")
INIT_IN_FLAGS2: Final = 16
"""Offset of flags2 in init_in, there when INIT_EXT is set."""
FORGET_IN = Struct("<Q")
BATCH_FORGET_IN = Struct("<II")
FORGET_ONE = Struct("<QQ")
GETATTR_IN = Struct("<IIQ")
STATX_IN = Struct("<IIQII")
SETATTR_IN = Struct("<IIQQQqqqIIIIIIII")
"""valid, _, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec,
ctimensec, mode, _, uid, gid, _"""
MKNOD_IN = Struct("<IIII")
MKDIR_IN = Struct("<II")
RENAME_IN = Struct("<Q")
RENAME2_IN = Struct("<QII")
LINK_IN = Struct("<Q")
OPEN_IN = Struct("<II")
CREATE_IN = Struct("<IIII")
"""flags, mode, umask, open_flags"""
RELEASE_IN = Struct("<QIIQ")
"""fh, flags, release_flags, lock_owner"""
FLUSH_IN = Struct("<QIIQ")
"""fh, _, _, lock_owner"""
READ_IN = Struct("<QQIIQII")
"""fh, offset, size, read_flags, lock_owner, flags, _ (WRITE is the same)"""
READ_START = Struct("<QQI")
FSYNC_IN = Struct("<QII")
SETXATTR_IN = Struct("<IIII")
"""size, flags, setxattr_flags, _ (the last two with SETXATTR_EXT)"""
SETXATTR_ACL_KILL_SGID: Final = 1 << 0
SETXATTR_COMPAT_IN = Struct("<II")
GETXATTR_IN = Struct("<II")
LK_IN = Struct("<QQQQIIII")
"""fh, owner, start, end, type, pid, lk_flags, _"""
ACCESS_IN = Struct("<II")
INTERRUPT_IN = Struct("<Q")
FALLOCATE_IN = Struct("<QQQII")
"""fh, offset, length, mode, _"""
LSEEK_IN = Struct("<QQII")
COPY_IN = Struct("<QQQQQQQ")
"""fh_in, off_in, nodeid_out, fh_out, off_out, len, flags"""

# -- replies, header included --------------------------------------------------------

OUT_HEADER = Struct("<IiQ")
"""len, error (negative errno), unique"""
OUT_BYTES: Final = 16

_ATTR = "QQQqqqIIIIIIIIII"
"""ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode,
nlink, uid, gid, rdev, blksize, flags"""
_ENTRY = "QQQQII" + _ATTR
"""nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec"""

ENTRY_BYTES: Final = 128
ENTRY_REPLY = Struct("<IiQ" + _ENTRY)
ATTR_REPLY = Struct("<IiQ" + "QII" + _ATTR)
OPEN_REPLY = Struct("<IiQ" + "QII")
OPEN_OUT = Struct("<QII")
WRITE_REPLY = Struct("<IiQ" + "II")
U64_REPLY = Struct("<IiQ" + "Q")
"""lseek, and copy_file_range_64."""
STATFS_REPLY = Struct("<IiQ" + "QQQQQIIII24x")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, _"""
LK_REPLY = Struct("<IiQ" + "QQII")
INIT_REPLY = Struct("<IiQ" + "IIIIHHIIHHII24x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold,
max_write, time_gran, max_pages, map_alignment, flags2, max_stack_depth"""
STATX_REPLY = Struct("<IiQ" + "QII16x" + "IIQIIIHxxQQQQ" + "qIi" * 4 + "IIII112x")
"""attr_valid, attr_valid_nsec, flags; mask, blksize, attributes, nlink, uid, gid,
mode, ino, size, blocks, attributes_mask; atime, btime, ctime, mtime (s, ns, _);
rdev_major, rdev_minor, dev_major, dev_minor"""
STATX_BASIC_AND_BTIME: Final = 0xFFF

# -- parts of listings ---------------------------------------------------------------

DIRENT = Struct("<QQII")
"""ino, off, namelen, type; then the name, padded to 8 bytes"""
DIRENTPLUS = Struct("<" + _ENTRY + "QQII")

# -- notifications, header included (unique 0, error = the code) ---------------------

INVAL_INODE = Struct("<IiQ" + "Qqq")
INVAL_ENTRY = Struct("<IiQ" + "QII")
DELETE = Struct("<IiQ" + "QQII")
STORE = Struct("<IiQ" + "QQII")
RETRIEVE = Struct("<IiQ" + "QQQII")
