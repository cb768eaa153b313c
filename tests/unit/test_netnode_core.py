"""Placement, barriers, nearness, membership, back-off, pushes."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fusefs.model.ids import NodeId, Seq, chunk_id
from fusefs.model.records import Member
from netnode.comparing import _that_fit
from netnode.core import pushes as pushes_module
from netnode.core.backoff import Backoff
from netnode.core.barrier import Barriers
from netnode.core.horizon import horizon
from netnode.core.membership import (
    MAX_ADDRESSES,
    MAX_SEEDS,
    Link,
    Membership,
    keep_new,
)
from netnode.core.nearness import SURE_SAMPLES, Nearness
from netnode.core.placement import holders, ranked
from netnode.core.pushes import Pushes
from netnode.core.repair import Agreement, Repair, differing
from netnode.core.spaceagain import ENOUGH_BYTES, SpaceAgain
from netnode.core.timetable import Row
from netnode.versions import Seen
from netnode.wire.frames import MAX_HEADER_BYTES
from netnode.wire.messages import BucketKeys, encode

NODES = list(range(1, 8))
CIDS = [chunk_id(b"%d" % n) for n in range(400)]

# -- placement -----------------------------------------------------------------------


def test_placement_is_even_and_the_same_in_any_order() -> None:
    counts = dict.fromkeys(NODES, 0)
    for cid in CIDS:
        chosen = holders(cid, NODES, 3)
        assert chosen == holders(cid, reversed(NODES), 3)
        for node in chosen:
            counts[node] += 1
    assert min(counts.values()) > 100


def test_leaving_node_moves_only_its_chunks() -> None:
    for cid in CIDS:
        before = holders(cid, NODES, 3)
        after = holders(cid, NODES[:-1], 3)
        kept = [n for n in before if n != NODES[-1]]
        assert after[: len(kept)] == kept


def test_writer_counts_as_one_and_comes_first() -> None:
    for cid in CIDS[:50]:
        for writer in NODES:
            chosen = holders(cid, NODES, 3, writer)
            assert chosen[0] == writer
            others = [n for n in ranked(cid, NODES) if n != writer]
            assert chosen[1:] == others[:2]
    assert holders(CIDS[0], NODES, 1, 5) == [5]


# -- barriers ------------------------------------------------------------------------


def test_barrier_completes_with_its_last_peer() -> None:
    barriers: Barriers[str] = Barriers()
    assert barriers.begin("nobody", 1, (), 0, 1)
    assert not barriers.begin("two", 5, (1, 2), 0, 1)
    assert barriers.acknowledged(1, 4) == []
    assert barriers.acknowledged(1, 9) == []
    assert barriers.acknowledged(2, 5) == ["two"]
    assert len(barriers) == 0


def test_barrier_does_not_wait_for_the_gone_and_expires() -> None:
    barriers: Barriers[str] = Barriers()
    barriers.begin("a", 5, (1, 2), 0, 1)
    barriers.begin("b", 6, (2,), 0, 2)
    assert barriers.gone(2) == ["b"]
    assert barriers.expire(0.9) == []
    assert barriers.expire(1.0) == [("a", {1})]


def test_near_is_the_least_round_trip_and_prompt() -> None:
    near = Nearness(0.010)
    assert not near.near(0)
    near.measured(0.2)
    assert not near.near(0)
    near.measured(0.004)
    assert near.near(0)
    near.owes(10)
    assert near.near(10.5)
    assert not near.near(11.5)
    near.progressed(12, level=False)
    assert near.near(12.5)
    near.progressed(13, level=True)
    assert near.near(99)


def test_few_long_round_trips_leave_it_open_how_far_a_peer_is() -> None:
    near = Nearness(0.010)
    assert not near.unsure  # nothing measured: the first answer is on its way
    near.measured(0.020)
    assert near.unsure
    near.measured(0.004)
    assert not near.unsure
    far = Nearness(0.010)
    for _ in range(SURE_SAMPLES):
        far.measured(0.020)
    assert not far.unsure


# -- membership ----------------------------------------------------------------------


@given(
    st.booleans(),
    st.booleans(),
    st.integers(0, 10),
    st.integers(1, 2),
    st.integers(1, 2),
)
def test_both_ends_keep_the_same_connection(
    old_by_low: bool, new_by_low: bool, gap: int, old_boot: int, new_boot: int
) -> None:
    low, high = 10, 20
    old = Link(low if old_by_low else high, old_boot, 0.0)
    new = Link(low if new_by_low else high, new_boot, float(gap))
    assert keep_new(old, new, low, high) == keep_new(old, new, high, low)


def test_simultaneous_dials_leave_one() -> None:
    by_low, by_high = Link(1, 7, 0.0), Link(2, 7, 0.1)
    assert not keep_new(by_low, by_high, 1, 2)
    assert keep_new(by_high, by_low._replace(since=0.1), 2, 1)


def test_new_addresses_come_in_however_many_were_heard_of_before() -> None:
    """A laptop that goes from one network to another, for months."""
    membership = Membership(NodeId(1))
    for number in range(2 * MAX_SEEDS):
        address = f"10.0.0.{number}:1"
        assert membership.add_seed(address)
        membership.seed_is(address, NodeId(2))
        assert membership.learn_addresses(NodeId(2), (address, f"b{number}:1"))
        assert not membership.learn_addresses(NodeId(2), (address,), confirmed=True)
        first, *others = membership.addresses(NodeId(2))
        assert first == address and f"b{number}:1" in others[:2]
    assert len(membership.addresses(NodeId(2))) == MAX_ADDRESSES
    membership = Membership(NodeId(1), [f"{number}:1" for number in range(MAX_SEEDS)])
    assert not membership.add_seed("who:1")  # none of these was ever reached


def test_members_and_seeds_are_dialled_until_connected() -> None:
    membership = Membership(1, ["seed:1", "two:1"])
    seeds = [t.addresses for t in membership.targets(())]
    assert seeds == [("seed:1",), ("two:1",)]
    membership.seed_is("seed:1", 2)
    membership.learn_members(
        {2: Member("two", ("two:1",)), 3: Member("gone", ("x:1",), forgotten=True)}
    )
    membership.learn_addresses(2, ["new:1"], confirmed=True)
    target, seed = membership.targets(())
    assert (target.node, target.addresses) == (2, ("new:1", "two:1"))
    assert seed.addresses == ("two:1",)
    assert membership.targets((2,)) == []  # two:1 is of a node that is connected
    assert membership.members() == [1, 2]
    assert membership.forgotten(3)


def test_backoff_grows_to_its_limit_and_starts_over() -> None:
    rng = random.Random(1)
    backoff = Backoff(rng.uniform, 0.2, 15)
    pauses = [backoff.next_s() for _ in range(20)]
    assert 0.1 <= pauses[0] <= 0.2
    assert 7.5 <= pauses[-1] <= 15
    backoff.reset()
    assert backoff.next_s() <= 0.2


# -- pushes --------------------------------------------------------------------------


def test_pushed_chunk_is_settled_when_all_keepers_confirmed() -> None:
    pushes, cid, other = Pushes(), CIDS[0], CIDS[1]
    assert pushes.owe(other, (), 1)
    assert not pushes.owe(cid, (2, 3), 1)
    assert not pushes.owe(cid, (), 1), "another file needs fewer copies"
    assert pushes.offer(2, 0.5) == ()
    assert pushes.offer(2, 1) == (cid,)
    assert pushes.offer(2, 1) == ()
    assert pushes.answered(2, (cid,), ()) == ([cid], [])
    assert not pushes.confirmed(2, cid)
    assert pushes.offer(3, 1) == (cid,)
    assert pushes.answered(3, (cid,), (cid,)) == ([], [cid])
    assert len(pushes) == 0


def test_offer_to_a_peer_that_left_is_made_again() -> None:
    pushes, cid = Pushes(), CIDS[0]
    pushes.owe(cid, (2,), 0)
    assert pushes.offer(2, 0) == (cid,)
    pushes.peer_gone(2)
    assert pushes.offer(2, 0) == (cid,)
    pushes.refused(2, cid, 30)
    assert pushes.offer(2, 1) == ()
    assert pushes.offer(2, 31) == (cid,)


def test_who_is_away_takes_no_room_from_those_who_are_here(monkeypatch) -> None:
    """The store knows what it lacks; a scan finds it again when it is back."""
    monkeypatch.setattr(pushes_module, "MAX_OWED", 10)
    pushes, here, away = Pushes(), NodeId(2), NodeId(3)
    pushes.peer_came(here)
    for cid in CIDS[:10]:
        pushes.owe(cid, (here, away), 0.0)
    assert not pushes.owe(CIDS[10], (here, away), 0.0)
    assert pushes.overflowed and not pushes.has_room  # `here` lacks all of them
    for cid in pushes.offer(here, 0.0):
        pushes.confirmed(here, cid)
    assert pushes.has_room
    pushes.scan_begins()
    for cid in CIDS[10:30]:
        pushes.owe(cid, (here, away), 0.0)
        assert pushes.offer(here, 0.0) == (cid,)
        pushes.confirmed(here, cid)
    assert len(pushes) + pushes.left_out == 30
    assert not pushes.overflowed  # a scan would find no more than what is known
    assert not pushes.owe(CIDS[30], (away,), 0.0)
    assert CIDS[30] not in pushes and not pushes.overflowed


def test_nothing_is_owed_to_who_is_no_member_any_more() -> None:
    pushes, both, alone = Pushes(), CIDS[0], CIDS[1]
    pushes.owe(both, (2, 3), 0.0)
    pushes.owe(alone, (3,), 0.0)
    pushes.refused(3, alone, 30.0)
    pushes.offer(3, 0.0)
    pushes.keep_only((1, 2))
    assert (len(pushes), pushes.owed_to(3)) == (1, 0)
    assert pushes.confirmed(2, both)


# -- repair --------------------------------------------------------------------------


def test_two_different_heartbeats_start_a_repair() -> None:
    repair = Repair()
    assert not repair.compared(True)
    assert repair.agreement is Agreement.SAME
    assert not repair.compared(False)
    assert repair.compared(False)
    assert repair.agreement is Agreement.REPAIRING
    mine, theirs = [b""] * 256, [b""] * 256
    theirs[3] = theirs[200] = b"x"
    asked = [repair.buckets(mine, theirs), repair.next_bucket()]
    assert sorted(n for n in asked if n is not None) == [3, 200]
    assert repair.next_bucket() is None
    assert not repair.compared(True)
    assert differing(
        {b"a": b"1", b"b": b"2"}, [(b"a", b"1"), (b"b", b"3"), (b"c", b"4")]
    ) == [
        b"b",
        b"c",
    ]


def test_horizon_is_what_all_have_and_after_what_they_had_done_by_then() -> None:
    """After a power cut a node says less of its own than it has done since."""
    a, b = NodeId(1), NodeId(2)
    rows = {
        a: Row(7, Seq(9), {a: Seq(9), b: Seq(3)}),
        b: Row(5, Seq(400), {a: Seq(8), b: Seq(4)}),
    }
    here = {a: Seq(12), b: Seq(4)}
    assert horizon([a, b], rows, here) == ({a: 8, b: 3}, {a: 9, b: 400})
    assert horizon([a, b, NodeId(3)], rows, here) is None


def test_horizon_is_none_of_who_does_not_know_what_others_know() -> None:
    """They may know a member that it does not."""
    a, b, c = NodeId(1), NodeId(2), NodeId(3)
    rows = {a: Row(7, Seq(9), {a: Seq(9)}), b: Row(5, Seq(4), {a: Seq(9), c: Seq(1)})}
    assert horizon([a, b], rows, {a: Seq(9), b: Seq(4)}) is None
    assert horizon([a, b], rows, {a: Seq(9), c: Seq(1)}) == ({a: 9}, {a: 9, b: 4})


def test_a_refused_chunk_holds_up_no_other() -> None:
    pushes, refused, other = Pushes(), CIDS[0], CIDS[1]
    for cid in (refused, other):
        pushes.owe(cid, [NodeId(2)], 1.0)
    assert pushes.offer(NodeId(2), 1.0) == (refused, other)
    pushes.refused(NodeId(2), refused, 31.0)
    pushes.refused(NodeId(2), other, 2.0)
    assert pushes.owed_to(NodeId(2)) == 2
    assert pushes.next_due(NodeId(2)) == 2.0
    assert pushes.offer(NodeId(2), 2.0) == (other,)
    pushes.confirmed(NodeId(2), other)
    assert pushes.offer(NodeId(2), 30.0) == ()
    assert pushes.offer(NodeId(2), 31.0) == (refused,)


def test_a_full_peer_is_asked_with_one_chunk_after_longer_and_longer() -> None:
    pushes, peer = Pushes(), NodeId(2)
    pushes.peer_came(peer)
    for cid in CIDS[:3]:
        pushes.owe(cid, [peer], 0.0)
    assert pushes.offer(peer, 0.0) == tuple(CIDS[:3])
    for cid in CIDS[:3]:  # all were on their way
        pushes.full(peer, cid, 1.0)
    sent, now = [], 1.0
    while now < 3600.0:
        for cid in pushes.offer(peer, now):
            sent.append(now)
            pushes.full(peer, cid, now)
        now += 1.0
    assert sent == [31.0, 91.0, 211.0, 451.0, 931.0, 1531.0, 2131.0, 2731.0, 3331.0]
    (cid,) = pushes.offer(peer, 4000.0)
    pushes.confirmed(peer, cid)
    pushes.has_space(peer)
    assert len(pushes.offer(peer, 4000.0)) == 2


def test_keys_of_a_bucket_fit_into_a_frame() -> None:
    keys = [(b"%0265d" % number, bytes(16)) for number in range(6000)]
    sent: list[tuple[bytes, bytes]] = []
    while len(sent) < len(keys):
        part = tuple(_that_fit(keys[len(sent) :]))
        assert len(encode(BucketKeys(0, part, False))) < MAX_HEADER_BYTES
        sent += part
    assert sent == keys


def test_room_counts_when_there_is_more_than_when_it_was_refused() -> None:
    room = SpaceAgain()
    room.look(1 << 40)
    assert room.times == 0, "nothing was refused"
    room.refused(-5)
    room.look(ENOUGH_BYTES - 1)
    assert room.times == 0
    room.look(ENOUGH_BYTES)
    room.look(ENOUGH_BYTES)
    assert room.times == 1
    room.refused(1000)  # no room for another reason, as names of files
    room.refused(2000)
    room.look(1000 + ENOUGH_BYTES - 1)
    assert room.times == 1
    room.look(1000 + ENOUGH_BYTES)
    assert room.times == 2


def test_what_a_full_peer_refused_is_offered_when_it_has_room() -> None:
    pushes, cids = Pushes(), tuple(CIDS[:2])
    pushes.peer_came(2)
    for cid in cids:
        pushes.owe(cid, (2,), 0)
    assert pushes.offer(2, 1) == cids
    pushes.answered(2, cids, ())
    for cid in cids:
        pushes.full(2, cid, 1)
    assert pushes.offer(2, 2) == ()
    pushes.room_again(2, 3)
    assert pushes.offer(2, 3) == cids


def test_a_manifest_counts_as_seen_for_as_many_keepers_and_one_writer() -> None:
    seen = Seen()
    assert seen.when(CIDS[0], 1, NodeId(1)) is None
    seen.note(CIDS[0], 5.0, 2, NodeId(1))
    assert seen.when(CIDS[0], 2, NodeId(1)) == 5.0
    assert seen.when(CIDS[0], 3, NodeId(1)) is None
    assert seen.when(CIDS[0], 1, NodeId(2)) is None
