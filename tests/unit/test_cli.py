"""What the command line says, without a node."""

from __future__ import annotations

import pytest

from fusefs import cli
from fusefs.cli import invite


def test_an_error_of_the_system_is_a_sentence_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(argv: list[str]) -> int:
        raise PermissionError(13, "Permission denied", "/home/other/store/format")

    monkeypatch.setattr(invite, "main", denied)
    assert cli.main(["invite"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("dfs invite: /home/other/store/format: Permission denied; ")
    assert "another user" in said
