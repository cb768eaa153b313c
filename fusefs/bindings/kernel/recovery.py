"""Requests of a mount that was taken over from a worker that died.

* A resent request (UNIQUE_RESEND) may have been carried out without its answer
  having been sent. Of one that makes, takes away or moves a name the inode was noted
  just before (formats.md, 11): it is not done again to what a peer made there since,
  nor is what a peer made taken for its own. Others are answered with success where
  what they want is there: the link that finds its name.
* A write that came to be answered no more is there already, perhaps: again, it would
  be appended twice to a file that is open with O_APPEND. The journal knows its number;
  where it lies says nothing, for peers append, too.
* Handles were given out by the predecessor: the vfs does not know them (BadHandle)
  until it is told of their inode; the rest is in their number.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence
from typing import Final

from fusefs.bindings.kernel import encode
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.channel import Channel, Handler, Reply
from fusefs.bindings.kernel.inodes import setxattr_parts
from fusefs.bindings.kernel.names import entry_reply
from fusefs.bindings.kernel.protocol import REQUEST, Op
from fusefs.errors import BadHandle, FsError, NotFound, Stale
from fusefs.model.ids import Ino
from fusefs.vfs.types import Attr

_HANDLE_AT: Final = {
    Op.READ: 0, Op.WRITE: 0, Op.FLUSH: 0, Op.RELEASE: 0, Op.FSYNC: 0,
    Op.FALLOCATE: 0, Op.LSEEK: 0, Op.GETLK: 0, Op.SETLK: 0, Op.SETLKW: 0,
    Op.SETATTR: 8, Op.COPY_FILE_RANGE: 0, Op.COPY_FILE_RANGE_64: 0,
}  # fmt: skip
"""Where in its record a request has the handle."""
_BY_INODE: Final = (
    Op.GETATTR, Op.SETATTR, Op.OPEN, Op.STATX,
    Op.GETXATTR, Op.SETXATTR, Op.LISTXATTR, Op.REMOVEXATTR,
)  # fmt: skip
"""Requests about an inode whatever its name."""


def wrapped(table: Sequence[Handler]) -> list[Handler]:
    """The table for a mount that was taken over."""
    out = list(table)
    for op in _BY_INODE:
        out[op] = _with_orphans(out[op], Stale, lambda ch, nodeid: nodeid)
    for op in _HANDLE_AT:
        out[op] = _with_handles(out[op], op)
    out[Op.LINK] = _with_orphans(out[Op.LINK], NotFound, _to_link)
    out[Op.WRITE] = _with_handles(_unless_written(table[Op.WRITE]), Op.WRITE)
    for op, done in _OF_NAMES.items():
        out[op] = _unless_done(out[op], done)
    for op, (harmless, recognise) in _REPEATED.items():
        out[op] = _with_repeats(out[op], harmless, recognise)
    return out


# -- inodes without a name -----------------------------------------------------------


def _with_orphans(
    handler: Handler, unknown: type[FsError], which: Callable[[Channel, Ino], Ino]
) -> Handler:
    """What was unlinked while open, or made without a name, is still there for who has
    it open. `unknown`: what the handler raises where it is not; `which` it is about."""

    def served(ch: Channel, unique: int, nodeid: Ino) -> Reply:
        try:
            return handler(ch, unique, nodeid)
        except unknown:
            if not ch.fs.adopt_orphan(which(ch, nodeid)):
                raise
            return handler(ch, unique, nodeid)

    return served


def _to_link(ch: Channel, nodeid: Ino) -> Ino:
    """What LINK gives a name, in the directory `nodeid`."""
    (ino,) = p.LINK_IN.unpack_from(ch.buffer, REQUEST)
    return Ino(ino)


# -- handles -------------------------------------------------------------------------


def _with_handles(handler: Handler, op: Op) -> Handler:
    def served(ch: Channel, unique: int, nodeid: Ino) -> Reply:
        try:
            return handler(ch, unique, nodeid)
        except BadHandle:
            _reopen(ch, op, nodeid)
            return handler(ch, unique, nodeid)

    return served


def _reopen(ch: Channel, op: Op, nodeid: Ino) -> None:
    """Gives the vfs the handles that this request names."""
    wanted = [(ch.view[REQUEST + _HANDLE_AT[op] :], nodeid)]
    if op in (Op.COPY_FILE_RANGE, Op.COPY_FILE_RANGE_64):
        _, _, other, _, _, _, _ = p.COPY_IN.unpack_from(ch.buffer, REQUEST)
        wanted.append((ch.view[REQUEST + 24 :], other))
    for where, ino in wanted:
        handle = int.from_bytes(where[:8], "little")
        try:
            ch.fs.adopt_handle(handle, ino)
        except BadHandle:
            continue  # this one is known already


def _unless_written(handler: Handler) -> Handler:
    def served(ch: Channel, unique: int, nodeid: Ino) -> Reply:
        if unique & p.UNIQUE_RESEND:
            fh, offset, size, _, _, _, _ = p.READ_IN.unpack_from(ch.buffer, REQUEST)
            done = ch.fs.has_appended(nodeid, unique & ~p.UNIQUE_RESEND)
            if done or (done is None and _is_there(ch, fh, offset, size)):
                ch.connection.written.add(fh)
                return encode.written(unique, size)
        return handler(ch, unique, nodeid)

    return served


def _is_there(ch: Channel, fh: int, offset: int, size: int) -> bool:
    start = REQUEST + p.READ_IN.size
    there = memoryview(bytearray(size))
    got = ch.fs.read_into(fh, offset, there, ch.caller())
    return there[:got] == ch.view[start : start + size]


_OF_NEW: Final = os.O_CREAT | os.O_EXCL | os.O_TRUNC

# -- repeated requests ---------------------------------------------------------------

Done = Callable[[Channel, int, Ino, Ino], Reply]
"""The reply if the request was carried out, as what the name shows now tells beside the
inode that was noted just before; None: it was not, or a peer undid it."""


def _unless_done(handler: Handler, done: Done) -> Handler:
    def served(ch: Channel, unique: int, nodeid: Ino) -> Reply:
        if unique & p.UNIQUE_RESEND:
            ino = ch.connection.gate.noted(unique & ~p.UNIQUE_RESEND)
            if ino is not None:
                reply = done(ch, unique, nodeid, ino)
                if reply is not None:
                    return reply
        return handler(ch, unique, nodeid)

    return served


def _if_shown(ch: Channel, parent: Ino, name: bytes, ino: Ino) -> Attr | None:
    """The attributes of the inode, if the name shows it."""
    try:
        attr = ch.fs.lookup(parent, name)
    except NotFound:
        return None
    return attr if attr.ino == ino else None


def _left(name_at: Callable[[Channel], bytes]) -> Done:
    """Taken away, moved or exchanged: the name shows it no more. What it shows instead
    a peer made since."""

    def done(ch: Channel, unique: int, nodeid: Ino, ino: Ino) -> Reply:
        shown = _if_shown(ch, nodeid, name_at(ch), ino)
        return None if shown else encode.ok(unique)

    return done


def _made(name_at: Callable[[Channel], bytes]) -> Done:
    def done(ch: Channel, unique: int, nodeid: Ino, ino: Ino) -> Reply:
        epoch = ch.connection.epoch
        attr = _if_shown(ch, nodeid, name_at(ch), ino)
        return entry_reply(ch, unique, attr, epoch) if attr else None

    return done


def _created(ch: Channel, unique: int, nodeid: Ino, ino: Ino) -> Reply:
    flags, _, _, _ = p.CREATE_IN.unpack_from(ch.buffer, REQUEST)
    if not _if_shown(ch, nodeid, ch.name_at(REQUEST + p.CREATE_IN.size), ino):
        return None
    epoch = ch.connection.epoch
    opened = ch.fs.open(ino, flags & ~_OF_NEW, ch.caller(), False)
    reply = entry_reply(ch, unique, opened.attr, epoch)
    return encode.created(reply, unique, opened.handle, 0)


def _name_behind(record: struct.Struct) -> Callable[[Channel], bytes]:
    return lambda ch: ch.name_at(REQUEST + record.size)


def _first_name_behind(size: int) -> Callable[[Channel], bytes]:
    return lambda ch: ch.names_at(REQUEST + size)[0]


_OF_NAMES: Final[dict[Op, Done]] = {
    Op.MKDIR: _made(_name_behind(p.MKDIR_IN)),
    Op.MKNOD: _made(_name_behind(p.MKNOD_IN)),
    Op.SYMLINK: _made(_first_name_behind(0)),
    Op.CREATE: _created,
    Op.UNLINK: _left(lambda ch: ch.name_at(REQUEST)),
    Op.RMDIR: _left(lambda ch: ch.name_at(REQUEST)),
    Op.RENAME: _left(_first_name_behind(p.RENAME_IN.size)),
    Op.RENAME2: _left(_first_name_behind(p.RENAME2_IN.size)),
}

Recognise = Callable[[Channel, int, Ino], Reply]
"""The reply if what the request wants is there already, else None."""


def _with_repeats(handler: Handler, harmless: int, recognise: Recognise) -> Handler:
    def served(ch: Channel, unique: int, nodeid: Ino) -> Reply:
        try:
            return handler(ch, unique, nodeid)
        except FsError as problem:
            if unique & p.UNIQUE_RESEND and problem.errno == harmless:
                reply = recognise(ch, unique, nodeid)
                if reply is not None:
                    return reply
            raise

    return served


def _done(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """What should be gone is gone."""
    return encode.ok(unique)


def _made_link(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    (ino,) = p.LINK_IN.unpack_from(ch.buffer, REQUEST)
    return _made(_name_behind(p.LINK_IN))(ch, unique, nodeid, Ino(ino))


def _set_attribute(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """XATTR_CREATE found one: ours if it has the value."""
    asked = setxattr_parts(ch)
    is_ours = ch.fs.getxattr(nodeid, asked.name) == asked.value
    return encode.ok(unique) if is_ours else None


_REPEATED: Final[dict[Op, tuple[int, Recognise]]] = {
    Op.LINK: (errno.EEXIST, _made_link),
    Op.REMOVEXATTR: (errno.ENODATA, _done),
    Op.SETXATTR: (errno.EEXIST, _set_attribute),
}
"""What each says when it was done already, and how to tell."""
