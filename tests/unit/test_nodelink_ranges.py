"""The algebra of lock ranges against a byte-by-byte model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusefs.model.ids import NodeId
from fusefs.nodelink.ranges import (
    READ,
    UNLOCK,
    WRITE,
    Holding,
    Range,
    changed,
    conflict,
)

SIZE = 12
ranges = st.builds(
    lambda owner, kind, a, b: Range(owner, kind, min(a, b), max(a, b)),
    st.integers(1, 2),
    st.sampled_from([READ, WRITE, UNLOCK]),
    st.integers(0, SIZE - 1),
    st.integers(0, SIZE - 1),
)


def painted(held: list[Range]) -> dict[tuple[int, int], int]:
    """(owner, byte) -> kind."""
    out: dict[tuple[int, int], int] = {}
    for r in held:
        for byte in range(r.start, r.end + 1):
            assert (r.owner, byte) not in out
            out[r.owner, byte] = r.kind
    return out


@given(st.lists(ranges, max_size=12))
def test_change_equals_painting_bytes(changes: list[Range]) -> None:
    held: list[Range] = []
    model: dict[tuple[int, int], int] = {}
    for want in changes:
        held = changed(held, want)
        for byte in range(want.start, want.end + 1):
            model.pop((want.owner, byte), None)
            if want.kind != UNLOCK:
                model[want.owner, byte] = want.kind
        assert painted(held) == model
        assert changed(held, want) == held


def test_only_other_nodes_and_writers_conflict() -> None:
    held = [Holding(NodeId(1), Range(5, READ, 0, 9))]
    assert conflict(held, NodeId(2), Range(5, READ, 0, 9)) is None
    assert conflict(held, NodeId(2), Range(5, WRITE, 9, 9)) == held[0]
    assert conflict(held, NodeId(2), Range(5, WRITE, 10, 19)) is None
    assert conflict(held, NodeId(1), Range(6, WRITE, 0, 9)) is None
