"""Requests of a mount that was taken over from a worker that died.

* A resent request (UNIQUE_RESEND) may have been carried out without its answer
  having been sent. What cannot be done twice and shows its result is then answered
  with success: the mkdir that finds its directory, the unlink that finds nothing.
* A write that came to be answered no more is there already, perhaps: again, it would
  be appended twice to a file that is open with O_APPEND. The journal knows its number;
  where it lies says nothing, for peers append, too.
* Handles were given out by the predecessor: the vfs does not know them (BadHandle)
  until it is told of their inode; the rest is in their number.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final

from fusefs.bindings.kernel import encode
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.channel import Channel, Handler, Reply
from fusefs.bindings.kernel.inodes import setxattr_parts
from fusefs.bindings.kernel.names import entry_reply, to_exchange
from fusefs.bindings.kernel.protocol import REQUEST, Op
from fusefs.errors import BadHandle, FsError, NotFound, Stale
from fusefs.model.ids import Ino
from fusefs.vfs.tree import EXCHANGE, NOREPLACE
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
    out[Op.RENAME2] = _unless_exchanged(out[Op.RENAME2])
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


_CREATE_ONLY: Final = os.O_CREAT | os.O_EXCL

# -- repeated requests ---------------------------------------------------------------

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


def _found(
    ch: Channel, unique: int, nodeid: Ino, name: bytes, fits: Callable[[Attr], bool]
) -> Reply:
    epoch = ch.connection.epoch
    attr = ch.fs.lookup(nodeid, name)
    return entry_reply(ch, unique, attr, epoch) if fits(attr) else None


def _made_directory(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    uid, _, _ = p.IN_WHO.unpack_from(ch.buffer, p.WHO)
    name = ch.name_at(REQUEST + p.MKDIR_IN.size)
    return _found(
        ch, unique, nodeid, name,
        lambda a: stat.S_ISDIR(a.mode) and a.uid == uid and a.nlink == 2,
    )  # fmt: skip


def _made_node(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    mode, _, _, _ = p.MKNOD_IN.unpack_from(ch.buffer, REQUEST)
    uid, _, _ = p.IN_WHO.unpack_from(ch.buffer, p.WHO)
    name = ch.name_at(REQUEST + p.MKNOD_IN.size)
    return _found(
        ch, unique, nodeid, name,
        lambda a: stat.S_IFMT(a.mode) == stat.S_IFMT(mode)
        and a.uid == uid and a.size == 0,
    )  # fmt: skip


def _made_link(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    (ino,) = p.LINK_IN.unpack_from(ch.buffer, REQUEST)
    name = ch.name_at(REQUEST + p.LINK_IN.size)
    return _found(ch, unique, nodeid, name, lambda a: a.ino == ino)


def _made_symlink(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    name, target = ch.names_at(REQUEST)
    return _found(
        ch, unique, nodeid, name,
        lambda a: stat.S_ISLNK(a.mode) and ch.fs.readlink(a.ino) == target,
    )  # fmt: skip


def _created(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """O_EXCL found a file: ours if it is empty, as it was left."""
    flags, _, _, _ = p.CREATE_IN.unpack_from(ch.buffer, REQUEST)
    uid, _, _ = p.IN_WHO.unpack_from(ch.buffer, p.WHO)
    name = ch.name_at(REQUEST + p.CREATE_IN.size)
    attr = ch.fs.lookup(nodeid, name)
    if attr.size or attr.uid != uid or not stat.S_ISREG(attr.mode):
        return None
    epoch = ch.connection.epoch
    opened = ch.fs.open(attr.ino, flags & ~_CREATE_ONLY, ch.caller(), False)
    reply = entry_reply(ch, unique, opened.attr, epoch)
    return encode.created(reply, unique, opened.handle, 0)


def _renamed(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """The old name is gone: done if the new one is there."""
    (target,) = p.RENAME_IN.unpack_from(ch.buffer, REQUEST)
    _, new = ch.names_at(REQUEST + p.RENAME_IN.size)
    ch.fs.lookup(target, new)
    return encode.ok(unique)


def _renamed2(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """The same of a rename that replaces nothing; others would not say so."""
    target, flags, _ = p.RENAME2_IN.unpack_from(ch.buffer, REQUEST)
    if flags != NOREPLACE:
        return None
    _, new = ch.names_at(REQUEST + p.RENAME2_IN.size)
    ch.fs.lookup(target, new)
    return encode.ok(unique)


def _unless_exchanged(handler: Handler) -> Handler:
    """Exchanged twice is not exchanged. It was done when both have one ctime, later
    than what was noted before (names.py)."""

    def served(ch: Channel, unique: int, nodeid: Ino) -> Reply:
        target, flags, _ = p.RENAME2_IN.unpack_from(ch.buffer, REQUEST)
        if unique & p.UNIQUE_RESEND and flags == EXCHANGE:
            before_ns = ch.connection.gate.noted(unique & ~p.UNIQUE_RESEND)
            one, other = to_exchange(ch, nodeid, target)
            if one.ctime_ns == other.ctime_ns and 0 < before_ns < one.ctime_ns:
                return encode.ok(unique)
        return handler(ch, unique, nodeid)

    return served


def _set_attribute(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """XATTR_CREATE found one: ours if it has the value."""
    name, value, _ = setxattr_parts(ch)
    return encode.ok(unique) if ch.fs.getxattr(nodeid, name) == value else None


_REPEATED: Final[dict[Op, tuple[int, Recognise]]] = {
    Op.MKDIR: (errno.EEXIST, _made_directory),
    Op.MKNOD: (errno.EEXIST, _made_node),
    Op.LINK: (errno.EEXIST, _made_link),
    Op.SYMLINK: (errno.EEXIST, _made_symlink),
    Op.CREATE: (errno.EEXIST, _created),
    Op.UNLINK: (errno.ENOENT, _done),
    Op.RMDIR: (errno.ENOENT, _done),
    Op.REMOVEXATTR: (errno.ENODATA, _done),
    Op.RENAME: (errno.ENOENT, _renamed),
    Op.RENAME2: (errno.ENOENT, _renamed2),
    Op.SETXATTR: (errno.EEXIST, _set_attribute),
}
"""What each says when it was done already, and how to tell."""
