"""A close returns before the peer has applied it; nobody there sees the old."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.cluster import Node, cluster, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]

ROUNDS = int(os.environ.get("DFS_ROUNDS", "150"))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    with cluster(tmp_path_factory.mktemp("early")) as made:
        a, b = made.start(2, "-o", "barrier_ms=10000")
        made.wait_near()
        yield a, b


def directory(nodes: tuple[Node, Node], name: str) -> tuple[Path, Path]:
    """One that both see, on both."""
    a, b = nodes
    (a.mnt / name).mkdir()
    (a.mnt / name / "seen").write_bytes(b"")
    wait_until((b.mnt / name / "seen").exists, "both see it")
    return a.mnt / name, b.mnt / name


def early(node: Node) -> int:
    count = node.status()["early"]
    assert isinstance(count, int)
    return count


def test_new_files_are_there_at_once_and_were_acknowledged_early(
    nodes: tuple[Node, Node],
) -> None:
    here, there = directory(nodes, "new")
    before = early(nodes[1])
    for n in range(ROUNDS):
        data = b"%d" % n * 100
        (here / f"{n}").write_bytes(data)
        assert (there / f"{n}").read_bytes() == data
    assert early(nodes[1]) - before >= ROUNDS // 2


def test_names_that_were_looked_for_before(nodes: tuple[Node, Node]) -> None:
    here, there = directory(nodes, "absent")
    for n in range(ROUNDS):
        assert not (there / f"{n}").exists()
        (here / f"{n}").write_bytes(b"data")
        assert (there / f"{n}").read_bytes() == b"data"


def test_listings_that_were_read_before(nodes: tuple[Node, Node]) -> None:
    here, there = directory(nodes, "listed")
    for n in range(ROUNDS):
        os.listdir(there)
        (here / f"{n}").write_bytes(b"data")
        assert f"{n}" in os.listdir(there)


def test_a_directory_listed_once_does_not_slow_down_what_follows(
    nodes: tuple[Node, Node],
) -> None:
    here, there = directory(nodes, "listed once")
    os.listdir(there)
    before = early(nodes[1])
    for n in range(ROUNDS):
        (here / f"{n}").write_bytes(b"data")
        if n % 50 == 0:
            assert f"{n}" in os.listdir(there)
    assert early(nodes[1]) - before >= ROUNDS // 2


def test_files_that_were_read_before(nodes: tuple[Node, Node]) -> None:
    here, there = directory(nodes, "read")
    for n in range(ROUNDS):
        (here / "file").write_bytes(b"%05d" % n)
        assert (there / "file").read_bytes() == b"%05d" % n
        assert (there / "file").stat().st_mtime_ns == (here / "file").stat().st_mtime_ns


def test_files_replaced_by_rename(nodes: tuple[Node, Node]) -> None:
    here, there = directory(nodes, "renamed")
    for n in range(ROUNDS):
        target = f"{n // 2}"  # each replaced once, read or not before
        (here / "spare").write_bytes(b"%05d" % n)
        os.rename(here / "spare", here / target)
        if n % 2:
            assert (there / target).read_bytes() == b"%05d" % n


def test_an_exclusive_creation_on_the_peer_loses_against_what_was_closed(
    nodes: tuple[Node, Node],
) -> None:
    here, there = directory(nodes, "exclusive")
    for n in range(ROUNDS):
        (here / f"{n}").write_bytes(b"mine")
        with pytest.raises(FileExistsError) as lost:
            os.open(there / f"{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        assert lost.value.errno == errno.EEXIST


def test_two_nodes_that_fill_one_directory_do_not_hold_each_other_up(
    nodes: tuple[Node, Node],
) -> None:
    """A request at the fence holds the directory's lock in the kernel; telling the
    kernel of the change before waits for that lock."""
    here, there = directory(nodes, "both")

    def fill(where: Path, name: str) -> None:
        for n in range(ROUNDS):
            (where / f"{name}{n}").write_bytes(b"data")
            if n % 3 == 0:
                os.rename(where / f"{name}{n}", where / f"{name}-last")

    threads = [
        threading.Thread(target=fill, args=args)
        for args in ((here, "a"), (there, "b"), (here, "c"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for node in nodes:
        assert "does not say what it acknowledged" not in node.logs()


def test_looking_all_the_time_never_finds_the_old_after_the_new(
    nodes: tuple[Node, Node],
) -> None:
    """Answers that cross the change: a reader polls names that come into being."""
    here, there = directory(nodes, "polled")
    closed = -1
    wrong: list[str] = []
    ended = threading.Event()

    def poll() -> None:
        while not ended.is_set():
            known = closed
            try:
                found = os.path.getsize(there / f"{known}") if known >= 0 else 7
            except FileNotFoundError:
                found = -1
            if found != 7:
                wrong.append(f"{known}: {found}")
            os.path.exists(there / f"{known + 1}")  # absent, or just made
            if known % 7 == 0 and f"{max(known, 0)}" not in os.listdir(there):
                wrong.append(f"{known} is not listed")

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        for n in range(ROUNDS):
            (here / f"{n}").write_bytes(b"seven77")
            closed = n
    finally:
        ended.set()
        poller.join()
    assert not wrong, wrong[:5]
