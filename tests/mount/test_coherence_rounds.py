"""What one node did shows on the other at once, through warm kernel caches.

A few rounds here; DFS_ROUNDS=2000 makes it the long run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib.cluster import Node, cluster

pytestmark = [pytest.mark.mount, pytest.mark.timeout(900)]

ROUNDS = int(os.environ.get("DFS_ROUNDS", "40"))


@pytest.fixture(scope="module", params=["close", "all"])
def nodes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Node, Node]]:
    """Two near nodes; the barrier has time for a crowded machine."""
    options = f"barrier_ms=10000,sync={request.param}"
    with cluster(tmp_path_factory.mktemp("rounds")) as made:
        a, b = made.start(2, "-o", options)
        made.wait_near()
        yield request.param, a, b


class Round:
    """One name on two mounts. Each step changes it here and looks there."""

    def __init__(self, here: Path, there: Path, number: int) -> None:
        self.here, self.there = here / "name", there / "name"
        self.spare = here / "spare"
        self.data = b"round %d" % number * (1 + number % 400)

    def write_and_close(self) -> None:
        self.here.write_bytes(self.data)
        assert self.there.read_bytes() == self.data

    def delete_and_make_again(self) -> None:
        self.here.unlink(missing_ok=True)
        self.here.write_bytes(self.data[::-1])
        assert self.there.read_bytes() == self.data[::-1]
        assert self.there.stat().st_size == len(self.data)

    def append(self) -> None:
        with self.here.open("ab") as out:
            out.write(b"tail")
        assert self.there.read_bytes()[-4:] == b"tail"
        assert self.there.stat().st_size == self.here.stat().st_size

    def rename_over(self) -> None:
        self.spare.write_bytes(b"replaced" + self.data)
        os.rename(self.spare, self.here)
        assert self.there.read_bytes() == b"replaced" + self.data

    def replace_while_open(self) -> None:
        with self.there.open("rb") as before:
            old = before.read()
            self.spare.write_bytes(b"anew" + self.data)
            os.rename(self.spare, self.here)
            before.seek(0)
            assert before.read() == old  # the file that was opened
        assert self.there.read_bytes() == b"anew" + self.data

    def cut(self) -> None:
        with self.here.open("r+b") as out:
            out.truncate(3)
        assert self.there.stat().st_size == 3
        assert len(self.there.read_bytes()) == 3

    def overwrite_while_open(self) -> None:
        with self.there.open("rb") as follower:
            follower.read()
            with self.here.open("r+b") as out:
                out.write(b"XYZ")
            follower.seek(0)
            assert follower.read(3) == b"XYZ"

    # only sync=all promises these at once

    def chmod(self) -> None:
        mode = 0o600 if stat.S_IMODE(self.there.stat().st_mode) == 0o640 else 0o640
        self.here.chmod(mode)
        assert stat.S_IMODE(self.there.stat().st_mode) == mode

    def truncate_by_name(self) -> None:
        os.truncate(self.here, 2)
        assert self.there.stat().st_size == 2

    def remove(self) -> None:
        assert self.there.exists()
        self.here.unlink()
        assert not self.there.exists()
        assert "name" not in os.listdir(self.there.parent)

    def make_directory(self) -> None:
        (self.here.parent / "dir").mkdir()
        assert (self.there.parent / "dir").is_dir()
        (self.here.parent / "dir").rmdir()
        assert not (self.there.parent / "dir").exists()

    def steps(self, sync: str) -> list[Callable[[], None]]:
        at_close = [
            self.write_and_close,
            self.append,
            self.rename_over,
            self.overwrite_while_open,
            self.replace_while_open,
            self.delete_and_make_again,
            self.cut,
        ]
        if sync == "close":
            return at_close
        return [
            *at_close,
            self.chmod,
            self.truncate_by_name,
            self.remove,
            self.make_directory,
        ]


def test_every_change_shows_at_once_on_the_other(
    nodes: tuple[str, Node, Node],
) -> None:
    sync, a, b = nodes
    for number in range(ROUNDS):
        here, there = (a, b) if number % 2 == 0 else (b, a)
        one = Round(here.mnt, there.mnt, number)
        for step in one.steps(sync):
            try:
                step()
            except AssertionError as error:
                raise AssertionError(f"round {number}, {step.__name__}") from error
