"""Names of losing versions, and what counts as a conflict at all."""

from __future__ import annotations

import pytest

from fusefs.model.conflict import (
    LATER_CHOICE,
    conflict_name,
    merge_attrs,
    split_extension,
    split_versions,
)
from fusefs.model.hlc import Hlc
from fusefs.model.ids import NodeId, Seq
from fusefs.model.records import Attrs, Content
from fusefs.model.register import Sibling

STAMP = Hlc(1_700_000_000_000 << 16)


def version(node: int, seq: int, root: bytes, seen: dict, **more: object) -> tuple:
    content = Content(1, 1, len(root), root, 20, tuple(sorted(seen.items())), **more)
    return Sibling(NodeId(node), Seq(seq), Hlc(seq), b""), content


def test_extension_of_known_pairs_is_kept_whole() -> None:
    assert split_extension(b"a.tar.gz") == (b"a", b".tar.gz")
    assert split_extension(b"a.b.txt") == (b"a.b", b".txt")
    assert split_extension(b".profile") == (b".profile", b"")
    assert split_extension(b"README") == (b"README", b"")


def test_conflict_name_shows_node_and_time() -> None:
    name = conflict_name(b"plan.tar.gz", "anna", STAMP)
    assert name == b"plan.conflict-anna-20231114T221320.000Z.tar.gz"


def test_conflict_name_of_conflict_file_does_not_cascade() -> None:
    first = conflict_name(b"plan.txt", "anna", STAMP)
    assert conflict_name(first, "bob", STAMP).count(b".conflict-") == 1


def test_conflict_name_of_longest_name_fits() -> None:
    assert len(conflict_name(b"x" * 255, "n" * 200, STAMP)) <= 255
    assert len(conflict_name(b"x." + b"e" * 253, "n", STAMP)) <= 255


@pytest.mark.parametrize("letter", ["\u00e9", "\u20ac", "\U0001f600"])
@pytest.mark.parametrize("first", ["", "x", "xx", "xxx", "x."])
def test_conflict_name_is_not_cut_inside_a_character(first: str, letter: str) -> None:
    origin = (first + letter * 255).encode()[:255].decode(errors="ignore")
    made = conflict_name(origin.encode(), "\u00e9" * 60, STAMP).decode()
    assert letter * 10 in made
    assert len(made.encode()) <= 255


def test_conflict_name_of_what_is_no_text_is_as_long_as_any() -> None:
    assert len(conflict_name(b"\x80" * 255, "n", STAMP)) == 255


def test_only_later_choices_are_marked_as_such() -> None:
    for name in (b"a", b"b.tar.gz", b"x" * 255):
        assert LATER_CHOICE not in conflict_name(name, "node", STAMP)
        assert LATER_CHOICE in conflict_name(name, "node", STAMP, 1)


def test_equal_data_is_no_conflict() -> None:
    versions = [version(1, 5, b"r", {1: 5}), version(2, 6, b"r", {2: 6})]
    assert split_versions(versions)[1] == []


def test_times_against_data_is_no_conflict() -> None:
    touched = version(1, 9, b"old", {3: 1})
    edited = version(2, 6, b"new", {3: 1, 2: 6})
    shown, losers = split_versions([touched, edited])
    assert (shown, losers) == (edited, [])


def test_two_edits_the_later_wins_the_other_is_kept() -> None:
    a = version(1, 5, b"a", {3: 1, 1: 5})
    b = version(2, 6, b"b", {3: 1, 2: 6})
    assert split_versions([a, b]) == (b, [a])


def test_mode_and_owner_changed_apart_both_stay() -> None:
    chmod = Attrs(0o100600, 0, 0, 5, Hlc(9), Hlc(1))
    chown = Attrs(0o100644, 7, 8, 6, Hlc(1), Hlc(10))
    siblings = [
        (Sibling(NodeId(1), Seq(1), Hlc(9), b""), chmod),
        (Sibling(NodeId(2), Seq(1), Hlc(10), b""), chown),
    ]
    both = merge_attrs(siblings)
    assert (both.mode, both.uid, both.gid, both.ctime_ns) == (0o100600, 7, 8, 6)
