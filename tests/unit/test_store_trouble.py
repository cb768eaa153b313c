"""What a disk fails at is an error that says so, and is noted for `dfs status`."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from fusefs.errors import Corrupt, DiskFailed, NoSpace
from fusefs.store import database, files, trouble


def told(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_an_object_that_cannot_be_written(tmp_path, monkeypatch, number) -> None:
    objects = files.Files(tmp_path / "objects")

    def fails(fd: int, data: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fails)
        for _ in range(2):
            with pytest.raises(DiskFailed) as caught:
                objects.write(bytes(100))
            assert caught.value.errno == number
    objects.close()
    reason = f"writing an object: {os.strerror(number)}"
    assert trouble.report(tmp_path) == {"reason": reason, "times": 2, "ago_s": 0}


@pytest.mark.parametrize(
    ("why", "kind", "number"),
    [
        (0, DiskFailed, errno.EIO),
        (errno.EROFS, DiskFailed, errno.EROFS),
        (errno.ENOSPC, NoSpace, errno.ENOSPC),
        (errno.EDQUOT, NoSpace, errno.ENOSPC),
    ],
)
def test_what_sqlite_fails_at(tmp_path, monkeypatch, why, kind, number) -> None:
    """SQLite says the same of all; a file that grows there tells."""
    monkeypatch.setattr(database, "refusal", lambda directory: why)
    problem = database.translated(told(sqlite3.SQLITE_IOERR), tmp_path / "meta.db")
    assert type(problem) is kind and problem.errno == number
    assert (trouble.report(tmp_path) is None) == (kind is NoSpace)


def test_a_damaged_database_is_no_matter_of_room(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(database, "refusal", lambda directory: errno.ENOSPC)
    problem = database.translated(told(sqlite3.SQLITE_CORRUPT), tmp_path / "small.db")
    assert isinstance(problem, Corrupt) and "dfs fsck --repair" in str(problem)


def test_what_is_long_ago_is_told_no_more(tmp_path: Path, monkeypatch) -> None:
    assert trouble.report(tmp_path) is None
    trouble.note(tmp_path, "it broke")
    monkeypatch.setattr(trouble, "SHOWN_S", 0.0)
    assert trouble.report(tmp_path) is None


def test_a_disk_that_takes_writes_is_not_read_only(tmp_path: Path) -> None:
    assert not trouble.is_read_only(tmp_path)
    assert not trouble.is_read_only(tmp_path / "gone")
