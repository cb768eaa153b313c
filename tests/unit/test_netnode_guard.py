"""The decision of the mass-delete guard."""

from __future__ import annotations

import pytest

from fusefs.model.ids import Ino
from netnode.core.guard import Guard, State


def inos(count: int, first: int = 100) -> list[Ino]:
    return [Ino(n) for n in range(first, first + count)]


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
    assert guard.judge(inos(removals), tree, 1.0) is held
    assert guard.holding is held


@pytest.mark.parametrize(("pause_s", "held"), [(1.0, True), (20.0, False)])
def test_removals_within_the_window_add_up(pause_s: float, held: bool) -> None:
    guard, tree, now = Guard(0.3, 100, 60), 1000, 0.0
    for turn in range(10):
        now += pause_s
        batch = inos(50, 100 * turn)
        if guard.judge(batch, tree, now):
            break
        guard.removed(batch, now)
        tree -= 50
    assert guard.holding is held
    if held:
        assert guard.held == 350


def test_share_of_zero_never_holds() -> None:
    guard = Guard(0.0)
    assert not guard.judge(inos(1000), 1000, 0.0)


def test_apply_lets_all_pass_and_starts_anew() -> None:
    guard = Guard(0.3, 100, 60)
    assert guard.judge(inos(150), 200, 0.0)
    assert guard.judge(inos(1), 200, 500.0)  # until somebody decides
    assert guard.decide(True)
    assert guard.state is State.PASSING
    assert not guard.judge(inos(150), 200, 501.0)
    guard.removed(inos(150), 501.0)
    assert guard.level() == []
    assert not guard.decide(True)
    assert guard.judge(inos(150), 200, 502.0)


def test_reject_names_what_went_before_and_after() -> None:
    guard = Guard(0.3, 100, 60)
    guard.removed(inos(50, 0), 0.0)
    assert guard.judge(inos(80, 50), 150, 1.0)
    assert guard.decide(False)
    guard.removed(inos(80, 50), 900.0)
    assert guard.level() == inos(130, 0)
