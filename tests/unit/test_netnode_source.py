"""What waits for a peer: in which order, and how much of it."""

from __future__ import annotations

import pytest

from fusefs.model.ids import chunk_id
from netnode.source import MOST_AHEAD_BYTES, Pace, ToServe

A, B, C, D = (chunk_id(name) for name in (b"a", b"b", b"c", b"d"))


def test_what_is_urgent_goes_first_each_in_order() -> None:
    queue = ToServe()
    queue.add((), (A, B))
    queue.add((C,), (D,))
    assert len(queue) == 4
    assert queue.next() == C
    queue.add((C,), ())
    assert [queue.next() for _ in range(len(queue))] == [C, A, B, D]
    with pytest.raises(IndexError):
        queue.next()
    queue.add((A,), (B,))
    queue.clear()
    assert not queue


def test_little_waits_on_a_slow_line_and_much_on_a_fast_one() -> None:
    pace = Pace()
    assert pace.ahead == MOST_AHEAD_BYTES
    pace.took(1 << 20, 0.4)
    assert 70_000 < pace.ahead < 80_000
    for _ in range(20):
        pace.took(1 << 20, 0.008)
    assert pace.ahead == MOST_AHEAD_BYTES


@pytest.mark.parametrize("count, seconds", [(1 << 20, 0.0), (0, 1.0), (-5, 1.0)])
def test_what_tells_nothing_of_the_line_is_left_out(count: int, seconds: float) -> None:
    pace = Pace()
    pace.took(count, seconds)
    assert pace.ahead == MOST_AHEAD_BYTES


def test_something_may_wait_on_the_slowest_line() -> None:
    pace = Pace()
    pace.took(1, 3600.0)
    assert pace.ahead == 1
