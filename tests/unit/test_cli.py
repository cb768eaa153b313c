"""What the command line says, without a node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusefs import cli
from fusefs.cli import invite, settings
from fusefs.mountpoint import nodes


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


def test_a_store_without_a_node_is_told_apart_from_no_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, code in (("invite", 1), ("upgrade", 10)):
        assert cli.main([verb, "--store", str(tmp_path / "none")]) == 10
        assert "there is no store at" in capsys.readouterr().err
        (tmp_path / "format").touch()
        assert cli.main([verb, "--store", str(tmp_path)]) == code
        said = capsys.readouterr().err
        assert f"mount it with: dfs mount DIR --store {tmp_path}" in said


def test_the_only_node_of_the_user_is_meant_where_no_store_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in os.environ if n.startswith("DFS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    mine, other = nodes.Running(os.getpid(), "/srv/a", "/mnt"), "/srv/named"
    running = [mine, nodes.Running(1 << 30, "/srv/ended", "")]
    monkeypatch.setattr(nodes, "running", lambda: running)

    def store(*words: str) -> str:
        parser = settings.Parser("status", "")
        settings.add_store(parser)
        return str(settings.store_of(parser.parse_args(words)))

    assert store() == "/srv/a"
    assert store("--store", other) == other
    running.append(nodes.Running(os.getpid(), "/srv/b", ""))
    assert store() == str(tmp_path / "dfs")
    running.pop()
    (tmp_path / "dfs").mkdir()
    (tmp_path / "dfs" / "format").touch()
    assert store() == str(tmp_path / "dfs")
