"""What the chunk plane answers to a peer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from fusefs.errors import NoSpace
from fusefs.model.ids import ChunkId, NodeId
from fusefs.store.store import Store
from fusefs.store.types import PUSHED
from netnode.chunks import ChunkPlane
from netnode.core.membership import Membership
from netnode.environment import Environment
from netnode.wire.messages import Have


@pytest.mark.parametrize("keep", [False, True])
def test_held_after_an_eviction_in_between_is_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    store = Store.open(tmp_path, min_free_bytes=0)
    cids = [store.put(b"%d" % number * 50_000) for number in range(3)]
    store.set_flags(cids, clear=PUSHED)
    set_flags = store.set_flags

    def evicts_first(cids: Iterable[ChunkId], *, set_: int = 0, clear: int = 0) -> None:
        gone, *_ = cids
        store.delete(gone)
        set_flags(cids, set_=set_, clear=clear)

    monkeypatch.setattr(store, "set_flags", evicts_first)
    plane = ChunkPlane(store, Membership(NodeId(1)), Environment(), lambda: 3)
    held = plane._held(Have(1, tuple(cids), keep=keep))
    assert held == tuple(cids[1:] if keep else cids)
    assert store.missing(held) == []
    assert [str(problem) for problem in store.check()] == []
    store.close()


def test_nothing_is_held_for_good_while_no_room_is_left_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the connection on which it was asked stays."""
    store = Store.open(tmp_path, min_free_bytes=0)
    cids = (store.put(b"x" * 50_000),)

    def full(cids: Iterable[ChunkId], *, set_: int = 0, clear: int = 0) -> None:
        raise NoSpace("the store's disk is full (small.db)")

    plane = ChunkPlane(store, Membership(NodeId(1)), Environment(), lambda: 3)
    with monkeypatch.context() as patch:
        patch.setattr(store, "set_flags", full)
        assert plane._held(Have(1, cids, keep=True)) == ()
    assert plane._held(Have(2, cids, keep=True)) == cids
    store.close()
