"""Deliberately broken variants must be caught: the simulator can see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from fusefs.model.register import Register, decode_register
from fusefs.model.tx import State
from fusefs.model.vector import Vector
from fusefs.namespace import registers
from fusefs.namespace.derive import Derivation
from fusefs.namespace.replicate import Apply
from tests.sim.scenario import Plan, run_plan

MOST_SEEDS = 60
Break = Callable[[pytest.MonkeyPatch], None]


def later_sibling_only(patch: pytest.MonkeyPatch) -> None:
    """Last writer wins, the other version is dropped."""
    merge = registers.merge

    def broken(a: Register, b: Register) -> Register:
        merged = merge(a, b)
        kept = tuple(s for s in (merged.latest,) if s is not None)
        return Register(merged.context, kept)

    patch.setattr(registers, "merge", broken)


def vector_before_apply(patch: pytest.MonkeyPatch) -> None:
    """The first part of a delta already claims all of it."""
    states = Apply.states

    def broken(
        self: Apply, batch: Sequence[State], advance: Vector, target: Vector
    ) -> None:
        states(self, batch, target or advance, target)

    patch.setattr(Apply, "states", broken)


def no_revival(patch: pytest.MonkeyPatch) -> None:
    """A deleted file stays deleted whatever was written to it meanwhile."""
    patch.setattr(Derivation, "_file_home", lambda self, ino, attrs: None)


def digest_without_context(patch: pytest.MonkeyPatch) -> None:
    """Registers that know different things look equal."""
    state_hash = registers.state_hash

    def broken(key: bytes, state: bytes) -> int:
        values = repr(decode_register(state).siblings) if state else ""
        return state_hash(key, values.encode())

    patch.setattr(registers, "state_hash", broken)


@pytest.mark.parametrize(
    ("broken", "first"),
    [
        (later_sibling_only, 3),
        (vector_before_apply, 19),
        (no_revival, 9),
        (digest_without_context, 7),
    ],
)
@pytest.mark.timeout(300)
def test_broken_variant_is_caught(
    broken: Break, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`first`: a seed that shows it, at the time of writing."""
    broken(monkeypatch)
    for seed in range(first, first + MOST_SEEDS):
        outcome = run_plan(Plan(seed))
        if outcome.problems:
            print(f"seed {seed}: {outcome.problems[0]}")
            return
    pytest.fail(f"{broken.__name__} was not noticed in {MOST_SEEDS} seeds")
