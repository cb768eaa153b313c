"""A set of object ids that may say yes wrongly, never no: 3 bytes an id.

The ids are digests, so their own bits serve as the hash functions.
"""

from __future__ import annotations

import struct

from fusefs.model.ids import ChunkId

BITS_PER_ID = 24
"""With three probes: one wrong yes in 600."""
_SALTS = 3
_PROBES = [struct.Struct(f"={8 * at}xQQ") for at in range(_SALTS)]


class Bloom:
    """Sized for `capacity` ids. `salt` picks which part of the ids is used."""

    def __init__(self, capacity: int, salt: int = 0) -> None:
        self._bits = max(1024, capacity * BITS_PER_ID)
        self._table = bytearray(self._bits // 8 + 1)
        self._unpack = _PROBES[salt % _SALTS].unpack_from

    def _positions(self, cid: ChunkId) -> tuple[int, int, int]:
        # Kirsch and Mitzenmacher (2006): two hashes make any number.
        one, two = self._unpack(cid)
        bits = self._bits
        return one % bits, (one + two) % bits, (one + 2 * two) % bits

    def add(self, cid: ChunkId) -> None:
        table = self._table
        for at in self._positions(cid):
            table[at >> 3] |= 1 << (at & 7)

    def __contains__(self, cid: ChunkId) -> bool:
        table = self._table
        a, b, c = self._positions(cid)
        return bool(
            table[a >> 3] >> (a & 7) & 1
            and table[b >> 3] >> (b & 7) & 1
            and table[c >> 3] >> (c & 7) & 1
        )
