"""The fetch scheduler: every request ends, no chunk has needless owners."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.model.ids import ChunkId, NodeId, chunk_id
from netnode.core.fetch import (
    BACK_S,
    SMALL_WINDOW,
    WINDOW,
    Action,
    Ask,
    CancelAsk,
    FetchScheduler,
    Find,
    Finished,
    Outcome,
    Priority,
)

CIDS = [chunk_id(b"%d" % n) for n in range(100)]
FORE = Priority.FOREGROUND


def scheduler(*peers: int, likely: tuple[int, ...] = ()) -> FetchScheduler:
    made = FetchScheduler(lambda cid: [NodeId(n) for n in likely])
    for peer in peers:
        made.peer_joined(NodeId(peer), 0)
    return made


def asked(actions: list[Action]) -> dict[int, list[ChunkId]]:
    out: dict[int, list[ChunkId]] = {}
    for action in actions:
        if isinstance(action, Ask):
            out.setdefault(action.peer, []).extend(action.cids)
    return out


def finished(actions: list[Action]) -> list[Finished]:
    return [a for a in actions if isinstance(a, Finished)]


def test_without_peers_it_is_unreachable_at_once() -> None:
    actions = scheduler().want(1, CIDS[:3], FORE, (), 0, 10)
    assert actions == [Finished(1, Outcome.UNREACHABLE)]


def test_what_only_a_restarting_peer_has_is_waited_for() -> None:
    made = scheduler(1)
    made.want(1, CIDS[:1], FORE, (), 0, 60)
    assert finished(made.peer_gone(NodeId(1), 1)) == []
    assert finished(made.want(2, CIDS[1:2], FORE, (), 1.5, 60)) == []
    assert asked(made.peer_joined(NodeId(1), 2)) == {1: CIDS[:2]}
    made.peer_gone(NodeId(1), 3)
    at = made.next_event()
    assert at == 3 + BACK_S
    outcomes = {f.request: f.outcome for f in finished(made.tick(at))}
    assert outcomes == {1: Outcome.UNREACHABLE, 2: Outcome.UNREACHABLE}
    assert finished(made.want(3, CIDS[:1], FORE, (), at, 60)), "as ever"
    assert made.next_event() is None


def test_chunks_are_spread_over_likely_peers() -> None:
    made = scheduler(1, 2, 3, likely=(1, 2))
    shares = asked(made.want(1, CIDS[:12], FORE, (), 0, 10))
    assert {peer: len(cids) for peer, cids in shares.items()} == {1: 6, 2: 6}


def test_window_bounds_what_is_in_flight_and_refills() -> None:
    made = scheduler(1, likely=(1,))
    first = asked(made.want(1, CIDS[:20], FORE, (), 0, 10))
    assert len(first[1]) == WINDOW[FORE]
    more = asked(made.arrived(first[1][0], NodeId(1), 0.1))
    assert len(more[1]) == 1


def test_program_goes_before_prefetch() -> None:
    made = scheduler(1, likely=(1,))
    made.want(1, CIDS[:50], Priority.PREFETCH, (), 0, 10)
    shares = asked(made.want(2, [CIDS[60]], FORE, (), 0, 10))
    assert shares == {1: [CIDS[60]]}
    raised = made.want(3, [CIDS[49]], FORE, (), 0, 10)
    assert asked(raised) == {1: [CIDS[49]]}


def test_what_a_program_waits_for_is_asked_first_and_said_to_be_urgent() -> None:
    made = scheduler(1, 2, likely=(1,))
    made.want(1, CIDS[:3], Priority.PREFETCH, (), 0, 10)
    (ask,) = made.want(2, [CIDS[9]], FORE, (), 0, 10)
    assert ask == Ask(NodeId(1), (CIDS[9],), urgent=1)
    (ask,) = made.peer_gone(NodeId(1), 0.1)
    assert ask == Ask(NodeId(2), (CIDS[9], *CIDS[:3]), urgent=1)


def test_small_chunks_have_a_window_of_their_own() -> None:
    made = scheduler(1, likely=(1,))
    many = [chunk_id(b"small %d" % n) for n in range(100)]
    ahead = Priority.PREFETCH
    shares = asked(made.want(1, many, ahead, (), 0, 10, small=True))
    assert len(shares[1]) == SMALL_WINDOW[ahead]
    shares = asked(made.want(2, CIDS[:20], FORE, (), 0, 10))
    assert len(shares[1]) == WINDOW[FORE]
    shares = asked(made.want(3, many[-1:], FORE, (), 0, 10))  # one that waits
    assert shares == {1: many[-1:]}
    assert not made.arrived(many[0], NodeId(1), 0.1)
    shares = asked(made.arrived(many[1], NodeId(1), 0.1))
    assert shares == {1: [many[SMALL_WINDOW[ahead]]]}


def test_absent_everywhere_is_unreachable_before_the_deadline() -> None:
    made = scheduler(1, 2, likely=(1, 2))
    made.want(1, CIDS[:1], FORE, (), 0, 10)
    peers = [1, 2]
    first = made.absent(CIDS[0], NodeId(1), 0.1) or made.absent(CIDS[0], NodeId(2), 0.1)
    ((peer, _),) = asked(first).items()
    peers.remove(peer)
    end = made.absent(CIDS[0], NodeId(peer), 0.2)
    assert finished(end) == [Finished(1, Outcome.UNREACHABLE)]
    assert len(made) == 0


def test_many_unlikely_peers_are_asked_whether_they_have_it() -> None:
    made = scheduler(1, 2, 3, 4, 5, likely=(1,))
    made.want(1, CIDS[:1], FORE, (), 0, 10)
    finds = made.absent(CIDS[0], NodeId(1), 0.1)
    assert {a.peer for a in finds if isinstance(a, Find)} == {2, 3, 4, 5}
    assert made.held(NodeId(2), CIDS[:1], (), 0.2) == []
    assert asked(made.held(NodeId(4), CIDS[:1], CIDS[:1], 0.2)) == {4: CIDS[:1]}


def test_slow_owner_is_hedged_and_the_loser_cancelled() -> None:
    made = scheduler(1, 2, likely=(1, 2))
    ((owner, _),) = asked(made.want(1, CIDS[:1], FORE, (), 0, 10)).items()
    at = made.next_event()
    assert at is not None
    ((second, _),) = asked(made.tick(at)).items()
    assert second != owner
    end = made.arrived(CIDS[0], NodeId(second), at + 0.1)
    assert CancelAsk(NodeId(owner), CIDS[0]) in end
    assert finished(end) == [Finished(1, Outcome.OK)]


def test_second_peer_that_has_it_not_is_followed_by_a_third() -> None:
    made = scheduler(1, 2, 3, likely=(1, 2, 3))
    ((stuck, _),) = asked(made.want(1, CIDS[:1], FORE, (), 0, 10)).items()
    ((second, _),) = asked(made.tick(0.5)).items()
    assert made.absent(CIDS[0], NodeId(second), 0.6) == []
    at = made.next_event()
    assert at is not None and at <= 0.6
    assert asked(made.tick(0.6)) == {6 - stuck - second: CIDS[:1]}


def test_overdue_chunk_is_asked_of_a_peer_that_comes_later() -> None:
    made = scheduler(1, likely=(1, 2))
    made.want(1, CIDS[:1], FORE, (), 0, 10)
    assert made.tick(1) == []
    assert made.next_event() == 10  # nobody to ask: nothing to do before
    assert asked(made.peer_joined(NodeId(2), 2)) == {2: CIDS[:1]}


def test_overdue_chunk_is_looked_for_at_unlikely_peers() -> None:
    made = scheduler(1, 2, 3, 4, 5, likely=(1,))
    made.want(1, CIDS[:1], FORE, (), 0, 10)
    finds = made.tick(1)
    assert {a.peer for a in finds if isinstance(a, Find)} == {2, 3, 4, 5}
    assert asked(made.held(NodeId(4), CIDS[:1], CIDS[:1], 1.1)) == {4: CIDS[:1]}


def test_dead_peers_chunks_go_to_others() -> None:
    made = scheduler(1, 2, likely=(1, 2))
    shares = asked(made.want(1, CIDS[:8], FORE, (), 0, 10))
    moved = asked(made.peer_gone(NodeId(1), 0.1))
    assert moved == {2: shares[1]}


def test_only_peer_is_asked_again_when_it_is_back() -> None:
    made = scheduler(1, likely=(1,))
    shares = asked(made.want(1, CIDS[:3], FORE, (), 0, 10))
    again = made.peer_is_back(NodeId(1), 0.1)
    assert asked(again) == shares
    assert not [a for a in again if isinstance(a, Finished)]


def test_cancelled_request_leaves_nothing() -> None:
    made = scheduler(1, likely=(1,))
    made.want(1, CIDS[:30], FORE, (), 0, 10)
    cancels = [a for a in made.cancel(1, 0.1) if isinstance(a, CancelAsk)]
    assert len(cancels) == WINDOW[FORE]
    assert len(made) == 0
    assert made.next_event() is None


@given(st.integers(0, 10_000))
def test_every_request_finishes_once_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    made = scheduler(likely=(1, 2))
    now, requests, ended = 0.0, 0, []
    open_asks: list[tuple[NodeId, ChunkId]] = []
    finds: list[Find] = []
    joined: set[int] = set()

    def take(actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Ask():
                    assert action.peer in joined
                    open_asks.extend((action.peer, cid) for cid in action.cids)
                case Find():
                    finds.append(action)
                case Finished():
                    ended.append(action.request)
                case CancelAsk():
                    pass

    for _ in range(60):
        now += rng.random() * 0.2
        match rng.randrange(7):
            case 0:
                peer = rng.randrange(1, 6)
                if peer not in joined:
                    joined.add(peer)
                    take(made.peer_joined(NodeId(peer), now))
            case 1 if joined:
                peer = rng.choice(sorted(joined))
                joined.discard(peer)
                open_asks[:] = [a for a in open_asks if a[0] != peer]
                finds[:] = [f for f in finds if f.peer != peer]
                take(made.peer_gone(NodeId(peer), now))
            case 2 | 3:
                requests += 1
                cids = rng.sample(CIDS, rng.randrange(1, 6))
                priority = rng.choice(list(Priority))
                small = rng.random() < 0.3
                take(made.want(requests, cids, priority, (), now, now + 3, small))
            case 4 if open_asks:
                peer, cid = open_asks.pop(rng.randrange(len(open_asks)))
                if rng.random() < 0.5:
                    take(made.arrived(cid, peer, now))
                else:
                    take(made.absent(cid, peer, now))
            case 5 if finds:
                find = finds.pop()
                has = [c for c in find.cids if rng.random() < 0.5]
                take(made.held(find.peer, find.cids, has, now))
            case 6:
                take(made.tick(now))
    while (at := made.next_event()) is not None:
        now = max(now, at) + 0.001
        take(made.tick(now))
    assert sorted(ended) == list(range(1, requests + 1))
    assert len(made) == 0
    assert all(not load.in_flight and not load.small for load in made.peers.values())


@pytest.mark.parametrize("why", [Outcome.NO_SPACE, Outcome.NOT_STORED])
def test_what_came_and_was_not_kept_fails_for_that_and_nothing_else_does(
    why: Outcome,
) -> None:
    made = scheduler(1, 2)
    made.want(1, CIDS[:2], FORE, (), 0, 10)
    made.want(2, CIDS[2:3], FORE, (), 0, 10)
    made.not_kept(CIDS[0], NodeId(1), why, 1)
    made.arrived(CIDS[1], NodeId(2), 2)
    for peer in (1, 2):
        end = made.absent(CIDS[2], NodeId(peer), 3)
    assert finished(end) == [Finished(2, Outcome.UNREACHABLE)]
    end = made.absent(CIDS[0], NodeId(2), 4)
    assert finished(end) == [Finished(1, why)]
    assert len(made) == 0
