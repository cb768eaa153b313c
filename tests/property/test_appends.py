"""Merging appends: nodes append and merge at random; no line is lost or doubled."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fusefs.model.appends import extended, plan
from fusefs.model.hlc import Hlc
from fusefs.model.ids import NodeId
from fusefs.model.records import Content


class Copy:
    """One node's version of the file: its bytes and the value that describes it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.content = Content(0, 0, len(data), b"root%d" % len(data))

    def append(self, line: bytes, stamp: int, node: int) -> None:
        self.data += line
        base, pieces = extended(self.content, Hlc(stamp), NodeId(node), len(self.data))
        self.content = Content(
            0, 0, len(self.data), b"r", appended_to=base, pieces=pieces
        )


def merge(copies: list[Copy]) -> Copy | None:
    merged = plan([c.content for c in copies])
    if merged is None:
        return None
    out = Copy(copies[0].data[: merged.base_size])
    for segment in merged.segments:
        out.data += copies[segment.version].data[segment.start : segment.end]
    assert len(out.data) == merged.size
    out.content = Content(
        0, 0, merged.size, b"m", appended_to=merged.appended_to, pieces=merged.pieces
    )
    return out


STEPS = st.lists(st.integers(0, 6), min_size=2, max_size=120)


@given(STEPS, st.booleans())
@settings(max_examples=300)
def test_every_line_stays_once_whatever_the_order(steps: list, base: bool) -> None:
    start = Copy(b"base\n" if base else b"")
    nodes = [start, start, start]
    lines: list[bytes] = []
    for stamp, step in enumerate(steps, 1):
        who = step % 3
        if step < 6:
            line = b"%d from %d\n" % (stamp, who)
            lines.append(line)
            copy = Copy(nodes[who].data)
            copy.content = nodes[who].content
            copy.append(line, stamp, who + 1)
            nodes[who] = copy
        else:
            one = merge([nodes[0], nodes[1]])
            if one is not None:
                nodes[0] = nodes[1] = one
    changed = [n for n in nodes if n is not start]
    whole = changed[0] if len(changed) == 1 else merge(changed) if changed else start
    if whole is None:
        return  # too long apart: a conflict, both versions stay as files
    got = whole.data.splitlines(keepends=True)
    assert sorted(got) == sorted([*lines, *([b"base\n"] if base else [])])
    again = merge(list(reversed(changed)))
    if again is not None:
        assert again.data == whole.data


def test_two_nodes_appending_apart_merge_in_stamp_order() -> None:
    base = Copy(b"base\n")
    a, b = Copy(base.data), Copy(base.data)
    for stamp in range(1, 9):
        (a if stamp % 2 else b).append(b"%d\n" % stamp, stamp, 1 + stamp % 2)
    whole = merge([a, b])
    assert whole is not None
    assert whole.data == b"base\n1\n2\n3\n4\n5\n6\n7\n8\n"


def test_a_thousand_lines_each_apart_still_merge() -> None:
    a, b = Copy(b""), Copy(b"")
    a.content = b.content = Content(0, 0, 0, b"")
    a.append(b"first\n", 1, 1)
    b.data, b.content = a.data, a.content
    for stamp in range(2, 1002):
        a.append(b"a%d\n" % stamp, stamp, 1)
        b.append(b"b%d\n" % stamp, stamp, 2)
    whole = merge([a, b])
    assert whole is not None
    assert len(whole.data.splitlines()) == 2001


def test_an_overwrite_is_no_append() -> None:
    a = Copy(b"x")
    a.append(b"1", 1, 1)
    other = Content(0, 0, 5, b"other")
    assert plan([a.content, other]) is None


def test_pieces_that_do_not_add_up_are_refused() -> None:
    good = Content(
        0, 0, 3, b"r", appended_to=(1, b"x"), pieces=((Hlc(1), NodeId(1), 3),)
    )
    bad = Content(
        0, 0, 9, b"r", appended_to=(1, b"x"), pieces=((Hlc(2), NodeId(2), 4),)
    )
    assert plan([good, bad]) is None
