"""mount.sh as a user runs it, with the virtual environment of this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusefs.mountpoint import nodes, table
from tests.lib.cluster import (
    ROOT,
    Cluster,
    Node,
    clean_environment,
    holds,
    wait_until,
)

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
    wait_until(lambda: holds(b.mnt / "hello", b"world"), "it arrives")
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


@pytest.mark.parametrize("place", ["/home/jürgen/dfs", "/home/j\udcfcrgen", "/plain"])
def test_the_environment_starts_with_any_alphabet(tmp_path: Path, place: str) -> None:
    """Before 3.13 a path in a .pth file is read in that of LC_ALL."""
    file = tmp_path / "_dfs.pth"
    file.write_bytes(os.fsencode(f"{place}\n{place}"))
    script = f". {ROOT}/scripts/environment.sh; venv={sys.prefix}; any_alphabet {file}"
    for _ in range(2):
        words = ["bash", "-c", script]
        subprocess.run(words, env={**os.environ, "LC_ALL": "C"}, check=True, timeout=60)
        line = file.read_text("ascii")
        if line == f"{place}\n{place}":
            continue
        assert line.startswith("import ")
        before = list(sys.path)
        try:
            exec(line)
            assert sys.path == [*before, place]
        finally:
            sys.path[:] = before


@pytest.mark.parametrize(
    ("candidate", "names", "packages"),
    [
        ("3.13.5-1", "python3.13", "python3 python3-venv"),
        ("", "", "python3 python3-venv"),
        ("3.10.6", "python3.10 python3.9 python3.11", "python3.11 python3.11-venv"),
        ("3.10.6", "python3.10 python3.1", ""),
    ],
)
def test_the_distributions_python_is_named_where_it_is_new_enough(
    tmp_path: Path, candidate: str, names: str, packages: str
) -> None:
    """As `apt-cache policy python3` and `apt-cache pkgnames` tell of it."""
    fake = tmp_path / "apt-cache"
    said = f"python3:\\n  Installed: (none)\\n  Candidate: {candidate}\\n"
    policy = f"printf '{said if candidate else ''}'"
    fake.write_text(
        f"#!/bin/sh\nif [ $1 = policy ]; then {policy}; "
        f"else printf '%s\\n' {names}; fi\n"
    )
    fake.chmod(0o755)
    done = _environment_sh("python_packages", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.stdout.decode().strip() == packages
    assert (done.returncode == 0) == bool(packages)


def test_a_python_in_a_directory_with_spaces_can_be_named(tmp_path: Path) -> None:
    python = tmp_path / "a directory" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    found = _environment_sh('find_python "$(all_pythons)"', DFS_PYTHON=str(python))
    assert found.stdout.decode().strip() == str(python)


def test_what_is_in_the_way_of_the_environment_is_said_without_noise(
    tmp_path: Path,
) -> None:
    place = tmp_path / "missing" / "venv"
    done = _environment_sh("install_project", DFS_VENV=str(place))
    said = done.stderr.decode()
    assert done.returncode == 2
    assert said.startswith(f"test: {place} cannot be made: {place.parent} is not")
    assert "DFS_VENV" in said and said.count("\n") == 1
    done = _environment_sh("make_venv", DFS_VENV=str(place), DFS_PYTHON="/bin/false")
    assert done.returncode == 2
    assert "DFS_PYTHON is /bin/false, which is no Python" in done.stderr.decode()


def _environment_sh(
    command: str, cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[bytes]:
    """One of its functions."""
    environment = clean_environment(**env)
    environment.pop("PYTHONSAFEPATH", None)
    script = f"program=test; . '{ROOT}/scripts/environment.sh'; {command}"
    return subprocess.run(
        ["bash", "-c", script],
        env=environment,
        cwd=cwd,
        capture_output=True,
        check=False,
    )
