"""Requests about inodes: attributes, links, extended attributes, forgetting."""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from fusefs.bindings.kernel import encode
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.channel import Channel, Handler, Reply, even_removed
from fusefs.bindings.kernel.encode import FOREVER_S
from fusefs.bindings.kernel.protocol import REQUEST, Op
from fusefs.model.ids import Ino
from fusefs.vfs.types import NOW, SetAttr

_ACL: Final = b"system.posix_acl_"


def getattr_(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """Valid for ever: the kernel drops an answer that a notification overtook."""
    return encode.attributes(unique, ch.fs.getattr(nodeid), FOREVER_S)


def statx(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    return encode.statx(unique, ch.fs.getattr(nodeid), FOREVER_S)


def setattr_(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    (
        valid, _, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _,
        mode, _, uid, gid, _,
    ) = p.SETATTR_IN.unpack_from(ch.buffer, REQUEST)  # fmt: skip
    change = SetAttr(
        mode=mode & 0o7777 if valid & p.FATTR_MODE else None,
        uid=uid if valid & p.FATTR_UID else None,
        gid=gid if valid & p.FATTR_GID else None,
        size=size if valid & p.FATTR_SIZE else None,
        atime_ns=_time(valid, p.FATTR_ATIME, p.FATTR_ATIME_NOW, atime, atime_ns),
        mtime_ns=_time(valid, p.FATTR_MTIME, p.FATTR_MTIME_NOW, mtime, mtime_ns),
        kill_suid=bool(valid & p.FATTR_KILL_SUIDGID),
    )
    handle = fh if valid & p.FATTR_FH else None
    if change.size is not None and handle is None:
        ch.about_to_wait()  # truncate(2) by name waits for peers, as a close does
    with ch.changing(nodeid):
        attr = ch.fs.setattr(nodeid, change, ch.caller(), handle)
    return encode.attributes(unique, attr, ch.connection.setattr_valid_s)


def _time(valid: int, given: int, now: int, seconds: int, ns: int) -> int | None:
    if not valid & given:
        return None
    return NOW if valid & now else seconds * 1_000_000_000 + ns


def readlink(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    return encode.data(unique, ch.fs.readlink(nodeid))


def statfs(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    return encode.statfs(unique, ch.fs.statfs())


# -- extended attributes -------------------------------------------------------------


def _sized(unique: int, value: bytes, room: int) -> bytes:
    """The value; with no room given only its size; ERANGE if it does not fit."""
    if room == 0:
        return encode.written(unique, len(value))
    if len(value) > room:
        return encode.error(unique, errno.ERANGE)
    return encode.data(unique, value)


def getxattr(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    room, _ = p.GETXATTR_IN.unpack_from(ch.buffer, REQUEST)
    name = ch.name_at(REQUEST + p.GETXATTR_IN.size)
    if name.startswith(_ACL) and not ch.connection.settings.acl:
        return encode.error(unique, errno.EOPNOTSUPP)  # asked for each file by ls -l
    return _sized(unique, ch.fs.getxattr(nodeid, name), room)


def listxattr(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    room, _ = p.GETXATTR_IN.unpack_from(ch.buffer, REQUEST)
    names = b"".join(name + b"\0" for name in ch.fs.listxattr(nodeid, ch.caller()))
    return _sized(unique, names, room)


class SetXattr(NamedTuple):
    """`more`: SETXATTR_* of FUSE, beside the flags of setxattr(2)."""

    name: bytes
    value: bytes
    flags: int
    more: int


def setxattr_parts(ch: Channel) -> SetXattr:
    """Of a SETXATTR."""
    session = ch.connection.session
    if session is None or session.has(p.SETXATTR_EXT):
        size, flags, more, _ = p.SETXATTR_IN.unpack_from(ch.buffer, REQUEST)
        start = REQUEST + p.SETXATTR_IN.size
    else:
        size, flags = p.SETXATTR_COMPAT_IN.unpack_from(ch.buffer, REQUEST)
        more, start = 0, REQUEST + p.SETXATTR_COMPAT_IN.size
    name, _, rest = ch.buffer[start : ch.length].partition(b"\0")
    return SetXattr(bytes(name), bytes(rest[:size]), flags, more)


def setxattr(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    name, value, flags, more = setxattr_parts(ch)
    if name.startswith(_ACL) and not ch.connection.settings.acl:
        return encode.error(unique, errno.EOPNOTSUPP)
    kill = bool(more & p.SETXATTR_ACL_KILL_SGID)
    with ch.changing(nodeid):
        ch.fs.setxattr(nodeid, name, value, flags, ch.caller(), kill)
    return encode.ok(unique)


def removexattr(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    with ch.changing(nodeid):
        ch.fs.removexattr(nodeid, ch.name_at(REQUEST), ch.caller())
    return encode.ok(unique)


# -- forgetting ----------------------------------------------------------------------


def forget(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    (count,) = p.FORGET_IN.unpack_from(ch.buffer, REQUEST)
    if ch.connection.lookups.forget(nodeid, count):
        _forgotten(ch, nodeid)
    return None


def batch_forget(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    count, _ = p.BATCH_FORGET_IN.unpack_from(ch.buffer, REQUEST)
    start = REQUEST + p.BATCH_FORGET_IN.size
    lookups = ch.connection.lookups
    lines = ch.view[start : start + count * p.FORGET_ONE.size]
    for ino, times in p.FORGET_ONE.iter_unpack(lines):
        if lookups.forget(ino, times):
            _forgotten(ch, ino)
    return None


def _forgotten(ch: Channel, ino: Ino) -> None:
    ch.connection.listed.discard(ino)
    ch.connection.places.forget(ino)
    ch.connection.moving.pop(ino, None)
    ch.connection.locked.discard(ino)
    ch.fs.forget(ino)


HANDLERS: Final[dict[Op, Handler]] = {
    Op.GETATTR: even_removed(getattr_),
    Op.STATX: even_removed(statx),
    Op.SETATTR: even_removed(setattr_),
    Op.READLINK: readlink,
    Op.STATFS: statfs,
    Op.GETXATTR: getxattr,
    Op.LISTXATTR: listxattr,
    Op.SETXATTR: setxattr,
    Op.REMOVEXATTR: removexattr,
    Op.FORGET: forget,
    Op.BATCH_FORGET: batch_forget,
}
