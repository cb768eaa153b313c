"""However the views of members differ, and however late messages are: one keeps it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from fusefs.model.ids import ChunkId
from netnode.core.leaving import Leaving

CID = ChunkId(b"c" * 32)
NODES = 4


@dataclass
class Holder:
    """One node, as far as one chunk goes."""

    keeps: bool = True
    leaving: Leaving = field(default_factory=Leaving)
    owed: set[int] = field(default_factory=set)
    """Who has not said yet that it keeps it."""

    def promise(self) -> None:
        self.leaving.promised([CID])
        self.keeps = True


def run(rng: random.Random, holders: list[Holder]) -> None:
    """Questions and answers of one connection come in their order."""
    lines: dict[tuple[int, int], list[str]] = {
        (a, b): [] for a in range(NODES) for b in range(NODES) if a != b
    }
    for step in range(400):
        me = rng.randrange(NODES)
        holder = holders[me]
        others = [n for n in range(NODES) if n != me]
        if step < 200 and rng.random() < 0.3:
            if holder.keeps and not holder.owed:
                holder.owed = set(rng.sample(others, rng.randint(1, 2)))
                holder.leaving.begin(CID)
                for other in holder.owed:
                    lines[me, other].append("keep?")
            continue
        waiting = [other for other in others if lines[other, me]]
        if not waiting:
            continue
        other = rng.choice(waiting)
        if lines[other, me].pop(0) == "keep?":
            holder.promise()
            lines[me, other].append("kept")
            continue
        holder.owed.discard(other)
        if not holder.owed and holder.leaving.taken([CID]):
            holder.keeps = False
        assert any(h.keeps for h in holders)


@pytest.mark.parametrize("seed", range(300))
def test_somebody_keeps_what_all_give_up_at_once(seed: int) -> None:
    holders = [Holder() for _ in range(NODES)]
    run(random.Random(seed), holders)
    assert any(holder.keeps for holder in holders)


def test_most_of_those_who_may_go_do() -> None:
    went = 0
    for seed in range(50):
        holders = [Holder() for _ in range(NODES)]
        run(random.Random(seed), holders)
        went += sum(not holder.keeps for holder in holders)
    assert went > 50


def test_what_was_promised_since_the_question_stays() -> None:
    leaving = Leaving()
    leaving.begin(CID)
    leaving.promised([CID])
    assert leaving.taken([CID]) == []
    leaving.begin(CID)
    assert leaving.taken([CID]) == [CID]
    assert leaving.taken([CID]) == []


def test_an_answer_to_what_others_should_keep_counts_for_nothing() -> None:
    leaving = Leaving()
    leaving.begin(CID)
    leaving.clear()
    assert leaving.taken([CID]) == []


def test_what_was_promised_while_one_looks_is_not_given_up_for_it() -> None:
    leaving = Leaving()
    leaving.looks()
    leaving.promised([CID])
    leaving.looks()  # another turn, before what the first one found is asked
    leaving.begin(CID)
    assert leaving.taken([CID]) == []
    leaving.looked()
    leaving.begin(CID)
    assert leaving.taken([CID]) == [CID]
