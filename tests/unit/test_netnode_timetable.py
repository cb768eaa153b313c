"""What members have on their disks, and to whom it is passed on."""

from __future__ import annotations

from fusefs.model.ids import NodeId, Seq
from netnode.core.timetable import MOST, MOST_ENTRIES, Row, TimeTable
from netnode.wire.messages import MAX_ROWS

A, B, C, D = (NodeId(n) for n in range(1, 5))


def row(at: int, seq: int) -> Row:
    return Row(at, Seq(1), {A: Seq(seq)})


def test_the_latest_a_member_said_counts_whatever_way_it_came() -> None:
    table = TimeTable()
    for said in (row(2, 5), row(1, 3), row(2, 5)):
        table.learn(D, said)
    assert table.rows == {D: row(2, 5)}


def test_a_store_restored_from_a_copy_has_less_than_it_had() -> None:
    table = TimeTable()
    table.learn(D, row(1, 5))
    table.learn(D, row(2, 3))
    assert table.rows == {D: row(2, 3)}


def test_a_peer_is_told_once_and_not_of_whom_it_hears_itself() -> None:
    table, told = TimeTable(), {}
    for node in (B, C, D):
        table.learn(node, row(1, node))
    assert table.news(told, (B, C)) == [(D, row(1, D))]
    assert table.news(told, (B, C)) == []
    table.learn(D, row(2, 9))
    assert table.news(told, (B, C)) == [(D, row(2, 9))]
    assert table.news(told, ()) == [(B, row(1, B)), (C, row(1, C))]


def test_what_does_not_fit_into_one_message_is_told_with_the_next() -> None:
    table, told = TimeTable(), {}
    for number in range(1, 2 * MOST):
        table.learn(NodeId(number), row(1, number))
    first, second = table.news(told, ()), table.news(told, ())
    assert (len(first), len(second)) == (MOST, MOST - 1)
    assert dict(first + second).keys() == table.rows.keys()
    assert MOST <= MAX_ROWS


def test_long_vectors_go_one_after_the_other() -> None:
    table, told = TimeTable(), {}
    long = {NodeId(n): Seq(n) for n in range(1, MOST_ENTRIES)}
    for node in (B, C):
        table.learn(node, Row(1, Seq(1), long))
    assert [node for node, _ in table.news(told, ())] == [B]
    assert [node for node, _ in table.news(told, ())] == [C]


def test_who_is_no_member_any_more_is_forgotten() -> None:
    table = TimeTable()
    for node in (B, C):
        table.learn(node, row(1, 1))
    table.keep((A, B))
    assert table.rows == {B: row(1, 1)}
