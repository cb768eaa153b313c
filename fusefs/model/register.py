"""Registers: dotted version vector sets, and the merge everything rests on.

A register is a set of siblings and a causal context (context.py). A write
replaces every sibling it saw. Merging keeps a sibling unless the other side's
context has seen its dot and the other side no longer has it. Merge is
commutative, associative and idempotent.

Source: Preguica, Baquero, Almeida, Fonte, Goncalves, "Dotted Version Vectors"
(2010); the set form is Riak's dvvset.
"""

from __future__ import annotations

import msgspec

from fusefs.model.context import context_of, dots_of, has_seen, writer
from fusefs.model.hlc import Hlc
from fusefs.model.ids import Dot, NodeId, Seq
from fusefs.model.vector import Vector, covers, merged

GONE = b""
"""The value of a removed dirent, xattr or setting."""


class Sibling(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One concurrent value: who wrote it (dot), when (hlc) and what (encoded)."""

    node: NodeId
    seq: Seq
    hlc: Hlc
    value: bytes

    @property
    def dot(self) -> Dot:
        return (self.node, self.seq)

    @property
    def rank(self) -> tuple[int, int, int]:
        """The total order that picks a winner: (hlc, node, seq)."""
        return (self.hlc, self.node, self.seq)


class Register(msgspec.Struct, frozen=True, gc=False):
    """`siblings` sorted by dot; `context` covers at least their dots."""

    context: dict[NodeId, Seq]
    siblings: tuple[Sibling, ...]

    @property
    def latest(self) -> Sibling | None:
        """The sibling with the highest rank, gone or not."""
        if len(self.siblings) == 1:
            return self.siblings[0]
        return max(self.siblings, key=lambda s: s.rank, default=None)

    @property
    def live(self) -> tuple[Sibling, ...]:
        """The siblings that are not gone."""
        return tuple(s for s in self.siblings if s.value != GONE)


EMPTY = Register({}, ())


def written(register: Register, sibling: Sibling) -> Register:
    """The register after a local write that saw all its siblings."""
    context = dict(register.context)
    key = writer(sibling.node, sibling.seq)
    if context.get(key, 0) < sibling.seq:
        context[key] = sibling.seq
    return Register(context, (sibling,))


def merge(a: Register, b: Register) -> Register:
    """The least register that knows what both know."""
    kept = {s.dot: s for s in a.siblings if not has_seen(b.context, s.dot)}
    kept.update((s.dot, s) for s in b.siblings if not has_seen(a.context, s.dot))
    in_b = {s.dot: s for s in b.siblings}
    kept.update((s.dot, _one(s, in_b[s.dot])) for s in a.siblings if s.dot in in_b)
    siblings = tuple(kept[dot] for dot in sorted(kept))
    return Register(merged(a.context, b.context), siblings)


def _one(a: Sibling, b: Sibling) -> Sibling:
    """Of two with one dot. They are equal, unless somebody ran two copies of a store:
    then all nodes choose the same."""
    return a if a == b else max(a, b, key=lambda s: (s.hlc, s.value))


def forgotten(register: Register, upto: Vector) -> Register:
    """The register without the deletes every member knows (dots at or below `upto`).

    The context loses what only they needed, so that a node that dropped the register
    before it was written anew and one that drops it later hold equal states. Safe
    only for a causally stable `upto` (namespace/tombstones.py).
    """
    kept = tuple(s for s in register.siblings if s.value or not covers(upto, s.dot))
    if len(kept) == len(register.siblings):
        return register
    if not kept:
        return EMPTY
    dots = {s.dot for s in kept}
    context = context_of(
        dot for dot in dots_of(register.context) if dot in dots or not covers(upto, dot)
    )
    return Register(context, kept)


# -- encoding -------------------------------------------------------------------

_State = tuple[list[int], list[Sibling]]
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_State)


def encode_register(register: Register) -> bytes:
    """Canonical bytes: equal registers encode equally (digests rely on it).

    The context is a flat list node, seq, ... of its dots, sorted, without what the
    siblings' own dots already say.
    """
    own = context_of(s.dot for s in register.siblings)
    more = {key: n for key, n in register.context.items() if own.get(key) != n}
    flat = [number for dot in dots_of(more) for number in dot]
    return _encoder.encode((flat, register.siblings))


def decode_register(data: bytes | memoryview) -> Register:
    """The inverse. Raises msgspec.DecodeError / ValueError on bad bytes."""
    flat, siblings = _decoder.decode(data)
    if len(flat) % 2:
        raise ValueError("register context has an odd length")
    dots = [(s.node, s.seq) for s in siblings]
    return Register(context_of([*zip(flat[::2], flat[1::2]), *dots]), tuple(siblings))
