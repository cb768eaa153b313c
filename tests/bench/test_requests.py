"""What each operation costs in requests of the kernel and in messages between nodes,
on two real mounts. One that grows without being changed on purpose is a regression:
change requests.json in the same commit and say why.

The kernel decides what it asks, so another one may ask more; the table is of those
that have everything the binding negotiates for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusefs.nodelink.client import BUSY_GATHER_S
from tests.lib.cluster import Node, cluster, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]

TABLE = Path(__file__).with_name("requests.json")
TIMES = 20
SLACK = 0.3
"""For what comes now and then: heartbeats, forgets, a request for a directory."""
UNCOUNTED = {"forget", "batch_forget", "statfs", "interrupt"}
"""When the kernel frees memory, and who asks for space."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    with cluster(tmp_path_factory.mktemp("requests")) as made:
        a, b = made.start(2, "-o", "barrier_ms=10000")
        made.wait_near()
        yield a, b


def requests(node: Node) -> dict[str, int]:
    """Served so far, by the kernel's names for them."""
    worker = None
    while worker is None:  # the node gives it 0.15 s to answer
        worker = node.status()["worker"]
    assert isinstance(worker, dict)
    served = worker["worker"]["requests"]
    extra = {name for name in served if name.startswith(("known", "notif", "fence"))}
    left_out = extra | UNCOUNTED | {"requests", "threads"}
    return {k: v for k, v in served.items() if k not in left_out}


def messages(node: Node) -> int:
    count = node.status()["sent_messages"]
    assert isinstance(count, int)
    return count


def write(path: Path, data: bytes = b"x" * 4096) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, data)
    os.close(fd)


def read(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)


def append(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, b"one line\n")
    os.close(fd)


def replace(directory: Path, name: str) -> None:
    write(directory / "spare")
    os.rename(directory / "spare", directory / name)


def copied_as_tar_does(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, b"x" * 4096)
    os.utime(fd, (1, 1))
    os.chown(fd, os.getuid(), os.getgid())
    os.fchmod(fd, 0o644)
    os.close(fd)


def steps(here: Path, there: Path) -> list[tuple[str, bool, Callable[[int], object]]]:
    """(name, done at the peer?, operation); each counts on those before it."""
    return [
        ("create, write 4 KiB, close", False, lambda n: write(here / f"{n}")),
        ("stat first at the peer", True, lambda n: os.stat(there / f"{n}")),
        ("stat again at the peer", True, lambda n: os.stat(there / f"{n}")),
        ("open, read, close first at the peer", True, lambda n: read(there / f"{n}")),
        ("open, read, close again at the peer", True, lambda n: read(there / f"{n}")),
        ("open, append, close", False, lambda n: append(here / "log")),
        ("write anew and rename over", False, lambda n: replace(here, "target")),
        ("chmod", False, lambda n: os.chmod(here / f"{n}", 0o600)),
        ("unlink", False, lambda n: os.unlink(here / f"{n}")),
        ("a file of tar", False, lambda n: copied_as_tar_does(here / f"t{n}")),
    ]


def test_no_operation_asks_more_than_the_table_says(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    (a.mnt / "d").mkdir()
    wait_until((b.mnt / "d").is_dir, "the directory is at the peer")
    write(a.mnt / "d" / "target")
    found: dict[str, dict[str, float]] = {}
    took_s: dict[str, float] = {}
    for name, at_peer, step in steps(a.mnt / "d", b.mnt / "d"):
        node = b if at_peer else a
        before, sent = requests(node), messages(a)
        began_s = time.monotonic()
        for n in range(TIMES):
            step(n)
        took_s[name] = time.monotonic() - began_s
        after = _once_released(node, before)
        costs = {k: (after[k] - before.get(k, 0)) / TIMES for k in after}
        costs = {k: v for k, v in costs.items() if v >= SLACK}
        costs["messages sent"] = (messages(a) - sent) / TIMES
        found[name] = dict(sorted(costs.items()))
    if os.environ.get("DFS_WRITE_COUNTS"):
        TABLE.write_text(json.dumps(found, indent=2) + "\n")
        return
    table = json.loads(TABLE.read_text())
    assert set(found) == set(table)
    grown = [
        f"{name}: {what} {count}, was {table[name].get(what, 0)}"
        for name, costs in found.items()
        for what, count in costs.items()
        if count > table[name].get(what, 0) + _slack(what, took_s[name])
    ]
    assert not grown, "\n".join(grown)


def _slack(what: str, took_s: float) -> float:
    """Changes that nobody waits for are gathered for a while, then sent: the slower the
    machine, the more messages."""
    return SLACK + (what == "messages sent") * took_s / BUSY_GATHER_S / TIMES


def _once_released(node: Node, before: dict[str, int]) -> dict[str, int]:
    """The counts when every file is released: that is asked after close returned."""
    after: dict[str, int] = {}

    def released() -> bool:
        after.update(requests(node))
        came = {k: after.get(k, 0) - before.get(k, 0) for k in after}
        opened = came.get("open", 0) + came.get("create", 0)
        return came.get("release", 0) >= opened

    wait_until(released, "every file is released")
    return after
