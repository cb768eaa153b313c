"""The decision of the mass-delete guard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO, Ino
from fusefs.model.tx import State as RegisterState
from netnode.core.guard import YOUNG_S, Guard, Removals, State
from netnode.environment import Environment
from netnode.holding import Holding
from tests.lib.cluster import wait_until
from tests.lib.local import Local, RecordingPeers, local_vfs, replicate


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


# -- what counts as removed ------------------------------------------------------------

FILES = 5


class Pair:
    """`there` has changed what both had; `here` looks at the changes."""

    def __init__(self, here: Local, there: Local) -> None:
        self.here, self.there = here, there
        assert isinstance(there.peers, RecordingPeers)
        self._peers = there.peers
        self._vector = here.namespace.vector()
        self._told = 0
        later = time.time_ns() // 1_000_000 + int(YOUNG_S + 60) * 1000
        environment = Environment(lambda: later)
        self._holding = Holding(
            here.namespace, Guard(), environment, lambda tx, effects: None
        )

    def level(self) -> None:
        replicate(self.there, self.here)
        self._vector = self.here.namespace.vector()
        self._told = len(self._peers.published)

    def has_news(self) -> bool:
        return len(self._peers.published) > self._told

    def removed(self) -> int:
        """The same whether it comes as transactions or as a delta."""
        txs = [tx for tx, _ in self._peers.published[self._told :]]
        states: list[RegisterState] = []
        for batch in self.there.namespace.delta(self._vector):
            states += batch.states
        by_tx = self._holding.removals_of_txs(txs, self._vector)
        by_state = self._holding.removals_of_states(states, self._vector)
        assert by_tx.counted == by_state.counted == len(by_tx.inos)
        assert set(by_tx.inos) == set(by_state.inos)
        return by_tx.counted


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with (
        local_vfs(tmp_path / "here", root=False) as here,
        local_vfs(tmp_path / "there", peers=RecordingPeers()) as there,
    ):
        for number in range(FILES):
            there.put(f"/f{number}", b"data")
        made = Pair(here, there)
        made.level()
        yield made


def names() -> list[bytes]:
    return [b"f%d" % number for number in range(FILES)]


def unlink(local: Local) -> None:
    for name in names():
        local.vfs.unlink(ROOT_INO, name)


def replace_by_rename(local: Local) -> None:
    for name in names():
        local.put("/new", b"new " + name)
        local.vfs.rename(ROOT_INO, b"new", ROOT_INO, name)


def replace_by_unlink(local: Local) -> None:
    for name in names():
        local.vfs.unlink(ROOT_INO, name)
        local.put("/" + name.decode(), b"new")


def replace_then_unlink(local: Local) -> None:
    replace_by_rename(local)
    unlink(local)


def move(local: Local) -> None:
    local.mkdir("/away")
    for name in names():
        local.vfs.rename(ROOT_INO, name, local.walk("/away"), name)


@pytest.mark.parametrize(
    ("change", "removed"),
    [
        (unlink, FILES),
        (replace_by_rename, 0),
        (replace_by_unlink, 0),
        (replace_then_unlink, FILES),
        (move, 0),
    ],
)
def test_what_counts_is_what_is_gone(
    pair: Pair, change: Callable[[Local], None], removed: int
) -> None:
    change(pair.there)
    assert pair.removed() == removed


@pytest.mark.parametrize("data", [b"data", b""])
def test_one_name_of_several_counts_only_when_it_is_the_last(
    pair: Pair, data: bytes
) -> None:
    there = pair.there
    there.vfs.link(there.put("/one", data), ROOT_INO, b"two")
    pair.level()
    there.vfs.unlink(ROOT_INO, b"one")
    assert pair.removed() == 0
    pair.level()
    there.vfs.unlink(ROOT_INO, b"two")
    assert pair.removed() == 1


def test_emptied_directory_counts_with_its_children(pair: Pair) -> None:
    there = pair.there
    directory = there.mkdir("/d")
    there.put("/d/x", b"data")
    pair.level()
    there.vfs.unlink(directory, b"x")
    there.vfs.rmdir(ROOT_INO, b"d")
    there.mkdir("/d2")
    assert pair.removed() == 2


def test_a_claim_to_a_name_that_another_has_does_not_count(pair: Pair) -> None:
    """The same file, put there by both: theirs lost."""
    for local, temporary in ((pair.there, b"t"), (pair.here, b"h")):
        local.put("/" + temporary.decode(), b"same")
        local.vfs.rename(ROOT_INO, temporary, ROOT_INO, b"both")
    pair.level()
    assert len(pair.here.listing()) == FILES + 2
    replicate(pair.here, pair.there)
    wait_until(pair.has_news, "the claim is taken back")
    assert pair.removed() == 0
    pair.level()
    assert len(pair.here.listing()) == FILES + 1
