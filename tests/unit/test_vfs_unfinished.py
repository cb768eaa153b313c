"""Marks of files with unpublished writes, from one worker to the next."""

from __future__ import annotations

from pathlib import Path

from fusefs.model.ids import Ino
from fusefs.vfs.unfinished import Unfinished


def test_marked_when_killed_older_handles_have_lost_writes(tmp_path: Path) -> None:
    first = Unfinished(tmp_path / "marks", 100)
    first.begin(Ino(7))
    first.begin(Ino(8))
    first.end(Ino(8))
    second = Unfinished(tmp_path / "marks", 200)
    assert second.lost(Ino(7), 150)
    assert not second.lost(Ino(7), 200)
    assert not second.lost(Ino(8), 150)


def test_losses_are_known_to_the_worker_after_the_next(tmp_path: Path) -> None:
    Unfinished(tmp_path / "marks", 100).begin(Ino(7))
    Unfinished(tmp_path / "marks", 200).begin(Ino(9))
    third = Unfinished(tmp_path / "marks", 300)
    assert third.lost(Ino(7), 150)
    assert not third.lost(Ino(7), 250)
    assert third.lost(Ino(9), 250)


def test_more_drafts_than_records_any_file_may_have_lost(tmp_path: Path) -> None:
    first = Unfinished(tmp_path / "marks", 100)
    for number in range(2, 20_000):
        first.begin(Ino(number))
    second = Unfinished(tmp_path / "marks", 200)
    assert second.lost(Ino(50_000), 150)
    assert not second.lost(Ino(50_000), 250)


def test_without_a_file_nothing_is_kept() -> None:
    first = Unfinished(None, 100)
    first.begin(Ino(7))
    first.end(Ino(7))
    assert not Unfinished(None, 200).lost(Ino(7), 150)
