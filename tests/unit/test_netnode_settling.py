"""Acknowledgements wait for the worker, in order, within bounds."""

from __future__ import annotations

from fusefs.model.tx import Effects
from netnode.settling import AWAY_S, MAX_PENDING_BYTES, Settling

EFFECTS = Effects(inodes=[5])


class Worker:
    def __init__(self) -> None:
        self.told: list[tuple[int, bool]] = []

    def changed(self, number: int, effects: Effects, everything: bool) -> None:
        self.told.append((number, everything))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_mount_everything_is_released_at_once() -> None:
    settling, released = Settling(Clock()), []
    settling.add(EFFECTS, lambda: released.append(1))
    assert released == [1]
    assert not settling.pending


def test_a_mount_whose_worker_has_not_come_yet_is_waited_for() -> None:
    """Its kernel may have cached something already."""
    settling, worker = Settling(Clock(), expects_worker=True), Worker()
    released: list[int] = []
    settling.add(EFFECTS, lambda: released.append(1))
    assert released == []
    settling.attached(worker)
    settling.done(worker.told[-1][0])
    assert released == [1]


def test_releases_come_in_order_with_the_answers() -> None:
    settling, worker, released = Settling(Clock()), Worker(), []
    settling.attached(worker)
    assert worker.told == [(1, True)]
    settling.done(1)
    for n in (1, 2, 3):
        settling.add(EFFECTS, lambda n=n: released.append(n))
    settling.add(Effects(), lambda: released.append(4))
    assert released == []
    settling.done(3)
    assert released == [1, 2]
    settling.done(4)
    assert released == [1, 2, 3, 4]
    settling.add(Effects(), lambda: released.append(5))
    assert released[-1] == 5


def test_worker_away_holds_releases_until_the_next_one_or_for_a_while() -> None:
    clock, released = Clock(), []
    settling, worker = Settling(clock), Worker()
    settling.attached(worker)
    settling.done(1)
    settling.detached(worker)
    settling.add(EFFECTS, lambda: released.append(1))
    assert released == []
    second = Worker()
    settling.attached(second)
    settling.done(second.told[-1][0])
    assert released == [1]
    settling.detached(second)
    settling.add(EFFECTS, lambda: released.append(2))
    clock.now = AWAY_S + 1
    settling.tick()
    assert released == [1, 2]


def test_worker_that_does_not_answer_gets_a_bounded_queue() -> None:
    settling, worker = Settling(Clock()), Worker()
    settling.attached(worker)
    settling.done(1)
    released: list[int] = []
    big = Effects(inodes=list(range(1, 10_000)))
    for n in range(100):
        settling.add(big, lambda n=n: released.append(n))
    sent = [number for number, everything in worker.told if not everything]
    assert len(sent) * 10_000 * 100 < 2 * MAX_PENDING_BYTES
    assert worker.told[-1][1]
    settling.done(worker.told[-1][0])
    assert worker.told[-1][1]
    settling.done(worker.told[-1][0])
    assert released == list(range(100))
    assert not settling.pending
