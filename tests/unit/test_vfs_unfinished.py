"""Marks of files with unpublished writes, from one worker to the next."""

from __future__ import annotations

from pathlib import Path

from fusefs.model.ids import Ino
from fusefs.vfs.unfinished import REGIONS, Unfinished


def begin(marks: Unfinished, ino: int) -> None:
    marks.begin(Ino(ino), marks.reserve())


def end(marks: Unfinished, ino: int) -> None:
    slot = marks.end(Ino(ino))
    assert slot is not None
    marks.free(slot)


def test_marked_when_killed_older_handles_have_lost_writes(tmp_path: Path) -> None:
    first = Unfinished(tmp_path / "marks", 100)
    begin(first, 7)
    begin(first, 8)
    end(first, 8)
    second = Unfinished(tmp_path / "marks", 200)
    assert second.lost(Ino(7), 150)
    assert not second.lost(Ino(7), 200)
    assert not second.lost(Ino(8), 150)


def test_losses_are_known_to_the_worker_after_the_next(tmp_path: Path) -> None:
    begin(Unfinished(tmp_path / "marks", 100), 7)
    begin(Unfinished(tmp_path / "marks", 200), 9)
    third = Unfinished(tmp_path / "marks", 300)
    assert third.lost(Ino(7), 150)
    assert not third.lost(Ino(7), 250)
    assert third.lost(Ino(9), 250)


def test_more_drafts_than_records_any_file_may_have_lost(tmp_path: Path) -> None:
    first = Unfinished(tmp_path / "marks", 100)
    for number in range(2, 20_000):
        begin(first, number)
    second = Unfinished(tmp_path / "marks", 200)
    assert second.lost(Ino(50_000), 150)
    assert not second.lost(Ino(50_000), 250)


def test_without_a_file_nothing_is_kept() -> None:
    first = Unfinished(None, 100)
    begin(first, 7)
    end(first, 7)
    assert not Unfinished(None, 200).lost(Ino(7), 150)


def test_numbers_with_a_region_are_given_again_after_many(tmp_path: Path) -> None:
    """One without, freed last, stood in front of them for good."""
    marks = Unfinished(tmp_path / "marks", 100)
    with_region = [marks.reserve(region=True) for _ in range(REGIONS)]
    assert None not in with_region
    assert marks.reserve(region=True) is None
    without = marks.reserve()
    assert without is not None
    assert without >= REGIONS
    for slot in (*with_region, without):
        assert slot is not None
        marks.free(slot)
    assert marks.reserve(region=True) in with_region
