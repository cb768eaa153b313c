"""What the next holder of a lock waits for."""

from __future__ import annotations

from fusefs.model.ids import Ino, NodeId, Seq
from fusefs.nodelink.ranges import LockKey
from netnode.core.handover import (
    ASSERTED_S,
    LIMIT_S,
    MAX_LOCKS,
    Handovers,
    Releases,
)

KEY = LockKey(Ino(5), False)
A, B, C = NodeId(1), NodeId(2), NodeId(3)


def test_owner_tells_the_next_holder_what_the_others_wrote() -> None:
    releases = Releases()
    releases.released(KEY, A, Seq(7))
    releases.released(KEY, B, Seq(3))
    releases.released(KEY, A, Seq(5))  # says no more than the one before
    assert releases.before(KEY, A, 0) == {B: 3}
    assert releases.before(KEY, C, 0) == {A: 7, B: 3}
    assert releases.before(LockKey(Ino(5), True), C, 0) == {}


def test_new_owner_has_all_shown_that_was_written_before_it_was_one() -> None:
    releases = Releases()
    releases.asserted(A, Seq(9), 0)
    releases.asserted(B, Seq(2), 0)
    releases.released(KEY, B, Seq(4))
    assert releases.before(KEY, C, 1) == {A: 9, B: 4}
    assert releases.before(LockKey(Ino(6), False), A, 1) == {B: 2}
    assert releases.before(KEY, C, ASSERTED_S) == {B: 4}


def test_owner_remembers_the_latest_releases_only() -> None:
    releases = Releases()
    for number in range(MAX_LOCKS):
        releases.released(LockKey(Ino(number), False), A, Seq(1))
    releases.released(LockKey(Ino(0), False), A, Seq(2))
    releases.released(LockKey(Ino(MAX_LOCKS), False), A, Seq(1))
    assert len(releases) == MAX_LOCKS
    assert releases.before(LockKey(Ino(0), False), B, 0) == {A: 2}
    assert releases.before(LockKey(Ino(1), False), B, 0) == {}


def test_lock_counts_once_everything_is_applied() -> None:
    handovers, held = Handovers(), list[str]()
    handovers.begin({}, {}, 0.0, lambda: held.append("at once"))
    handovers.begin({A: Seq(2)}, {A: Seq(2)}, 0.0, lambda: held.append("had it"))
    handovers.begin({A: Seq(3), B: Seq(1)}, {A: Seq(2)}, 0.0, lambda: held.append("x"))
    assert held == ["at once", "had it"]
    handovers.progressed({A: Seq(3)}, 1.0)
    assert len(handovers) == 1
    handovers.progressed({A: Seq(4), B: Seq(1)}, 1.0)
    assert held[2:] == ["x"] and not len(handovers)


def test_what_a_lost_node_wrote_is_not_waited_for_for_ever() -> None:
    handovers, held = Handovers(), list[str]()
    handovers.begin({A: Seq(3)}, {}, 10.0, lambda: held.append("x"))
    handovers.progressed({}, 10.0 + LIMIT_S - 0.1)
    assert not held
    handovers.progressed({}, 10.0 + LIMIT_S)
    assert held == ["x"]
