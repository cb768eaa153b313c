"""Causal contexts: which writes a register or a version of a file has seen.

A vector would do if a node always knew all it wrote. After a power cut it does not:
its last transactions may be lost here and known to peers, and what it writes then has
not seen them. Its numbers go on in another *epoch* (the high bits), and a context
keeps one entry for each epoch of a node: a write of one epoch says nothing of those
before, unless they were seen.

A context maps `writer(dot)` to the highest number seen of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fusefs.model.ids import Dot, NodeId, Seq

EPOCH_BITS = 28
"""An epoch has so many numbers at least before it touches the next: 2^28 operations
within one run of a machine. The first 16 epochs fit four bytes of msgpack."""
EPOCHS_PER_POWER_CUT = 2
"""Not one: the lost numbers may have been the last of their epoch."""
_SHIFT = 40

Context = Mapping[NodeId, Seq]


def writer(node: NodeId, seq: Seq) -> NodeId:
    """The node in this epoch; in the first one its id."""
    return NodeId(node ^ (seq >> EPOCH_BITS << _SHIFT))


def has_seen(context: Context, dot: Dot) -> bool:
    return context.get(writer(*dot), 0) >= dot[1]


def without(context: Context, dots: Iterable[Dot]) -> dict[NodeId, Seq]:
    """The context that has not seen these, nor what their writers wrote later."""
    out = dict(context)
    for dot in dots:
        key = writer(*dot)
        out[key] = Seq(min(out.get(key, 0), dot[1] - 1))
    return {key: seq for key, seq in out.items() if seq > 0}


def dots_of(context: Context) -> list[Dot]:
    """The highest dot of each writer, sorted."""
    if all(seq >> EPOCH_BITS == 0 for seq in context.values()):
        return sorted(context.items())
    return sorted((writer(key, seq), seq) for key, seq in context.items())


def context_of(dots: Iterable[tuple[int, int]]) -> dict[NodeId, Seq]:
    """The context that has seen these, and what their writers wrote before."""
    out: dict[NodeId, Seq] = {}
    for node, seq in dots:
        key = NodeId(node ^ (seq >> EPOCH_BITS << _SHIFT))
        if out.get(key, 0) < seq:
            out[key] = Seq(seq)
    return out


def cuts_into(last: Seq, epoch: int) -> int:
    """How many power cuts behind `last` lead into that epoch, or a later one."""
    missing = epoch - (last >> EPOCH_BITS)
    return max(1, -(-missing // EPOCHS_PER_POWER_CUT))


def after_power_cut(last: Seq, cuts: int) -> Seq:
    """The next number when so many power cuts may have taken what came after `last`."""
    return Seq((last >> EPOCH_BITS) + cuts * EPOCHS_PER_POWER_CUT << EPOCH_BITS)
