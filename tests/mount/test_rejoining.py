"""Real nodes that were forgotten and come back."""

from __future__ import annotations

import os

from tests.lib.cluster import Cluster, dfs, holds, status_page, wait_until


def test_forgotten_node_is_refused_then_joins_anew(fresh: Cluster) -> None:
    a, b = fresh.start(2)
    (a.mnt / "common").write_bytes(b"common")
    os.chown(a.mnt, 1000, 1001)  # the tree is that of an ordinary user
    fresh.wait_equal()
    b.umount()
    b.mount("-o", "port=0")
    fresh.wait_connected()
    a.umount()
    (b.mnt / "mine").write_bytes(b"only b has this")
    b.umount()
    a.mount()
    dfs("forget", b.name, "--store", str(a.store))

    b.mount()
    wait_until(
        lambda: "removed from the cluster" in str(b.status().get("sync")),
        "b says that it was removed",
    )
    assert "--join" in status_page("--store", str(b.store))
    b.umount()
    b.mount(token=a.token())
    fresh.wait_connected()

    def aside() -> list[str]:
        top = a.mnt / "lost+found"
        return [p.name for p in top.iterdir()] if top.exists() else []

    wait_until(lambda: bool(aside()), "what only b knew is there")
    (name,) = aside()
    assert name.startswith(f"{b.name}-")
    found = a.mnt / "lost+found" / name
    mine = found / "mine"
    wait_until(lambda: holds(mine, b"only b has this"), "the file of b is there")
    assert os.listdir(found) == ["mine"]
    wait_until(lambda: holds(b.mnt / "common", b"common"), "it has what it had")
    fresh.wait_equal()
    for place in (found, found.parent):
        assert (place.stat().st_uid, place.stat().st_gid) == (1000, 1001)
