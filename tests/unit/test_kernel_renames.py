"""Renames of a moment ago, and names that the kernel is being told of."""

from __future__ import annotations

from fusefs.bindings.kernel.renames import Renames
from fusefs.model.ids import Ino

A, B, C = (Ino(1), b"a"), (Ino(1), b"b"), (Ino(2), b"c")


def test_who_renames_hears_that_the_kernel_is_being_told() -> None:
    renames = Renames()
    assert renames.begin_telling(A) == {A}
    assert renames.begin_telling(A) == {A}
    renames.told(A)
    assert renames.renamed(A, B)
    assert not renames.renamed(B, C)
    renames.told(A)
    assert not renames.renamed(A, B)


def test_who_tells_hears_of_all_names_it_was_renamed_to() -> None:
    renames = Renames()
    for old, new in ((A, B), (B, C), (C, A)):
        assert not renames.renamed(old, new)
    assert renames.begin_telling(A) == {A, B, C}
    assert renames.renamed(C, B)


def test_renames_are_forgotten_after_a_while(monkeypatch) -> None:
    renames = Renames()
    renames.renamed(A, B)
    now = 1e9
    monkeypatch.setattr("time.monotonic", lambda: now)
    renames.tick()
    assert renames.begin_telling(A) == {A, B}
    now += 6
    renames.tick()
    assert renames.begin_telling(A) == {A}
