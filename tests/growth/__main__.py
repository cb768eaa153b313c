"""Growth: python -m tests.growth [--files N] [--nodes N] [--rounds N]

Two clusters of two nodes run side by side, one of them with many files in its tree.
`dfs bench` measures both by turns, then once more with more nodes in the full one.
Printed are medians and ratios, and what a large directory costs to list, a full node to
start, and its processes in memory. No figure is asserted: they depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fusefs.bench import MIB, Figures, measure
from tests.lib.cluster import Cluster, Node, cluster
from tests.lib.memory import memory

PER_DIRECTORY = 1_000
CONTENT = b"x" * 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.growth", description=__doc__)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="dfs-growth-") as base,
        cluster(Path(base, "full")) as full,
        cluster(Path(base, "small")) as small,
    ):
        first = full.add().mount()
        timed(f"{chosen.files} files made", lambda: fill(first.mnt, chosen.files))
        print(f"while they were made, at most: {memory(first)}")
        large_directory(first, chosen.files)
        timed("mounted again", first.remount)
        token = first.token()
        second = full.add().mount(token=token)
        timed("the second node level", lambda: full.wait_equal(3600))
        full.wait_near()
        small.start(2)
        small.wait_near()
        compare(small, full, chosen.rounds)
        if chosen.nodes > 2:
            for _ in range(chosen.nodes - 2):
                full.add().mount(token=token)
            timed("all nodes level", lambda: full.wait_equal(3600))
            full.wait_connected()
            full.wait_near()
            compare(small, full, chosen.rounds)
        for node in (first, second):
            print(f"at most: {memory(node)}")
        idle(full)
    return 0


def timed(what: str, work: Callable[[], object]) -> None:
    began_s = time.monotonic()
    work()
    print(f"{what}: {time.monotonic() - began_s:.2f} s", flush=True)


def fill(top: Path, files: int) -> None:
    for number in range(files):
        directory = top / f"tree/{number // PER_DIRECTORY}"
        if number % PER_DIRECTORY == 0:
            directory.mkdir(parents=True)
        (directory / f"file-{number}").write_bytes(CONTENT)


def large_directory(node: Node, entries: int) -> None:
    top = node.mnt / "large"
    top.mkdir()

    def make() -> None:
        for number in range(entries):
            (top / f"entry-{number:06}").touch()

    def listed() -> None:
        assert len(os.listdir(top)) == entries

    timed(f"{entries} entries made in one directory", make)
    node.remount()
    timed("listed cold", listed)
    timed("listed warm", listed)


def compare(small: Cluster, full: Cluster, rounds: int) -> None:
    """By turns, so that both meet the same machine."""
    figures: tuple[list[Figures], list[Figures]] = ([], [])
    clusters = (small, full)
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            a, b = clusters[which].nodes[:2]
            found = measure(a.mnt, b.mnt, 64 * MIB, 200, lambda step: None)
            figures[which].append(found)
    titles = "2 nodes, empty", f"{len(full.nodes)} nodes, full"
    print(f"{'':28} {titles[0]:>15} {titles[1]:>15} ratio")
    for name in figures[0][0]:
        before, after = ([found[name] for found in one] for one in figures)
        ratio = statistics.median(b / a for a, b in zip(before, after, strict=True))
        print(
            f"{name:28} {statistics.median(before):15.2f}"
            f" {statistics.median(after):15.2f} {ratio:.2f}",
            flush=True,
        )


def idle(full: Cluster, for_s: float = 20.0) -> None:
    """What processes cost that nobody asks for anything."""
    pids = [pid for node in full.nodes for pid in (node.worker_pid(), node.node_pid())]
    before = [_cpu_s(pid) for pid in pids]
    time.sleep(for_s)
    spent = [
        100 * (_cpu_s(pid) - was) / for_s for pid, was in zip(pids, before, strict=True)
    ]
    print("idle, percent of a core:", ", ".join(f"{one:.1f}" for one in spent))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
