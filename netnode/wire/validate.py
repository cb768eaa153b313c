"""What types cannot say about a peer's transactions, states and locks.

What passes here can be applied, stored and answered; what does not drops the
connection before the namespace sees it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fusefs.model.context import dots_of
from fusefs.model.hlc import MAX_AHEAD_MS, MAX_HLC, Hlc, physical_ms
from fusefs.model.ids import MAX_SEQ
from fusefs.model.records import DIRENT, check_value, dots_fit, valid_key
from fusefs.model.register import decode_register
from fusefs.model.tx import Body, State, Tx
from fusefs.nodelink.ranges import OFFSET_MAX, READ, UNLOCK, LockKey, Range
from netnode.wire.frames import ProtocolError
from netnode.wire.messages import MAX63

MAX_BODY_BYTES = 64 << 10
"""Chunks up to this size travel with their transaction."""
_MAX_OWNER = (1 << 64) - 1
_MAX_PID = (1 << 32) - 1


def check_txs(txs: Iterable[Tx], latest: int = MAX_HLC) -> None:
    """Raises ProtocolError at the first transaction that is not well-formed, or of
    after `latest`."""
    for tx in txs:
        if not (0 < tx.node <= MAX63 and 0 <= tx.prev < tx.seq <= MAX_SEQ):
            raise ProtocolError(f"a transaction is numbered {tx.node}/{tx.seq}")
        _check_time(tx.hlc, latest)
        for write in tx.writes:
            context = write.context
            if (
                not valid_key(write.key)
                or len(context) % 2
                or not dots_fit(zip(context[::2], context[1::2]))
            ):
                raise ProtocolError(f"a register key or context of {tx.dot} is bad")
            _check_value(write.key, write.value)


def check_states(states: Iterable[State], latest: int = MAX_HLC) -> None:
    """Raises ProtocolError at the first register that is not well-formed, or has a
    value of after `latest`."""
    for state in states:
        if not valid_key(state.key):
            raise ProtocolError("a register key is bad")
        try:
            register = decode_register(state.state)
        except (ValueError, msgspec.DecodeError) as error:
            raise ProtocolError(f"a register does not decode: {error}") from error
        if not dots_fit(dots_of(register.context)):
            raise ProtocolError("a register has a context out of range")
        for sibling in register.siblings:
            _check_time(sibling.hlc, latest)
            if not (0 < sibling.node <= MAX63 and 0 < sibling.seq <= MAX_SEQ):
                raise ProtocolError("a register has a dot out of range")
            _check_value(state.key, sibling.value)


def check_bodies(bodies: Iterable[Body]) -> None:
    """Raises ProtocolError when an attached chunk is not one by its form."""
    for body in bodies:
        if len(body.id) != 32 or len(body.data) > MAX_BODY_BYTES:
            raise ProtocolError("an attached chunk has a bad id or size")
        if body.is_patch:
            if len(body.basis) != 32 or not 0 < body.size <= MAX_BODY_BYTES:
                raise ProtocolError("an attached patch has a bad basis or size")
            check_ranges(body.ranges, body.size, len(body.data))


def check_ranges(ranges: Iterable[tuple[int, int]], size: int, body_bytes: int) -> None:
    """Raises ProtocolError when the parts of a patch are not those of a chunk of this
    size, or not as long together as what came with them."""
    end = total = 0
    for at, length in ranges:
        if at < end or length == 0 or at + length > size:
            raise ProtocolError("a patch has ranges that are none")
        end = at + length
        total += length
    if total != body_bytes:
        raise ProtocolError("a patch is longer or shorter than its ranges")


def check_lock(key: LockKey, range_: Range, *, drops: bool | None = None) -> None:
    """Raises ProtocolError when it is no lock a kernel can ask for. `drops`: whether
    it has to be of the kind that drops a lock."""
    check_lock_keys((key,))
    check_range(range_)
    if drops is not None and drops != (range_.kind == UNLOCK):
        raise ProtocolError("a lock is taken by dropping it, or the other way round")


def check_lock_keys(keys: Iterable[LockKey]) -> None:
    """Raises ProtocolError at what no inode has."""
    for key in keys:
        if not 0 < key.ino <= MAX63:
            raise ProtocolError("a lock of no inode")


def check_range(range_: Range) -> None:
    """Raises ProtocolError at what no kernel says of a lock."""
    if not (
        READ <= range_.kind <= UNLOCK
        and 0 <= range_.start <= range_.end <= OFFSET_MAX
        and 0 <= range_.owner <= _MAX_OWNER
        and 0 <= range_.pid <= _MAX_PID
    ):
        raise ProtocolError("a lock's range is out of range")


def check_name_key(key: bytes) -> None:
    """Raises ProtocolError when it is not the key of a name."""
    if not valid_key(key) or key[:1] != DIRENT:
        raise ProtocolError("a reservation of what is no name")


def _check_time(hlc: int, latest: int) -> None:
    if not 0 <= hlc <= MAX_HLC:
        raise ProtocolError("a time is out of range")
    if hlc > latest:
        ahead_s = physical_ms(Hlc(hlc - latest)) // 1000 + MAX_AHEAD_MS // 1000
        raise ProtocolError(
            f"something was written {ahead_s} s from now: a clock is, or was, wrong"
        )


def _check_value(key: bytes, value: bytes) -> None:
    try:
        check_value(key, value)
    except (ValueError, msgspec.DecodeError) as error:
        raise ProtocolError(f"a register value does not decode: {error}") from error
