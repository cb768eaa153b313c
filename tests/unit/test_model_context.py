"""What was seen, before and after a power cut."""

from __future__ import annotations

from fusefs.model.conflict import split_versions, unseen_by_deleters
from fusefs.model.context import (
    EPOCH_BITS,
    after_power_cut,
    context_of,
    dots_of,
    has_seen,
)
from fusefs.model.hlc import Hlc
from fusefs.model.ids import NodeId, Seq
from fusefs.model.records import Content
from fusefs.model.register import Register, Sibling, merge, written

A, B = NodeId(0x1234567890ABCDEF), NodeId(7)


def dot(node: NodeId, number: int) -> tuple[NodeId, Seq]:
    return node, Seq(number)


def test_context_without_power_cuts_is_a_vector() -> None:
    assert context_of([dot(A, 3), dot(B, 9), dot(A, 5)]) == {A: 5, B: 9}


def test_numbers_after_a_power_cut_never_touch_the_lost_ones() -> None:
    for last in (0, 5, (1 << EPOCH_BITS) - 1, 1 << EPOCH_BITS, 3 << EPOCH_BITS):
        lost = dot(A, last + (1 << EPOCH_BITS) - 1)
        first = after_power_cut(Seq(last), 1)
        assert first > lost[1]
        assert not has_seen(context_of([dot(A, last), (A, first)]), lost)
        assert after_power_cut(Seq(last), 2) >= first + (1 << EPOCH_BITS)


def test_dots_of_a_context_are_the_dots_it_was_made_of() -> None:
    dots = [dot(B, 2), dot(A, 5), dot(A, after_power_cut(Seq(5), 1))]
    assert dots_of(context_of(dots)) == sorted(dots)


def test_write_after_a_power_cut_keeps_the_lost_one() -> None:
    first = Sibling(A, Seq(1), Hlc(1), b"first")
    lost = Sibling(A, Seq(2), Hlc(2), b"lost here, known to peers")
    anew = Sibling(A, after_power_cut(Seq(1), 1), Hlc(3), b"anew")
    here = written(Register({}, ()), first)
    peer = written(here, lost)
    whole = merge(written(here, anew), peer)
    assert whole.siblings == (lost, anew)
    assert merge(whole, written(whole, anew)).siblings == (anew,)


def test_version_after_a_power_cut_is_a_conflict_with_the_lost_one() -> None:
    number = after_power_cut(Seq(1), 1)
    lost = Content(0, 0, 1, b"a", seen=(dot(A, 1), dot(A, 2)))
    anew = Content(0, 0, 1, b"b", seen=(dot(A, 1), dot(A, number)))
    versions = [
        (Sibling(A, Seq(2), Hlc(2), b""), lost),
        (Sibling(A, number, Hlc(3), b""), anew),
    ]
    shown, losers = split_versions(versions)
    assert shown[1] == anew and [c for _, c in losers] == [lost]
    assert unseen_by_deleters(lost, [anew.seen])
    assert not unseen_by_deleters(lost, [(*lost.seen, *anew.seen)])
