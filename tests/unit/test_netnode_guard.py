"""The decision of the mass-delete guard."""

from __future__ import annotations

import pytest

from fusefs.model.ids import Ino
from netnode.core.guard import Guard, Removals, State


def inos(count: int, first: int = 100) -> list[Ino]:
    return [Ino(n) for n in range(first, first + count)]


def old(count: int, first: int = 100) -> Removals:
    return Removals(inos(count, first), count)


@pytest.mark.parametrize(
    ("tree", "removals", "held"),
    [
        (1000, 301, True),
        (1000, 300, False),
        (200, 100, True),
        (99, 99, False),  # a small tree is never held
        (5000, 100, False),
        (100, 100, True),
        (0, 0, False),
    ],
)
def test_share_and_least_decide(tree: int, removals: int, held: bool) -> None:
    guard = Guard(0.3, 100, 60)
    assert guard.judge(removals, tree, 1.0) is held
    assert guard.holding is held


@pytest.mark.parametrize(("pause_s", "held"), [(1.0, True), (20.0, False)])
def test_removals_within_the_window_add_up(pause_s: float, held: bool) -> None:
    guard, tree, now = Guard(0.3, 100, 60), 1000, 0.0
    for turn in range(10):
        now += pause_s
        batch = old(50, 100 * turn)
        if guard.judge(batch.counted, tree, now):
            break
        guard.removed(batch, now)
        tree -= 50
    assert guard.holding is held
    if held:
        assert guard.held == 350


def test_share_of_zero_never_holds() -> None:
    guard = Guard(0.0)
    assert not guard.judge(1000, 1000, 0.0)


def test_apply_lets_all_pass_and_starts_anew() -> None:
    guard = Guard(0.3, 100, 60)
    assert guard.judge(150, 200, 0.0)
    assert guard.judge(1, 200, 500.0)  # until somebody decides
    assert guard.decide(True)
    assert guard.state is State.PASSING
    assert not guard.judge(150, 200, 501.0)
    guard.removed(old(150), 501.0)
    assert guard.level() == []
    assert not guard.decide(True)
    assert guard.judge(150, 200, 502.0)


def test_reject_names_what_went_before_and_after() -> None:
    guard = Guard(0.3, 100, 60)
    guard.removed(old(50, 0), 0.0)
    assert guard.judge(80, 150, 1.0)
    assert guard.decide(False)
    guard.removed(old(80, 50), 900.0)
    assert guard.level() == inos(130, 0)


def test_what_is_young_does_not_count_but_comes_back() -> None:
    guard = Guard(0.3, 100, 60, young_s=600)
    assert guard.old_ns(1_000_000) == 400_000 * 1_000_000
    young = Removals(inos(5000), 0)
    assert not guard.judge(young.counted, 10_000, 0.0)
    guard.removed(young, 0.0)
    guard.removed(old(50, 10_000), 1.0)
    assert guard.judge(80, 150, 2.0)
    assert guard.held == 130
    assert guard.decide(False)
    guard.removed(Removals(inos(90, 20_000), 80), 3.0)
    assert guard.level() == inos(5000) + inos(50, 10_000) + inos(90, 20_000)
    assert not guard.judge(40, 100, 4.0)  # it starts anew
