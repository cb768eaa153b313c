"""mount.sh as a user runs it, with the virtual environment of this checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fusefs.mountpoint import nodes, table
from tests.lib.cluster import ROOT, Cluster, Node, clean_environment, wait_until

pytestmark = pytest.mark.mount


def mount_sh(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "mount.sh"), *map(str, words)],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )


def started(node: Node, *words: str) -> str:
    done = mount_sh(node.mnt, "--store", node.store, "--port", "0", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_nodes_as_the_readme_says(fresh: Cluster) -> None:
    a, b = fresh.add(), fresh.add()
    said = started(a, "--name", "first", "--listen", "127.0.0.1")
    assert f"mounted on {a.mnt} as node first" in said
    invite = next(line for line in said.splitlines() if line.startswith("invite:"))
    words = invite.split()[1:]
    invited = subprocess.run(words, capture_output=True, text=True, timeout=30)
    token = invited.stdout.strip()
    assert token.startswith("dfs1-"), invited.stderr
    started(b, "--join", token, "-o", "noatime", "--listen", "127.0.0.1")
    (a.mnt / "hello").write_text("world")
    wait_until((b.mnt / "hello").exists, "it arrives")
    assert (b.mnt / "hello").read_text() == "world"
    for node in (a, b):
        now = node.processes()
        assert now is not None
        done = mount_sh("-u", node.mnt)
        assert done.returncode == 0, done.stderr
        assert table.find(str(node.mnt)) is None
        assert nodes.wait_gone(now.node, 0)


def test_failure_prints_the_reason_and_mounts_exit_code(tmp_path: Path) -> None:
    done = mount_sh(tmp_path / "missing", "--store", tmp_path / "store")
    assert (done.returncode, done.stdout) == (32, "")
    assert "does not exist; make it with" in done.stderr
    done = mount_sh(tmp_path, "--prot", "1")
    assert done.returncode == 1
    done = mount_sh("-u", tmp_path)
    assert done.returncode == 32
    assert "is not a dfs mount" in done.stderr


def test_help_and_no_arguments() -> None:
    done = mount_sh("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--join TOKEN" in done.stdout
    assert mount_sh().returncode == 1
    assert mount_sh("--version").stdout.startswith("dfs ")


def test_an_environment_whose_python_is_another_now_is_made_anew(
    tmp_path: Path,
) -> None:
    (tmp_path / "bin").mkdir()
    for name, target in (("python", sys.executable), ("dfs", "/bin/true")):
        (tmp_path / "bin" / name).symlink_to(target)
    library = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library.mkdir(parents=True)
    assert _is_whole(tmp_path)
    library.rename(tmp_path / "lib" / "python3.2")
    assert not _is_whole(tmp_path)
    (tmp_path / "lib" / "python3.2").rename(library)
    (tmp_path / "bin" / "python").unlink()
    (tmp_path / "bin" / "python").symlink_to(tmp_path / "gone")
    assert not _is_whole(tmp_path)


def _is_whole(venv: Path) -> bool:
    return _environment_sh("venv_is_whole", DFS_VENV=str(venv)).returncode == 0


def test_no_code_is_taken_from_the_directory_it_is_called_in(tmp_path: Path) -> None:
    """Which may be anybody's, as /tmp."""
    (tmp_path / "ensurepip.py").write_text(f"open('{tmp_path}/ran', 'w')")
    done = _environment_sh(f"can_make_venv {sys.executable} 3", cwd=tmp_path)
    assert done.returncode == 0 and not (tmp_path / "ran").exists()


def _environment_sh(
    command: str, cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[bytes]:
    """One of its functions."""
    environment = clean_environment(**env)
    environment.pop("PYTHONSAFEPATH", None)
    script = f"program=test; . '{ROOT}/scripts/environment.sh'; {command}"
    return subprocess.run(["bash", "-c", script], env=environment, cwd=cwd, check=False)
