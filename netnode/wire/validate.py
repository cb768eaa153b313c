"""What types cannot say about a peer's transactions and states.

A transaction or state that passes here can be applied; one that does not drops
the connection before the namespace sees it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fusefs.model.records import check_value, valid_key
from fusefs.model.register import decode_register
from fusefs.model.tx import Body, State, Tx
from netnode.wire.frames import ProtocolError
from netnode.wire.messages import MAX63

MAX_BODY_BYTES = 64 << 10
"""Chunks up to this size travel with their transaction."""
MAX_HLC = (1 << 64) - 1


def check_txs(txs: Iterable[Tx]) -> None:
    """Raises ProtocolError at the first transaction that is not well-formed."""
    for tx in txs:
        if not (0 < tx.node <= MAX63 and 0 <= tx.prev < tx.seq <= MAX63):
            raise ProtocolError(f"a transaction is numbered {tx.node}/{tx.seq}")
        if not 0 <= tx.hlc <= MAX_HLC:
            raise ProtocolError("a transaction's time is out of range")
        for write in tx.writes:
            if not valid_key(write.key) or len(write.context) % 2:
                raise ProtocolError(f"a register key or context of {tx.dot} is bad")
            _check_value(write.key, write.value)


def check_states(states: Iterable[State]) -> None:
    """Raises ProtocolError at the first register that is not well-formed."""
    for state in states:
        if not valid_key(state.key):
            raise ProtocolError("a register key is bad")
        try:
            register = decode_register(state.state)
        except (ValueError, msgspec.DecodeError) as error:
            raise ProtocolError(f"a register does not decode: {error}") from error
        for sibling in register.siblings:
            if not (0 < sibling.node <= MAX63 and 0 < sibling.seq <= MAX63):
                raise ProtocolError("a register has a dot out of range")
            _check_value(state.key, sibling.value)


def check_bodies(bodies: Iterable[Body]) -> None:
    """Raises ProtocolError when an attached chunk is not one by its form."""
    for body in bodies:
        if len(body.id) != 32 or len(body.data) > MAX_BODY_BYTES:
            raise ProtocolError("an attached chunk has a bad id or size")


def _check_value(key: bytes, value: bytes) -> None:
    try:
        check_value(key, value)
    except (ValueError, msgspec.DecodeError) as error:
        raise ProtocolError(f"a register value does not decode: {error}") from error
