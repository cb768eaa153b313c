"""The merge is a join: commutative, associative, idempotent, and loses no sibling."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.model.context import after_power_cut, has_seen
from fusefs.model.hlc import Hlc
from fusefs.model.ids import NodeId, Seq
from fusefs.model.register import (
    EMPTY,
    Register,
    Sibling,
    decode_register,
    encode_register,
    merge,
    written,
)

NODES = [NodeId(1), NodeId(2), NodeId(3)]


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Register], list[Sibling]]:
    """Three replicas of one register after random writes, merges and power cuts,
    which take a replica back to what it was and give it other numbers."""
    replicas = [EMPTY, EMPTY, EMPTY]
    seqs = [0, 0, 0]
    synced = [(EMPTY, 0)] * 3
    cuts = [0, 0, 0]
    wrote: list[Sibling] = []
    for step in range(draw(st.integers(1, 12))):
        who = draw(st.integers(0, 2))
        what = draw(
            st.sampled_from(("write", "write", "merge", "merge", "sync", "cut"))
        )
        if what == "sync":
            synced[who] = (replicas[who], seqs[who])
            cuts[who] = 0
        elif what == "cut":
            replicas[who], last = synced[who]
            cuts[who] += 1
            seqs[who] = after_power_cut(Seq(last), cuts[who])
            wrote = [
                s for s in wrote if any(has_seen(r.context, s.dot) for r in replicas)
            ]
        elif what == "write":
            seqs[who] += draw(st.integers(1, 3))
            value = draw(st.sampled_from([b"", b"x", b"y"]))
            stamp = Hlc(step * 7 + draw(st.integers(0, 9)))
            sibling = Sibling(NODES[who], Seq(seqs[who]), stamp, value)
            replicas[who] = written(replicas[who], sibling)
            wrote.append(sibling)
        else:
            other = draw(st.integers(0, 2))
            replicas[who] = merge(replicas[who], replicas[other])
    return replicas, wrote


@given(histories())
@settings(max_examples=300)
def test_merge_any_order_is_the_same(history: tuple) -> None:
    (a, b, c), _ = history
    assert merge(a, b) == merge(b, a)
    assert merge(a, merge(b, c)) == merge(merge(a, b), c)
    assert merge(a, a) == a
    assert merge(a, EMPTY) == a


@given(histories())
def test_merge_keeps_what_no_write_replaced(history: tuple) -> None:
    replicas, wrote = history
    whole = merge(merge(replicas[0], replicas[1]), replicas[2])
    for sibling in wrote:
        kept = sibling in whole.siblings
        assert kept or has_seen(whole.context, sibling.dot)
    for replica in replicas:
        for sibling in replica.siblings:
            seen_elsewhere = any(
                has_seen(r.context, sibling.dot) and sibling not in r.siblings
                for r in replicas
            )
            assert (sibling in whole.siblings) != seen_elsewhere


@given(histories())
def test_encoding_round_trips_and_is_canonical(history: tuple) -> None:
    for register in history[0]:
        data = encode_register(register)
        assert decode_register(data) == register
        assert encode_register(decode_register(data)) == data


def test_two_values_of_one_dot_merge_into_the_same_everywhere() -> None:
    """As of two copies of a store that ran side by side."""
    one, other = (
        Register({NODES[0]: Seq(3)}, (Sibling(NODES[0], Seq(3), hlc, value),))
        for hlc, value in ((Hlc(5), b"x"), (Hlc(4), b"y"))
    )
    assert merge(one, other) == merge(other, one) == one
