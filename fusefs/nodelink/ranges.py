"""Byte-range locks as values: what is held, what conflicts, how a change splits it.

Pure; used on both sides of the link and by the node that owns a lock's table.
Within one node the vfs decides between processes; what is decided here is between
nodes, so locks of one node never conflict.

Source: fcntl(2); linux/fs/locks.c (splitting and joining of ranges).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fusefs.model.ids import Ino, NodeId

READ, WRITE, UNLOCK = 0, 1, 2
"""F_RDLCK, F_WRLCK, F_UNLCK of Linux."""
OFFSET_MAX = (1 << 63) - 1


class LockKey(msgspec.Struct, array_like=True, frozen=True, gc=False, order=True):
    """Record locks and flock of one inode never see each other."""

    ino: Ino
    is_flock: bool


class Range(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`end` is inclusive; `owner` is the kernel's, unique within its node."""

    owner: int
    kind: int
    start: int = 0
    end: int = OFFSET_MAX
    pid: int = 0


class HeldLock(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One lock of a list that is asserted."""

    key: LockKey
    range: Range


def by_key(locks: Iterable[HeldLock]) -> dict[LockKey, list[Range]]:
    """The ranges of a list that is asserted: its sender keeps those of one owner
    apart, so nothing has to be split or joined."""
    out: dict[LockKey, list[Range]] = {}
    for lock in locks:
        if lock.range.kind != UNLOCK:
            out.setdefault(lock.key, []).append(lock.range)
    return out


class Holding(msgspec.Struct, frozen=True, gc=False):
    """A range and the node whose process holds it."""

    node: NodeId
    range: Range


def conflict(held: Iterable[Holding], node: NodeId, want: Range) -> Holding | None:
    """The first lock of another node that stands in the way."""
    for holding in held:
        other = holding.range
        if (
            holding.node != node
            and other.start <= want.end
            and want.start <= other.end
            and WRITE in (other.kind, want.kind)
        ):
            return holding
    return None


def changed(held: Iterable[Range], want: Range) -> list[Range]:
    """The ranges after `want.owner` sets (or with UNLOCK drops) `want`."""
    out: list[Range] = []
    start, end = want.start, want.end
    for old in held:
        if old.owner != want.owner:
            out.append(old)
        elif old.kind == want.kind and old.start <= end + 1 and start <= old.end + 1:
            start, end = min(start, old.start), max(end, old.end)
        else:
            if old.start < want.start:
                cut = min(old.end, want.start - 1)
                out.append(msgspec.structs.replace(old, end=cut))
            if old.end > want.end:
                cut = max(old.start, want.end + 1)
                out.append(msgspec.structs.replace(old, start=cut))
    if want.kind != UNLOCK:
        out.append(msgspec.structs.replace(want, start=start, end=end))
    return sorted(out, key=lambda r: (r.start, r.owner))


def lowers(held: Iterable[Range], want: Range) -> bool:
    """Whether `want.owner` holds all of the range and wants no more than to read: that
    nobody can refuse."""
    if want.kind != READ:
        return False
    at = want.start
    for old in sorted(held, key=lambda r: r.start):
        if old.owner == want.owner and old.start <= at:
            at = max(at, old.end + 1)
    return at > want.end


def within(held: Iterable[Range], want: Range) -> list[Range]:
    """The state of `want.owner` over the range of `want`, free parts as UNLOCK: what
    to say to make somebody forget that it was ever asked for."""
    out: list[Range] = []
    at = want.start
    for old in sorted(held, key=lambda r: r.start):
        if old.owner != want.owner or old.start > want.end or old.end < want.start:
            continue
        start, end = max(old.start, want.start), min(old.end, want.end)
        if at < start:
            out.append(
                msgspec.structs.replace(want, kind=UNLOCK, start=at, end=start - 1)
            )
        out.append(msgspec.structs.replace(old, start=start, end=end))
        at = end + 1
    if at <= want.end:
        out.append(msgspec.structs.replace(want, kind=UNLOCK, start=at))
    return out
