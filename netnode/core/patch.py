"""A chunk as what differs from another one. Pure.

Both are cut into blocks at the same offsets: programs that change a file in place write
pages, and what is moved within a file is not looked for.
"""

from __future__ import annotations

from collections.abc import Sequence

BLOCK = 1024
"""Bytes that are the same or are sent."""
_STRIDE = 64 * BLOCK
"""Compared at once before looking closer."""

Ranges = tuple[tuple[int, int], ...]
"""(offset, length), ascending and apart."""


def difference(old: bytes | bytearray, new: bytes) -> Ranges | None:
    """Where `new` has other bytes than `old`, or more; None when that is more than half
    of it, so that a patch is not worth it."""
    ranges: list[tuple[int, int]] = []
    most, total = len(new) // 2, 0
    for start in range(0, len(new), _STRIDE):
        if old.startswith(new[start : start + _STRIDE], start):
            continue
        for at in range(start, min(start + _STRIDE, len(new)), BLOCK):
            block = new[at : at + BLOCK]
            if old.startswith(block, at):
                continue
            total += len(block)
            if total > most:
                return None
            if ranges and sum(ranges[-1]) == at:
                at, before = ranges.pop()
                ranges.append((at, before + len(block)))
            else:
                ranges.append((at, len(block)))
    return tuple(ranges)


def cut_out(data: bytes, ranges: Sequence[tuple[int, int]]) -> bytes:
    """The bytes of these ranges, one after the other."""
    return b"".join(data[at : at + length] for at, length in ranges)


def patched(
    old: bytearray,
    size: int,
    ranges: Sequence[tuple[int, int]],
    body: bytes | bytearray | memoryview,
) -> bytearray:
    """`old` itself (a new MiB costs as much as the rest), cut or filled with zeros to
    `size`, with the ranges replaced by the bytes of `body`, which has as many as they
    (wire/validate.py)."""
    if len(old) > size:
        del old[size:]
    elif len(old) < size:
        old.extend(bytes(size - len(old)))
    taken = 0
    for at, length in ranges:
        old[at : at + length] = body[taken : taken + length]
        taken += length
    return old
