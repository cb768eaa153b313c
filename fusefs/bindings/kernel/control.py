"""Requests about the connection itself: INIT, INTERRUPT, DESTROY, wake-ups."""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

from fusefs.bindings.kernel import encode, session
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.channel import Channel, Handler, Reply
from fusefs.bindings.kernel.protocol import REQUEST, Op
from fusefs.model.ids import Ino

log = logging.getLogger("dfs.kernel")


def init(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """Agrees with the kernel; its first request, none other comes before."""
    connection = ch.connection
    offer = session.offered(ch.view[REQUEST : ch.length])
    try:
        settings = connection.settings
        agreed = session.negotiate(*offer, locks=settings.locks, acl=settings.acl)
    except session.Incompatible as problem:
        connection.failed(problem)
        return encode.error(unique, errno.EPROTO)
    # Written here: whoever waits for the agreement must find the mount answering.
    os.write(connection.fd, session.init_reply(unique, agreed))
    connection.begin(agreed)
    log.info("kernel speaks 7.%d, flags %#x", offer[1], agreed.flags)
    return None


def interrupt(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """Marks the request as cancelled; it answers EINTR itself if it waits.

    EAGAIN when no thread works on it: the kernel asks again if it is still there.
    """
    (target,) = p.INTERRUPT_IN.unpack_from(ch.buffer, REQUEST)
    for channel in ch.connection.channels:
        if channel.unique == target:
            channel.interrupted = target
            return None
    return encode.error(unique, errno.EAGAIN)


def destroy(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    return encode.ok(unique)


def wake_up(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """The answer to a notification that only meant to wake this thread."""
    return None


def unknown(ch: Channel, unique: int, nodeid: Ino) -> Reply:
    """ENOSYS: the kernel does without (ioctl, poll, bmap, what comes later)."""
    return encode.error(unique, errno.ENOSYS)


HANDLERS: Final[dict[Op, Handler]] = {
    Op.INIT: init,
    Op.INTERRUPT: interrupt,
    Op.DESTROY: destroy,
    Op.NOTIFY_REPLY: wake_up,
}
