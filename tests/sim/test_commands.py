"""What the command line asks of a running node."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio

from fusefs.nodelink import paths
from netnode import conflicts
from netnode.commands import Commands
from tests.sim.cluster import SimCluster, SimNode
from tests.sim.running import simulated


def write(node: SimNode, name: bytes, data: bytes) -> None:
    """All of the file anew."""
    cid = node.store.put(data)
    with node.namespace.transaction() as t:
        entry = t.entry(1, name)
        assert entry is not None
        t.set_content(
            entry.ino, size=len(data), root=cid, chunk_log2=20, mtime_ns=t.now_ns
        )
    node.publish(t.tx)


@pytest.mark.parametrize("name", [b"file", b"\xff\x1b\nfile"])
@pytest.mark.parametrize(
    ("keep", "size"), [("ours", 10), ("theirs", 200), ("both", 200)]
)
def test_settled_conflict_is_told_with_the_size_that_is_there_now(
    tmp_path: Path, keep: str, size: int, name: bytes
) -> None:
    @simulated
    async def body(cluster: SimCluster) -> None:
        a, b = await cluster.start(2)
        a.create(name, data=b"0")
        await cluster.until_equal()
        cluster.fabric.partition({"a"}, {"b"})
        await trio.sleep(10)
        write(a, name, b"a" * 10)
        await trio.sleep(1)
        write(b, name, b"b" * 200)  # later: it is shown
        cluster.fabric.heal()
        await cluster.until_connected()
        await cluster.until_equal()
        assert a.node is not None
        (open_,) = await conflicts.report(a.node)
        assert (open_["size_bytes"], open_["winner_size_bytes"]) == (10, 200)
        assert msgspec.json.decode(msgspec.json.encode(open_)) == open_
        assert str(open_["winner"]).startswith(("file", "\\xff"))
        assert ("winner_b64" in open_) == (name != b"file")
        (settled,) = await conflicts.resolve(a.node, paths.to_text(name), keep)
        assert settled["winner_size_bytes"] == size
        entry = a.namespace.entry(1, name)
        assert entry is not None
        row = a.namespace.inode(entry.ino)
        assert row is not None and row.size == size

    body(tmp_path)


@simulated
async def test_status_counts_while_the_worker_is_asked(cluster: SimCluster) -> None:
    (a,) = await cluster.start(1)
    a.create(b"file", data=b"data")
    assert a.node is not None
    asked = trio.Event()

    async def counting(work):  # type: ignore[no-untyped-def]
        await asked.wait()
        return work()

    async def worker() -> object:
        await trio.sleep(0.1)
        asked.set()
        return {"pid": 1}

    a.node.environment.offload = counting
    with trio.fail_after(5):
        status = await Commands(a.node, bytes(32), "/mnt", worker).status()
    assert status["worker"] == {"pid": 1}
    assert (status["inodes"], status["chunks"]) == (2, 1)
