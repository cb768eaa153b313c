"""Programs people use: git, tar, rsync, sqlite3, unchanged, on the mount."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lib.cluster import ROOT, Node, wait_until

pytestmark = pytest.mark.mount


def run(*words: str | Path, cwd: Path) -> str:
    """The program's output; fails with what it said on the way."""
    done = subprocess.run(
        [str(w) for w in words], cwd=cwd, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of a few hundred real files, with links, on the host file system."""
    top = tmp_path_factory.mktemp("sources") / "tree"
    for name in ("fusefs", "netnode", "tests", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / name, top / name, ignore=ignored)
    (top / "link").symlink_to("fusefs/errors.py")
    (top / "hard").hardlink_to(top / "fusefs" / "errors.py")
    (top / "empty").mkdir()
    return top


def test_git_init_add_commit_status_and_on_the_peer(
    pair: list[Node], sources: Path
) -> None:
    a, b = pair
    work = a.mnt / "repo"
    shutil.copytree(sources, work, symlinks=True)
    run("git", "init", "-q", cwd=work)
    run("git", "config", "user.email", "t@example.org", cwd=work)
    run("git", "config", "user.name", "t", cwd=work)
    run("git", "add", "-A", cwd=work)
    run("git", "commit", "-q", "-m", "all", cwd=work)
    assert run("git", "status", "--porcelain", cwd=work) == ""
    run("git", "fsck", "--strict", cwd=work)
    there = b.mnt / "repo"
    wait_until(lambda: a.digest() == b.digest(), "the repository is on the peer")
    safe = ["-c", f"safe.directory={there}"]
    assert run("git", *safe, "status", "--porcelain", cwd=there) == ""
    run("git", *safe, "fsck", "--strict", cwd=there)


def test_tar_round_trip(pair: list[Node], sources: Path, tmp_path: Path) -> None:
    a, _ = pair
    run("tar", "cf", tmp_path / "t.tar", "-C", sources, ".", cwd=tmp_path)
    place = a.mnt / "untarred"
    place.mkdir()
    run("tar", "xf", tmp_path / "t.tar", cwd=place)
    run("tar", "df", tmp_path / "t.tar", cwd=place)
    run("diff", "-r", "--no-dereference", sources, place, cwd=tmp_path)


def test_rsync_twice_the_second_finds_no_difference(
    pair: list[Node], sources: Path, tmp_path: Path
) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    a, b = pair
    words = ["rsync", "-aHAX", "--itemize-changes", f"{sources}/"]
    run(*words, f"{a.mnt}/synced/", cwd=tmp_path)
    assert run(*words, f"{a.mnt}/synced/", cwd=tmp_path) == ""
    # The times of directories come last, and no close waits for them.
    looked = [*words, "-cn", f"{b.mnt}/synced/"]
    wait_until((b.mnt / "synced" / "tests" / "run.sh").exists, "it is on the peer")
    wait_until(lambda: run(*looked, cwd=tmp_path) == "", "so is all of it")
    assert run(*words, "-c", f"{b.mnt}/synced/", cwd=tmp_path) == ""


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_transactions_and_integrity(pair: list[Node], journal: str) -> None:
    a, _ = pair
    script = f"""
    PRAGMA journal_mode={journal};
    CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
    BEGIN; INSERT INTO t SELECT value, hex(randomblob(50))
      FROM generate_series(1, 5000); COMMIT;
    BEGIN; DELETE FROM t WHERE a % 3 = 0; ROLLBACK;
    UPDATE t SET b = 'x' WHERE a % 2 = 0;
    SELECT count(*) FROM t; PRAGMA integrity_check;
    """
    said = run("sqlite3", f"{journal}.db", script, cwd=a.mnt)
    assert said.split() == [journal, "5000", "ok"]
