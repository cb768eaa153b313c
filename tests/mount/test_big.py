"""Large directories, deep trees, huge sparse files, many files and processes at once.

The sizes are small enough for every run. TEST_BIG=1 takes the full ones and prints
what each step took (use pytest -s).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib.cluster import Node, cluster

pytestmark = [pytest.mark.mount, pytest.mark.timeout(1800)]

FULL = os.environ.get("TEST_BIG", "") == "1"
ENTRIES = 200_000 if FULL else 2_000
LEVELS = 200
OPEN_FILES = 1_000 if FULL else 300
PROCESSES = 64 if FULL else 24
TEBIBYTE = 1 << 40


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with cluster(tmp_path_factory.mktemp("big")) as made:
        yield made.add().mount()


def report(what: str, began_s: float, node: Node) -> None:
    spent_s = time.monotonic() - began_s
    rss = [f"{_rss_mib(pid):.0f}" for pid in (node.worker_pid(), node.node_pid())]
    print(f"{what}: {spent_s:.2f} s, worker and node {' and '.join(rss)} MiB")


def _rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / (1 << 20)


def test_large_directory_is_made_listed_and_removed(node: Node) -> None:
    top = node.mnt / "large"
    top.mkdir()
    names = [f"entry-{n:06}" for n in range(ENTRIES)]

    def step(what: str, work: Callable[[], None]) -> None:
        began_s = time.monotonic()
        work()
        report(f"{what} {ENTRIES}", began_s, node)

    def create() -> None:
        directory = os.open(top, os.O_RDONLY)
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=directory))
        os.close(directory)

    def listing() -> None:
        assert sorted(os.listdir(top)) == names

    def stats() -> None:
        with os.scandir(top) as entries:
            assert sum(entry.stat().st_nlink for entry in entries) == ENTRIES

    def remove() -> None:
        for name in names:
            os.unlink(top / name)
        assert os.listdir(top) == []

    step("create", create)
    node.remount()
    step("list cold", listing)
    step("list warm", listing)
    step("stat all", stats)
    step("stat again", stats)
    step("remove", remove)
    top.rmdir()


def test_removing_while_listing_leaves_nothing(node: Node) -> None:
    top = node.mnt / "shrinking"
    top.mkdir()
    for number in range(500):
        (top / f"{number}").touch()
    with os.scandir(top) as entries:
        for entry in entries:
            os.unlink(entry)
    top.rmdir()


def test_deep_tree_is_walked_and_removed(node: Node) -> None:
    levels = ["d"] * LEVELS
    bottom = node.mnt / "deep" / Path(*levels)
    bottom.mkdir(parents=True)
    (bottom / "file").write_text("here")
    node.remount()
    assert (bottom / "file").read_text() == "here"
    depth = sum(1 for _ in os.walk(node.mnt / "deep"))
    assert depth == LEVELS + 1
    subprocess.run(["rm", "-r", node.mnt / "deep"], check=True, timeout=60)


def test_sparse_tebibyte_costs_what_is_written(node: Node) -> None:
    path = node.mnt / "sparse"
    with path.open("wb") as out:
        for offset in (0, TEBIBYTE // 2 + 12_345, TEBIBYTE - 3):
            out.seek(offset)
            out.write(b"end")
        os.fsync(out.fileno())
    status = path.stat()
    assert status.st_size == TEBIBYTE
    assert status.st_blocks * 512 < 16 << 20
    node.remount()
    with path.open("rb") as file:
        fd = file.fileno()
        assert os.pread(fd, 10, TEBIBYTE // 2 + 12_345) == b"end" + bytes(7)
        assert os.pread(fd, 10, TEBIBYTE - 3) == b"end"
        assert os.pread(fd, 10, TEBIBYTE // 4) == bytes(10)
        assert os.lseek(fd, 1 << 30, os.SEEK_DATA) > TEBIBYTE // 2 - (2 << 20)
    path.unlink()


def test_many_files_open_at_once(node: Node) -> None:
    top = node.mnt / "open"
    top.mkdir()
    opened = [os.open(top / f"{n}", os.O_CREAT | os.O_RDWR) for n in range(OPEN_FILES)]
    for number, fd in enumerate(opened):
        os.write(fd, b"%d" % number)
    for number, fd in enumerate(opened):
        assert os.pread(fd, 10, 0) == b"%d" % number
        os.close(fd)
    assert (top / f"{OPEN_FILES - 1}").read_text() == f"{OPEN_FILES - 1}"


_ONE = """
import os, sys
top, number = sys.argv[1], int(sys.argv[2])
log = os.open(f"{top}/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
for turn in range(20):
    with open(f"{top}/{number}-{turn}", "wb") as out:
        out.write(bytes([number]) * 5000)
    os.rename(f"{top}/{number}-{turn}", f"{top}/{number}")
    os.write(log, b"%3d %3d\\n" % (number, turn))
"""


def test_many_processes_at_once(node: Node) -> None:
    top = node.mnt / "processes"
    top.mkdir()
    began_s = time.monotonic()
    command = [sys.executable, "-S", "-c", _ONE, str(top)]
    running = [subprocess.Popen([*command, str(n)]) for n in range(PROCESSES)]
    assert [process.wait(100) for process in running] == [0] * PROCESSES
    report(f"{PROCESSES} processes", began_s, node)
    for number in range(PROCESSES):
        assert (top / f"{number}").read_bytes() == bytes([number]) * 5000
    lines = (top / "log").read_text().splitlines()
    expected = [f"{n:3} {turn:3}" for n in range(PROCESSES) for turn in range(20)]
    assert sorted(lines) == sorted(expected)
    assert len(os.listdir(top)) == PROCESSES + 1


def test_every_name_of_one_byte(node: Node) -> None:
    top = os.fsencode(node.mnt / "one-byte")
    os.mkdir(top)
    names = [bytes([n]) for n in range(1, 256) if bytes([n]) not in (b"/", b".")]
    for name in names:
        with open(os.path.join(top, name), "wb") as out:
            out.write(name)
    node.remount()
    assert sorted(os.listdir(top)) == names
    for name in names:
        with open(os.path.join(top, name), "rb") as file:
            assert file.read() == name
