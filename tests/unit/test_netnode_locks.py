"""One owner's lock table: order, leases, grace."""

from __future__ import annotations

from fusefs.model.ids import Ino, NodeId
from fusefs.nodelink.frames import MAX_HEADER_BYTES
from fusefs.nodelink.messages import HeldLocks, decode_to_node, encode
from fusefs.nodelink.ranges import READ, UNLOCK, WRITE, HeldLock, LockKey, Range
from fusefs.vfs.locks import MAX_HELD
from netnode.core.locks import LEASE_S, LockTable, Verdict
from netnode.core.reservations import LIFE_S, Reservations
from netnode.wire import messages

KEY = LockKey(Ino(5), False)
A, B, C = NodeId(1), NodeId(2), NodeId(3)
W, R, U = Range(9, WRITE), Range(9, READ), Range(9, UNLOCK)


def granted(*who: tuple[NodeId, int]) -> list[Verdict]:
    return [Verdict(node, number, True, None, KEY) for node, number in who]


def stands(table: LockTable, node: NodeId, key: LockKey = KEY) -> Range | None:
    """What stands in the way of a write lock."""
    [verdict] = table.test(node, 0, key, W)
    assert verdict.granted == (verdict.conflict is None)
    return verdict.conflict


def test_waiters_are_served_in_order_and_readers_do_not_overtake() -> None:
    table = LockTable(0)
    assert table.ask(A, 1, KEY, R, False, False) == granted((A, 1))
    assert table.ask(B, 2, KEY, W, True, False) == []
    assert table.ask(C, 3, KEY, R, True, False) == []
    assert table.ask(C, 4, KEY, R, False, False) == granted((C, 4))
    assert table.release(C, KEY, U, False) == []
    assert table.release(A, KEY, U, False) == granted((B, 2))
    assert table.release(B, KEY, U, False) == granted((C, 3))
    assert len(table) == 1


def test_who_holds_a_part_is_not_kept_behind_those_that_wait_for_it() -> None:
    """As between programs of one machine: an upgrade, or another range, is had at once
    (of its own program; others stand in the queue)."""
    table = LockTable(0)
    table.ask(A, 1, KEY, R, False, False)
    assert table.ask(B, 2, KEY, W, True, False) == []
    assert table.ask(A, 3, KEY, Range(8, READ), True, False) == []
    assert table.ask(A, 4, KEY, W, True, False) == granted((A, 4))
    assert table.release(A, KEY, U, False) == granted((B, 2))


def test_who_holds_a_part_gets_the_rest_before_those_that_wait_for_both() -> None:
    table = LockTable(0)
    rest = Range(9, WRITE, 10, 19)
    table.ask(A, 1, KEY, Range(9, READ, 0, 9), False, False)
    table.ask(C, 2, KEY, Range(9, READ, 10, 19), False, False)
    assert table.ask(B, 3, KEY, W, True, False) == []
    assert table.ask(A, 4, KEY, rest, True, False) == []
    assert table.release(C, KEY, U, False) == granted((A, 4))
    assert table.release(A, KEY, U, False) == granted((B, 3))


def test_cancelled_writer_lets_readers_through() -> None:
    table = LockTable(0)
    table.ask(A, 1, KEY, R, False, False)
    table.ask(B, 2, KEY, W, True, False)
    table.ask(C, 3, KEY, R, True, False)
    assert table.cancel(B, 2, False) == granted((C, 3))


def test_lease_that_is_not_renewed_ends() -> None:
    table = LockTable(0)
    table.asserted(A, [HeldLock(KEY, W)], 0)
    assert table.ask(B, 1, KEY, W, True, False) == []
    assert table.expire(LEASE_S - 1) == []
    table.asserted(A, [HeldLock(KEY, W)], 10)
    assert table.expire(LEASE_S + 1) == []
    assert table.expire(10 + LEASE_S) == [A]
    assert table.retry(False) == granted((B, 1))
    assert table.asserted(A, [HeldLock(KEY, W)], 30) == [HeldLock(KEY, W)]


def test_lease_of_a_node_that_holds_nothing_ends_without_a_word() -> None:
    """As that of each node that was unmounted: it lost no locks."""
    table = LockTable(0)
    table.asserted(A, [], 0)
    table.asserted(B, [HeldLock(KEY, W)], 0)
    assert table.expire(LEASE_S) == [B]
    assert table.expire(LEASE_S) == []


def test_who_knows_other_members_asserts_what_it_holds_and_nothing_else() -> None:
    table, other = LockTable(0), LockKey(Ino(6), False)
    table.asserted(A, [HeldLock(KEY, W)], 0)
    table.asserted(A, [HeldLock(other, W)], 0, agrees=False)
    assert stands(table, B) == stands(table, B, other) == W
    assert table.asserted(B, [HeldLock(KEY, W)], 0, agrees=False) == [HeldLock(KEY, W)]
    table.begin_grace(1)
    table.asserted(A, [], 1, agrees=False)
    assert table.in_grace([A], 1)
    assert table.expire(LEASE_S + 0.5) == []  # its lease is renewed all the same
    table.asserted(A, [], 2)
    assert not table.in_grace([A], 2) and not len(table)


def test_owner_forgets_what_another_one_decides_about() -> None:
    table, other = LockTable(0), LockKey(Ino(6), False)
    for number, key in enumerate((KEY, other)):
        table.ask(A, number, key, W, False, False)
        table.ask(B, 2 + number, key, W, True, False)
    assert table.disown(lambda key: key == other) == [(B, 2)]
    table.asserted(A, [HeldLock(other, W)], 0, [0, 1])  # 0 was granted, and is gone
    assert len(table) == 1
    assert table.release(A, other, U, False) == [Verdict(B, 3, True, None, other)]


def test_asserted_are_all_but_those_that_others_hold() -> None:
    table = LockTable(0)
    ranges = [Range(9, READ, 10 * n, 10 * n + 4) for n in range(5)]
    table.asserted(B, [HeldLock(KEY, Range(7, WRITE, 12, 22))], 0)
    lost = table.asserted(A, [HeldLock(KEY, r) for r in ranges], 0)
    assert lost == [HeldLock(KEY, r) for r in ranges[1:3]]
    assert len(table) == 4
    assert table.asserted(A, [HeldLock(KEY, ranges[0])], 1) == []
    assert len(table) == 2
    assert table.asserted(B, [], 2) == []
    assert table.asserted(A, [], 2) == []
    assert len(table) == 0


def test_all_that_a_node_may_hold_fits_into_one_message() -> None:
    most = (1 << 63) - 1
    locks = tuple(
        HeldLock(LockKey(Ino(most), True), Range(2 * most, WRITE, most, most, 1 << 31))
        for _ in range(MAX_HELD + 500)  # and what is asked for at once
    )
    encoded = messages.encode(messages.LockAssert(locks))
    assert len(encoded) < MAX_HEADER_BYTES * 0.6
    assert messages.decode_control(encoded) == messages.LockAssert(locks)
    encoded = encode(HeldLocks(locks))
    assert len(encoded) < MAX_HEADER_BYTES * 0.6
    assert decode_to_node(encoded) == HeldLocks(locks)


def test_grace_ends_when_all_have_asserted_or_in_time() -> None:
    table = LockTable(0)
    assert table.in_grace([A, B], 1)
    table.asserted(A, [], 1)
    table.asserted(B, [HeldLock(KEY, W)], 1)
    assert not table.in_grace([A, B], 1)
    table.begin_grace(5)
    assert table.in_grace([A, B], 6)
    assert not table.in_grace([A, B], 5 + LEASE_S)
    assert table.ask(A, 1, KEY, W, False, True) == []
    assert table.retry(True) == []
    (verdict,) = table.retry(False)
    assert not verdict.granted


def test_unlock_and_cancel_in_grace_grant_nothing() -> None:
    other = LockKey(Ino(6), False)
    table = LockTable(0)
    table.asserted(C, [HeldLock(other, W)], 1)
    # B holds KEY and has not said so yet
    assert table.ask(C, 1, KEY, W, True, True) == []
    assert table.ask(C, 2, other, W, True, True) == []
    assert table.release(C, other, U, True) == []
    assert table.cancel(C, 2, True) == []
    assert table.asserted(B, [HeldLock(KEY, W)], 2) == []
    assert table.retry(False) == []
    assert table.release(B, KEY, U, False) == granted((C, 1))


def test_reservation_is_one_nodes_until_it_is_used_or_late() -> None:
    reservations = Reservations()
    assert reservations.ask(A, 5, b"key", 0)
    assert not reservations.ask(A, 5, b"key", 0)
    assert not reservations.ask(B, 7, b"key", 1)
    reservations.seen(B, 9, b"key")
    reservations.seen(A, 5, b"key")  # an older one of A that came late
    assert not reservations.ask(B, 9, b"key", 1)
    reservations.seen(A, 6, b"key")
    assert reservations.ask(B, 9, b"key", 1)
    assert reservations.ask(A, 6, b"key", 1 + LIFE_S)


def test_what_was_granted_while_an_assertion_was_on_its_way_stays() -> None:
    table = LockTable(0)
    assert table.ask(A, 1, KEY, W, False, False) == granted((A, 1))
    table.asserted(A, [], 1, [1])
    assert stands(table, B) is not None
    table.asserted(A, [HeldLock(KEY, W)], 2)
    assert stands(table, B) is not None
    table.asserted(A, [], 3)
    assert stands(table, B) is None


def test_looking_at_those_who_wait_is_not_their_square(monkeypatch) -> None:
    """It is done again for each release, and every second."""
    table, looked = LockTable(0), []
    keeps_back = LockTable._keeps_back
    for number in range(200):
        table.ask(A, number, LockKey(Ino(number), False), W, True, False)
    for number in range(200):
        table.ask(B, number, KEY, Range(number, READ), True, False)
        table.ask(B, 1000 + number, LockKey(Ino(number), False), W, True, False)

    def counted(self: LockTable, *waiters: object) -> bool:
        looked.append(1)
        return keeps_back(self, *waiters)  # type: ignore[arg-type]

    monkeypatch.setattr(LockTable, "_keeps_back", counted)
    assert table.retry(False) == []
    assert len(looked) < 400
