"""`dfs reject` and `dfs apply`: a mass removal by another node waits for a person."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.lib.cluster import Cluster, Node, dfs, status_page, wait_until

pytestmark = pytest.mark.mount

FILES = 200


def contents(top: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(top)): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file()
    }


def holds(node: Node) -> bool:
    return "dfs apply, dfs reject" in status_page("--store", str(node.store))


def test_mass_removal_is_held_rejected_and_then_applied(fresh: Cluster) -> None:
    a, b = fresh.start(2, "--mass-delete-age-s=0")
    for number in range(FILES):
        path = a.mnt / f"d{number % 4}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"data {number}")
    (a.mnt / "kept").write_text("kept")
    fresh.wait_equal()
    before = contents(b.mnt)
    assert len(before) == FILES + 1

    for number in range(4):
        shutil.rmtree(a.mnt / f"d{number}")
    wait_until(lambda: holds(b), "B holds the removal")
    (b.mnt / "meanwhile").write_text("B goes on")
    assert len(contents(b.mnt)) > FILES / 2

    assert "come back" in dfs("reject", "--store", str(b.store)).stdout
    wait_until(lambda: not holds(b), "B holds nothing")
    wanted = before | {"meanwhile": b"B goes on"}
    for node in (a, b):
        wait_until(
            lambda node=node: contents(node.mnt) == wanted,  # type: ignore[misc]
            f"everything is back on {node.name}",
        )
    fresh.wait_equal()

    for number in range(4):
        shutil.rmtree(a.mnt / f"d{number}")
    wait_until(lambda: holds(b), "B holds the second removal")
    dfs("apply", str(b.mnt))
    wait_until(lambda: sorted(os.listdir(b.mnt)) == ["kept", "meanwhile"], "applied")
    fresh.wait_equal()
    assert contents(a.mnt) == contents(b.mnt)
    nothing = dfs("reject", "--store", str(b.store), check=False)
    assert nothing.returncode != 0 and nothing.stderr
