"""Locks delegated to the node that uses them: the owner's table, and the holder."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusefs.model.ids import Ino, NodeId
from fusefs.nodelink.ranges import READ, UNLOCK, WRITE, HeldLock, LockKey, Range
from netnode.core.delegations import IDLE_S, Delegations
from netnode.core.locks import (
    DELEGATE_AFTER,
    LEASE_S,
    MAX_DELEGATED,
    LockTable,
    Verdict,
)

KEY = LockKey(Ino(5), False)
A, B, C = NodeId(1), NodeId(2), NodeId(3)
W, R, U = Range(9, WRITE), Range(9, READ), Range(9, UNLOCK)


def delegated(node: NodeId = A, key: LockKey = KEY) -> LockTable:
    """Its last request has the number DELEGATE_AFTER, and the lock is free again."""
    table = LockTable(0, lambda node: True)
    table.asserted(node, [], 0)
    delegate(table, node, key)
    return table


def delegate(table: LockTable, node: NodeId = A, key: LockKey = KEY) -> None:
    for number in range(1, DELEGATE_AFTER + 1):
        [verdict] = table.ask(node, number, key, W, False, False)
        assert verdict.granted
        assert verdict.delegated == (number == DELEGATE_AFTER)
        if number < DELEGATE_AFTER:
            table.release(node, key, U, False)


# -- the owner ---------------------------------------------------------------------


def test_who_alone_asks_again_and_again_is_delegated_the_lock() -> None:
    table = delegated()
    table.release(A, KEY, U, False)
    assert not len(table)
    assert table.recalls() == []
    assert table.ask(B, 1, KEY, R, True, False) == []
    assert table.recalls() == [(A, KEY)]
    assert table.recalls() == []  # once is enough
    table.returned(A, KEY, [])
    assert table.retry(False) == [Verdict(B, 1, True, None, KEY)]


def test_what_was_returned_is_held_as_the_holder_says() -> None:
    table = delegated()
    assert table.ask(B, 1, KEY, W, True, False) == []
    assert table.ask(C, 1, KEY, R, False, False) == []
    assert table.test(B, 2, KEY, R) == []
    table.returned(A, KEY, [R])
    assert table.retry(False) == [
        Verdict(C, 1, True, None, KEY),
        Verdict(B, 2, True),
    ]
    table.release(C, KEY, U, False)
    assert table.release(A, KEY, U, False) == [Verdict(B, 1, True, None, KEY)]


def test_others_that_ask_or_hold_keep_it_with_the_owner() -> None:
    table = LockTable(0, lambda node: True)
    first, second = Range(9, WRITE, 0, 9), Range(9, WRITE, 10, 19)
    table.ask(B, 1, KEY, second, False, False)
    for number in range(DELEGATE_AFTER + 2):
        [verdict] = table.ask(A, number, KEY, first, False, False)
        assert verdict.granted and not verdict.delegated
    for node in (A, B):
        table.release(node, KEY, U, False)
    for number in range(10, 20):  # by turns
        for node in (B, A):
            [verdict] = table.ask(node, number, KEY, first, False, False)
            assert verdict.granted and not verdict.delegated
            table.release(node, KEY, U, False)
    table.ask(A, 20, KEY, first, False, False)
    table.ask(B, 20, KEY, first, True, False)
    for number in range(21, 30):
        [verdict] = table.ask(A, number, KEY, R, False, False)
        assert not verdict.delegated


def test_near_nodes_are_not_delegated_to_and_none_too_many_locks() -> None:
    keys = [LockKey(Ino(n + 10), False) for n in range(MAX_DELEGATED + 1)]
    for node, lent in ((B, 0), (A, MAX_DELEGATED)):
        table = LockTable(0, lambda node: node != B)
        verdicts = [
            verdict
            for key in keys
            for number in range(DELEGATE_AFTER)
            for verdict in table.ask(node, number, key, R, False, False)
        ]
        assert sum(v.delegated for v in verdicts) == lent


def test_the_end_of_a_lease_and_an_assertion_without_it_end_a_delegation() -> None:
    table = delegated()
    table.ask(B, 1, KEY, W, True, False)
    assert table.expire(LEASE_S) == [A]
    assert table.retry(False) == [Verdict(B, 1, True, None, KEY)]
    assert table.keeps(A, [KEY]) == [KEY]  # lost

    table = delegated()
    table.asserted(A, [HeldLock(KEY, R)], 1)
    assert table.keeps(A, [KEY]) == []
    assert table.ask(B, 1, KEY, R, False, False) == []
    table.asserted(A, [HeldLock(KEY, R)], 2)
    assert table.retry(False) == [Verdict(B, 1, True, None, KEY)]


def test_who_was_cut_off_does_not_get_back_what_another_decides_about() -> None:
    """Its lease had ended, and what it held was granted and then lent."""
    table = delegated()
    table.release(A, KEY, U, False)
    lock = HeldLock(KEY, R)
    assert table.asserted(B, [lock], 20) == [lock]
    table.returned(A, KEY, [])
    assert table.asserted(B, [lock], 25) == []
    assert table.ask(A, 9, KEY, W, True, False) == []


def test_an_assertion_that_crosses_the_grant_does_not_end_it() -> None:
    table = delegated()
    table.asserted(A, [], 1, asking=[DELEGATE_AFTER])
    assert table.ask(B, 1, KEY, R, True, False) == []
    assert table.recalls() == [(A, KEY)]


def test_a_grant_that_crosses_the_return_is_held() -> None:
    """Its lease had ended for it, so it asked; the owner counts longer."""
    table = delegated()
    table.asserted(A, [], 1)
    table.keeps(A, [KEY])
    assert table.ask(B, 1, KEY, R, True, False) == []
    [verdict] = table.ask(A, 70, KEY, W, False, False)
    assert verdict.granted and not verdict.delegated
    table.returned(A, KEY, [], asking=[70])
    assert table.retry(False) == []
    assert table.release(A, KEY, U, False) == [Verdict(B, 1, True, None, KEY)]


def test_a_return_of_before_the_grant_of_all_of_it_says_nothing() -> None:
    """Else its node would decide about what the owner thinks it got back."""
    table = delegated()
    table.asserted(A, [], 1)
    table.keeps(A, [KEY])
    assert table.ask(B, 1, KEY, R, True, False) == []
    assert table.recalls() == [(A, KEY)]
    table.cancel(B, 1, False)
    [verdict] = table.ask(A, 70, KEY, R, True, False)
    assert verdict.delegated
    table.returned(A, KEY, [], asking=[70])
    assert table.ask(B, 2, KEY, R, True, False) == []
    assert table.recalls() == [(A, KEY)]
    table.returned(A, KEY, [R])
    assert table.retry(False) == [Verdict(B, 2, True, None, KEY)]


def test_new_owner_of_a_lock_decides_about_it() -> None:
    table = delegated()
    table.ask(B, 1, KEY, R, True, False)
    assert table.disown(lambda key: False) == [(B, 1)]
    assert table.recalls() == []
    assert table.keeps(B, [KEY]) == []


# -- the holder --------------------------------------------------------------------


def holder(now: float = 0) -> Delegations:
    delegations = Delegations()
    delegations.granted(KEY, A, 3, now)
    delegations.asserted(A, 100, now)
    return delegations


def test_holder_decides_once_it_shows_the_data_and_the_owner_confirmed() -> None:
    for steps in ("shown", "renewed"), ("renewed", "shown"):
        delegations = holder()
        for step in steps:
            assert not delegations.decide(KEY, 0)
            if step == "shown":
                delegations.shown(KEY, 2)  # a request before
                assert not delegations.decide(KEY, 0)
                delegations.shown(KEY, 3)
            else:
                delegations.renewed(A, 100, [])
        assert delegations.decide(KEY, 0)
        assert not delegations.decide(LockKey(Ino(5), True), 0)


def test_holder_stops_when_told_or_not_told() -> None:
    def ready() -> Delegations:
        delegations = holder()
        delegations.shown(KEY, 3)
        delegations.renewed(A, 100, [])
        assert delegations.decide(KEY, 0)
        return delegations

    for stop in (
        lambda d: d.drop(KEY),
        lambda d: d.drop_of(A),
        lambda d: d.drop_all(),
        lambda d: d.renewed(A, 100, [KEY]),
    ):
        delegations = ready()
        stop(delegations)
        assert not delegations.decide(KEY, 0)
        assert not len(delegations) and delegations.of(A) == ()
    delegations = ready()
    assert not delegations.decide(KEY, LEASE_S - 0.5)
    assert delegations.of(A) == (KEY,)
    assert delegations.idle(IDLE_S) == []
    assert delegations.idle(IDLE_S + 1) == [(A, KEY)]


def test_assertions_that_are_never_confirmed_are_forgotten() -> None:
    delegations = holder()
    for number in range(101, 200):
        delegations.asserted(A, number, number)
    assert len(delegations._asserted[A]) <= LEASE_S


step = st.tuples(
    st.sampled_from(["sent", "arrived", "confirmed", "nothing"]),
    st.floats(0, 8),
)


@given(st.lists(step, max_size=60))
def test_holder_stops_before_the_owner_lends_to_others(
    steps: list[tuple[str, float]],
) -> None:
    """Whatever is late or lost: an assertion may arrive any time after it was sent, and
    its confirmation any time after that, or never; in order."""
    table, now = delegated(), 0.0
    delegations = Delegations()
    delegations.granted(KEY, A, DELEGATE_AFTER, now)
    delegations.shown(KEY, DELEGATE_AFTER)
    under_way: list[int] = []
    confirmed: list[int] = []
    number = 0
    for what, after_s in steps:
        now += after_s
        if what == "sent":
            number += 1
            delegations.asserted(A, number, now)
            under_way.append(number)
        elif what == "arrived" and under_way:
            at = under_way.pop(0)
            table.expire(now)
            table.asserted(A, [], now)
            if not table.keeps(A, [KEY]):
                confirmed.append(at)
        elif what == "confirmed" and confirmed:
            delegations.renewed(A, confirmed.pop(0), [])
        if delegations.decide(KEY, now):
            table.expire(now)
            assert table.ask(B, 1, KEY, W, True, False) == []
            table.cancel(B, 1, False)
