"""INIT: what kernel and server agree on, and how that survives a worker. Pure.

The agreement is made once per mount. A worker that takes over a live mount gets no
INIT, so the first one's agreement is kept (STORE/run/fuse.json) and read again.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fusefs.bindings.kernel import protocol as p

WANTED: Final[tuple[tuple[int, str], ...]] = (
    (p.ASYNC_READ, "several reads of one file in flight: read-ahead"),
    (p.ATOMIC_O_TRUNC, "open(O_TRUNC) is one request and one transaction"),
    (p.EXPORT_SUPPORT, "inode numbers last: handles (NFS, open_by_handle_at) too"),
    (p.BIG_WRITES, "writes of more than a page"),
    (p.DO_READDIRPLUS, "a listing brings the attributes: ls -l is one pass"),
    (p.READDIRPLUS_AUTO, "... but only where somebody asks for them"),
    (p.ASYNC_DIO, "O_DIRECT in parallel pieces"),
    (p.PARALLEL_DIROPS, "lookups and listings of one directory in parallel"),
    (p.ABORT_ERROR, "an aborted connection says so (ECONNABORTED)"),
    (p.MAX_PAGES, "requests of 1 MiB instead of 128 KiB"),
    (p.CACHE_SYMLINKS, "targets never change: read each once"),
    (p.NO_OPENDIR_SUPPORT, "no OPENDIR, no RELEASEDIR; listings stay cached"),
    (p.EXPLICIT_INVAL_DATA, "pages go when we say so, not on a change of mtime"),
    (p.HANDLE_KILLPRIV_V2, "set-id bits are cleared here: no getxattr per write"),
    (p.SETXATTR_EXT, "the long form of SETXATTR"),
    (p.INIT_EXT, "flags above bit 31"),
    (p.HAS_RESEND, "a new worker gets the requests its predecessor left"),
)
"""Not wanted, on purpose:

WRITEBACK_CACHE: the kernel would hold sizes and times and ignore remote changes.
AUTO_INVAL_DATA: it drops pages whenever mtime differs, which every write of ours
    makes true, and asks for attributes before every read; changes from outside are
    pushed (notify), with the exact range.
NO_OPEN_SUPPORT: opens count (orphans, keep-cache by version, O_TRUNC, locks).
"""
LOCKS: Final = p.POSIX_LOCKS | p.FLOCK_LOCKS
"""Only where locks must exclude other nodes; else the kernel's own are faster."""

ACLS: Final = p.POSIX_ACL | p.DONT_MASK
"""Only with -o acl: for its checks the kernel asks once for the list of each inode
whose group may do anything. The umask is ours then, for where a default decides it does
not count."""

MAX_BACKGROUND: Final = 64
"""Reads ahead and releases in flight (the kernel's default 12 stalls releases)."""
CONGESTION: Final = 48


class Session(msgspec.Struct, frozen=True):
    """The agreement. `flags` are those both sides use."""

    minor: int = p.NEWEST_MINOR
    flags: int = 0
    max_write: int = p.MAX_WRITE
    max_readahead: int = 0

    def has(self, flag: int) -> bool:
        return bool(self.flags & flag)

    def state(self) -> bytes:
        """JSON for the next worker."""
        return msgspec.json.encode(self)


def adopt(state: bytes) -> Session:
    """The inverse of `Session.state`. Raises msgspec.DecodeError."""
    return msgspec.json.decode(state, type=Session)


def presumed(*, acl: bool) -> Session:
    """The agreement where it was lost: notifications this kernel does not know are
    refused, nothing else depends on it."""
    return Session(flags=_wanted(locks=True, acl=acl))


def _wanted(*, locks: bool, acl: bool) -> int:
    always = sum(flag for flag, _ in WANTED)
    return always | (LOCKS if locks else 0) | (ACLS if acl else 0)


class Incompatible(Exception):
    """The kernel's protocol is too old (before Linux 5.4) or of another major."""


def offered(request: bytes | memoryview) -> tuple[int, int, int, int]:
    """(major, minor, max_readahead, flags of 64 bits) of an INIT record."""
    major, minor, readahead, flags = p.INIT_IN.unpack_from(request)
    if flags & p.INIT_EXT and len(request) >= p.INIT_IN_FLAGS2 + 4:
        flags2 = int.from_bytes(
            request[p.INIT_IN_FLAGS2 : p.INIT_IN_FLAGS2 + 4], "little"
        )
        flags |= flags2 << 32
    return major, minor, readahead, flags


def negotiate(
    major: int, minor: int, readahead: int, flags: int, *, locks: bool, acl: bool
) -> Session:
    """What we answer to an offer.

    Raises:
        Incompatible: nothing in common.
    """
    if major != p.KERNEL_VERSION or minor < p.OLDEST_MINOR:
        raise Incompatible(
            f"the kernel speaks FUSE {major}.{minor}; 7.31 (Linux 5.4) or newer is"
            " needed, or mount with -o binding=fusepy"
        )
    agreed = flags & _wanted(locks=locks, acl=acl)
    max_write = p.MAX_WRITE if agreed & p.MAX_PAGES else 32 * p.PAGE
    return Session(min(minor, p.NEWEST_MINOR), agreed, max_write, readahead)


def init_reply(unique: int, session: Session) -> bytes:
    return p.INIT_REPLY.pack(
        80, 0, unique, p.KERNEL_VERSION, session.minor, session.max_readahead,
        session.flags & 0xFFFFFFFF, MAX_BACKGROUND, CONGESTION, session.max_write,
        1, session.max_write // p.PAGE, 0, session.flags >> 32, 0,
    )  # fmt: skip
