"""What is passed on of members that are not connected, and how long it counts."""

from __future__ import annotations

from fusefs.model.ids import NodeId, Seq
from netnode.core import horizon
from netnode.core.hearsay import AGE_S, MOST, Said, heard_of, news_for
from netnode.core.horizon import Told
from netnode.wire.messages import MAX_HEARD

A, B, C, D = (NodeId(n) for n in range(1, 5))


def told(seq: int, boot: int = 7) -> Told:
    return Told(boot, {A: Seq(seq)})


def test_what_a_member_says_itself_counts_before_what_others_say_of_it() -> None:
    known = heard_of({B: told(5)}, [{B: Said(told(9), 10.0)}], 10.0)
    assert known == {B: Said(told(5), 10.0)}


def test_of_what_is_passed_on_the_latest_counts_and_not_for_long() -> None:
    of_two = [{D: Said(told(3), 1.0)}, {D: Said(told(5), 2.0)}]
    assert heard_of({}, of_two, 10.0)[D].told == told(5)
    assert heard_of({}, of_two, 2.0 + AGE_S)[D].told == told(5)
    assert heard_of({}, of_two, 2.1 + AGE_S) == {}


def test_nothing_is_passed_on_to_whom_it_is_of_or_who_hears_it_anyway() -> None:
    known = {n: Said(told(n), 1.0) for n in (B, C, D)}
    assert news_for(B, (C,), known) == [(D, known[D])]


def test_the_latest_news_are_passed_on_when_there_are_many() -> None:
    known = {NodeId(n): Said(told(n), float(n)) for n in range(10, 100)}
    news = news_for(B, (), known)
    assert [node for node, _ in news] == list(range(99, 99 - MOST, -1))


def test_all_that_is_passed_on_fits_into_a_heartbeat() -> None:
    assert MOST <= MAX_HEARD


def test_what_is_heard_twice_was_said_long_enough_apart_to_be_on_disk() -> None:
    assert horizon.EVERY_S - AGE_S >= 30
