"""Inode numbers: new ones for ever, and soon found."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO, Ino, NodeId, Seq, derive_ino
from fusefs.model.records import S_REG
from fusefs.namespace import writing
from fusefs.namespace.namespace import Namespace


def test_a_name_that_came_and_went_for_years_gets_its_next_number_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = Namespace.create(tmp_path, NodeId(5))
    nowhere = (NodeId(0), Seq(0))
    numbers = [derive_ino(ROOT_INO, b"lock", S_REG, nowhere, n) for n in range(3000)]
    with namespace._write() as db:
        db.executemany("INSERT INTO retired VALUES(?)", [(n,) for n in numbers])
    tried: list[int] = []

    def derived(*what: object) -> Ino:
        tried.append(what[-1])  # type: ignore[arg-type]
        return derive_ino(*what)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "derive_ino", derived)
    with namespace.transaction() as t:
        ino = t.new_ino(ROOT_INO, b"lock", S_REG)
    assert ino == derive_ino(ROOT_INO, b"lock", S_REG, nowhere, 3000)
    assert len(tried) < 30
    namespace.close()
