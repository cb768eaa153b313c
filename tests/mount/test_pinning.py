"""`dfs pin`, `unpin` and `evict` on mounted nodes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from tests.lib.cluster import Cluster, dfs, errno_of, status_page

pytestmark = pytest.mark.mount

MIB = 1 << 20


def populate(top: Path) -> dict[str, bytes]:
    made = {"large": os.urandom(5 * MIB), "sub/\udcff": os.urandom(100_000)}
    made |= {f"sub/{n}": os.urandom(200_000) for n in range(20)}
    for name, data in made.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return made


def test_a_pinned_tree_is_there_when_nobody_else_is(fresh: Cluster) -> None:
    a = fresh.add().mount("--replicas=1")
    b = fresh.add().mount(token=a.token())
    fresh.wait_connected()
    made = populate(a.mnt / "tree")
    (a.mnt / "other").write_bytes(os.urandom(20 * MIB))
    pinned = b.mnt / "tree"
    link = fresh.base / "link"
    link.symlink_to(pinned)
    fresh.wait_equal()
    dfs("pin", f"{link}/")
    (a.mnt / "tree" / "later").write_bytes(late := os.urandom(300_000))
    fresh.wait_equal()
    said = json.loads(dfs("pin", "--wait", "--json", str(pinned)).stdout)
    files = [pin["files"] for pin in said if pin["path"] == "tree"]
    assert files == [len(made) + 1]
    assert "pinned   1 tree" in status_page(str(b.mnt))
    a.umount()
    b.umount()
    b.mount()
    assert {name: (pinned / name).read_bytes() for name in made} == made
    assert (pinned / "later").read_bytes() == late
    assert errno_of((b.mnt / "other").read_bytes) == errno.EHOSTUNREACH
    assert "0 B of cache given up" in dfs("evict", str(pinned)).stdout
    assert "nothing is pinned" in dfs("unpin", str(pinned)).stdout
    assert "0 B of" not in dfs("evict", str(pinned)).stdout
    assert dfs("unpin", str(pinned), check=False).returncode == 1
    b.umount()
    b.mount()
    codes = {errno_of((pinned / name).read_bytes) for name in made}
    assert errno.EHOSTUNREACH in codes
    b.stop()
    b.fsck()
