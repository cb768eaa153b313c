"""Requests about names: lookup, create, remove, rename, list.

Replies that bring an entry follow the order that connection.py argues with: epoch,
vfs, count, epoch again.
"""

from __future__ import annotations

import errno
import time
from contextlib import nullcontext
from typing import Final

from fusefs.bindings.kernel import encode
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.channel import Channel, Handler, Reply, even_removed
from fusefs.bindings.kernel.encode import FOREVER_S
from fusefs.bindings.kernel.protocol import REQUEST, Op
from fusefs.errors import NotFound, Stale
from fusefs.model.ids import Ino
from fusefs.model.records import S_DIR
from fusefs.nodelink.fence import INO_MASK
from fusefs.vfs.tree import EXCHANGE
from fusefs.vfs.types import Attr

_DOTS: Final = (b".", b"..")
MOVE_WAIT_S, MOVE_LOOK_S = 0.05, 0.0003
"""Longest a lookup waits for locks of the kernel that others of its requests hold."""
MOVE_S = 2.0
"""After a move this is looked at again."""


def behind_fence(handler: Handler) -> Handler:
    """The handler, of names as they are once what peers were promised is applied
    (`lookup` sees to that itself)."""

    def served(ch: Channel, unique: int, nodeid: Ino) -> Reply:
        gate = ch.connection.gate
        if gate.closed:
            ch.about_to_wait()
            gate.wait()
        return handler(ch, unique, nodeid)

    return served


def lookup(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    connection = ch.connection
    gate = connection.gate
    numbers = gate.numbers
    # The epoch, spelt out: hot. Read once: nothing goes up unseen after this look.
    received = numbers[0]
    if received > gate.settled:
        ch.about_to_wait()
        gate.wait()
        received = numbers[0]
        if received > gate.settled:  # another one: not waited for, nor kept
            received = -1
    raised = connection.raised
    name = ch.buffer[REQUEST : ch.length - 1]
    try:
        dots = name in _DOTS  # of file handles (NFS, open_by_handle_at)
        attr = _dot(ch, nodeid, name) if dots else ch.fs.lookup(nodeid, name)
    except NotFound:
        gate.tells_absent(nodeid, name)
        same = numbers[0] == received and connection.raised == raised
        return encode.no_entry(unique, connection.negative_valid_s if same else 0)
    except Stale:  # a peer removed the directory
        # The kernel asks again: on a path from what is there now, which finds what is
        # in its place; for who has it open in the same one, and there is nothing.
        if not dots:  # else the kernel may not know it, and would never forget it
            ch.fs.adopt_directory(nodeid)
        raise
    lookups = connection.lookups
    ino = attr[0]
    if attr[1] >> 12 == S_DIR and not dots:
        _placed(ch, ino, (nodeid, name))
    lookups.marks[ino & INO_MASK] = 1
    with lookups.lock:
        lookups.table[ino] = lookups.table.get(ino, 0) + 1
    same = numbers[0] == received and connection.raised == raised
    valid = FOREVER_S if same else 0
    reply = encode.entry(unique, attr, valid, valid)
    if ino in connection.generations:
        return encode.of_generation(reply, connection.generations[ino])
    return reply


def _placed(ch: Channel, ino: Ino, here: tuple[Ino, bytes]) -> None:
    """The kernel is about to take a directory for the one of this name. If it has it
    elsewhere, since a peer moved it, it should be able to. Whether it was nobody tells:
    if not, it asks again."""
    connection = ch.connection
    there = connection.places.get(ino, here)
    if there != here:
        connection.moving[ino] = there[0], time.monotonic() + MOVE_S
    connection.places.put(ino, here)
    moving = connection.moving.get(ino)
    if moving is None:
        return
    old_parent, until = moving
    began = time.monotonic()
    if began > until:
        connection.moving.pop(ino, None)
        return
    while connection.must_wait_to_move(old_parent):
        ch.about_to_wait()
        if time.monotonic() - began > MOVE_WAIT_S:
            return
        time.sleep(MOVE_LOOK_S)


def lookup_noted(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """lookup on kernels that answer an invalidation before our reply arrived."""
    ch.connection.recent[0].add(nodeid)
    return lookup(ch, unique, nodeid)


def _dot(ch: Channel, nodeid: Ino, name: bytes) -> Attr:
    return ch.fs.getattr(nodeid) if name == b"." else ch.fs.lookup(nodeid, name)


def entry_reply(ch: Channel, unique: int, attr: Attr, epoch: tuple[int, int]) -> bytes:
    """The reply for what a request made, its lookup counted.

    The kernel takes attributes of these replies unseen (no attr_version), so those
    of an inode it may hold already are valid for 0 s.
    """
    connection = ch.connection
    known = connection.lookups.knows(attr.ino)
    connection.lookups.add(attr.ino)
    valid = FOREVER_S if connection.epoch == epoch else 0
    return encode.entry(unique, attr, valid, 0 if known else valid)


def create(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    flags, mode, umask, _ = p.CREATE_IN.unpack_from(ch.buffer, REQUEST)
    connection = ch.connection
    epoch = connection.epoch
    with ch.changing(nodeid):
        name = ch.name_at(REQUEST + p.CREATE_IN.size)
        made = ch.fs.create(nodeid, name, mode, flags, ch.caller(umask))
    ch.changed(nodeid)
    reply = entry_reply(ch, unique, made.attr, epoch)
    keep = p.FOPEN_KEEP_CACHE if made.keep_cache else 0
    return encode.created(reply, unique, made.handle, keep)


def tmpfile(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    flags, mode, umask, _ = p.CREATE_IN.unpack_from(ch.buffer, REQUEST)
    epoch = ch.connection.epoch
    made = ch.fs.tmpfile(nodeid, mode, flags, ch.caller(umask))
    reply = entry_reply(ch, unique, made.attr, epoch)
    return encode.created(reply, unique, made.handle, p.FOPEN_KEEP_CACHE)


def mknod(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    mode, rdev, umask, _ = p.MKNOD_IN.unpack_from(ch.buffer, REQUEST)
    epoch = ch.connection.epoch
    with ch.changing(nodeid):
        name = ch.name_at(REQUEST + p.MKNOD_IN.size)
        device = encode.decode_dev(rdev) if rdev else 0
        attr = ch.fs.mknod(nodeid, name, mode, device, ch.caller(umask))
    ch.changed(nodeid)
    return entry_reply(ch, unique, attr, epoch)


def mkdir(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    mode, umask = p.MKDIR_IN.unpack_from(ch.buffer, REQUEST)
    epoch = ch.connection.epoch
    with ch.changing(nodeid):
        name = ch.name_at(REQUEST + p.MKDIR_IN.size)
        attr = ch.fs.mkdir(nodeid, name, mode, ch.caller(umask))
    ch.changed(nodeid)
    ch.connection.places.put(attr.ino, (nodeid, name))
    return entry_reply(ch, unique, attr, epoch)


def symlink(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    epoch = ch.connection.epoch
    with ch.changing(nodeid):
        name, target = ch.names_at(REQUEST)
        attr = ch.fs.symlink(nodeid, name, target, ch.caller())
    ch.changed(nodeid)
    return entry_reply(ch, unique, attr, epoch)


def link(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    (ino,) = p.LINK_IN.unpack_from(ch.buffer, REQUEST)
    epoch = ch.connection.epoch
    with ch.changing(nodeid, ino):
        attr = ch.fs.link(ino, nodeid, ch.name_at(REQUEST + p.LINK_IN.size))
    ch.changed(nodeid)
    return entry_reply(ch, unique, attr, epoch)


def unlink(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    with ch.changing(nodeid):
        ch.fs.unlink(nodeid, ch.name_at(REQUEST), ch.caller())
    ch.changed(nodeid)
    return encode.ok(unique)


def rmdir(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    with ch.changing(nodeid):
        name = ch.name_at(REQUEST)
        ch.connection.took((nodeid, name), ch.fs.rmdir(nodeid, name, ch.caller()))
    ch.changed(nodeid)
    return encode.ok(unique)


def rename(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    (target,) = p.RENAME_IN.unpack_from(ch.buffer, REQUEST)
    return _rename(ch, unique, nodeid, target, 0, p.RENAME_IN.size)


def rename2(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    target, flags, _ = p.RENAME2_IN.unpack_from(ch.buffer, REQUEST)
    return _rename(ch, unique, nodeid, target, flags, p.RENAME2_IN.size)


def _rename(
    ch: Channel, unique: int, nodeid: Ino, target: Ino, flags: int, size: int
) -> Reply:
    old, new = ch.names_at(REQUEST + size)
    ch.about_to_wait()  # over a file in use it waits for peers, as a close does
    across = ch.connection.crossing() if nodeid != target else nullcontext()
    with across, ch.changing(nodeid, target):
        moved, there = ch.fs.rename(nodeid, old, target, new, flags, ch.caller())
        places = ch.connection.places
        if flags & EXCHANGE:
            places.moved(there, (nodeid, old))
            ch.connection.renamed((target, new), (nodeid, old))
        else:
            ch.connection.took((target, new), there)
        places.moved(moved, (target, new))
        ch.connection.renamed((nodeid, old), (target, new))
    ch.changed(nodeid, target)
    return encode.ok(unique)


# -- listings ------------------------------------------------------------------------


def opendir(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """ENOSYS: the kernel stops asking, and keeps listings (NO_OPENDIR_SUPPORT)."""
    return encode.error(unique, errno.ENOSYS)


def readdir(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    _, cookie, size = p.READ_START.unpack_from(ch.buffer, REQUEST)
    gate = ch.connection.gate
    ch.connection.listed.add(nodeid)
    gate.tells_listing(nodeid)
    while True:
        received = gate.received
        left = size
        parts: list[bytes] = []
        for line in ch.fs.readdir_ino(nodeid, cookie):
            packed = encode.dirent(line)
            left -= len(packed)
            if left < 0:
                break
            parts.append(packed)
        if gate.received == received <= gate.settled:
            return _listing(unique, parts)
        gate.wait()


def readdirplus(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """A listing with attributes; each line but "." and ".." counts as a lookup."""
    _, cookie, size = p.READ_START.unpack_from(ch.buffer, REQUEST)
    connection = ch.connection
    connection.listed.add(nodeid)
    connection.gate.tells_listing(nodeid)
    connection.recent[0].add(nodeid)
    while True:
        connection.listers.note(nodeid, ch.thread())
        epoch = connection.epoch
        parts, seen = _lines_plus(ch, nodeid, cookie, size)
        if connection.gate.received == epoch[1]:
            break
        connection.gate.wait()
    connection.lookups.add_all(seen)
    if connection.epoch != epoch:
        parts = [_valid_for_now(part) for part in parts]
    return _listing(unique, parts)


def _lines_plus(
    ch: Channel, nodeid: Ino, cookie: int, size: int
) -> tuple[list[bytes], list[Ino]]:
    """The lines that fit, and the inodes in them."""
    left = size
    generations = ch.connection.generations
    parts: list[bytes] = []
    seen: list[Ino] = []
    for line, attr in ch.fs.readdirplus_ino(nodeid, cookie):
        name = line.name
        if name in _DOTS:
            packed = encode.dirent_bare(line)
        else:
            packed = encode.dirent_plus(line, attr)
        left -= len(packed)
        if left < 0:
            break
        parts.append(packed)
        if name not in _DOTS:
            if line.kind == S_DIR:
                ch.connection.places.offer(attr[0], (nodeid, name))
            seen.append(attr[0])
            if attr[0] in generations:
                parts[-1] = encode.of_generation(packed, generations[attr[0]], at=0)
    return parts, seen


def _listing(unique: int, parts: list[bytes]) -> bytes:
    lines = b"".join(parts)
    return p.OUT_HEADER.pack(p.OUT_BYTES + len(lines), 0, unique) + lines


_VALID: Final = slice(encode.VALID_AT, encode.VALID_AT + 16)


def _valid_for_now(part: bytes) -> bytes:
    """The same line with its entry and attributes valid for 0 s."""
    return part[: _VALID.start] + bytes(16) + part[_VALID.stop :]


HANDLERS: Final[dict[Op, Handler]] = {
    Op.LOOKUP: lookup,
    Op.CREATE: behind_fence(create),
    Op.TMPFILE: tmpfile,
    Op.MKNOD: behind_fence(mknod),
    Op.MKDIR: behind_fence(mkdir),
    Op.SYMLINK: behind_fence(symlink),
    Op.LINK: behind_fence(link),
    Op.UNLINK: behind_fence(unlink),
    Op.RMDIR: behind_fence(rmdir),
    Op.RENAME: behind_fence(rename),
    Op.RENAME2: behind_fence(rename2),
    Op.OPENDIR: opendir,
    Op.READDIR: behind_fence(even_removed(readdir)),
    Op.READDIRPLUS: behind_fence(even_removed(readdirplus)),
}
