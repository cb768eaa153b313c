"""Measures a mounted directory as its users meet it. Standard library only.

Everything read is compared with what was written: a wrong byte is an error, not a
faster figure. MB is 10^6 bytes. Works in a directory of its own below the one given
and removes it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
SMALL = 4096
STAMP_BYTES = 16
VISIBLE_LIMIT_S = 10.0
"""A change not seen on the peer by then is an error."""
BLOCK = os.urandom(MIB)
"""Incompressible; each block gets its number in front, so that none is like another."""

Figures = dict[str, float]
Tell = Callable[[str], None]


class WrongBytes(Exception):
    """The file system gave back something else than was written."""


def measure(
    directory: Path, peer: Path | None, size: int, files: int, tell: Tell
) -> Figures:
    """All figures of one tree.

    Args:
        directory: where the tree is seen by the node that writes.
        peer: where another node sees the same tree.
        size: bytes of the large file; files: how many small ones.
        tell: called with the name of each step.
    """
    figures: Figures = {}
    with _workplace(directory) as place:
        there = peer / place.name if peer else None
        large = place / "large"
        tell("sequential write")
        figures["write_MBps"] = _write_large(large, size)
        if there:
            tell("cold read on the peer")
            _wait_for(lambda: (there / "large").stat().st_size == size)
            figures["peer_cold_read_MBps"] = _read_large(there / "large", size)
        tell("sequential read")
        _read_large(large, size)
        figures["read_MBps"] = _read_large(large, size)
        large.unlink()
        figures.update(_small_files(place, there, files, tell))
        if there:
            tell("time to be visible")
            figures.update(_visible(place, there))
    return figures


@contextmanager
def _workplace(directory: Path) -> Iterator[Path]:
    place = directory / f".bench-{os.getpid()}-{time.monotonic_ns():x}"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _rate(count: float, began_s: float) -> float:
    return count / max(time.perf_counter() - began_s, 1e-9)


def _stamp(number: int) -> bytes:
    return number.to_bytes(STAMP_BYTES, "big")


def _write_large(path: Path, size: int) -> float:
    block = bytearray(BLOCK)
    began_s = time.perf_counter()
    with path.open("wb", buffering=0) as out:
        for number in range(size // MIB):
            block[:STAMP_BYTES] = _stamp(number)
            out.write(block)
    return _rate(size / 1e6, began_s)


def _read_large(path: Path, size: int) -> float:
    into = bytearray(MIB)
    rest = memoryview(BLOCK)[STAMP_BYTES:]
    began_s = time.perf_counter()
    spent_s = 0.0
    with path.open("rb", buffering=0) as source:
        for number in range(size // MIB):
            got = source.readinto(into)
            paused_s = time.perf_counter()
            same = into[:STAMP_BYTES] == _stamp(number)
            if got != MIB or not same or memoryview(into)[STAMP_BYTES:] != rest:
                raise WrongBytes(f"{path}: block {number} is not what was written")
            spent_s += time.perf_counter() - paused_s
    return _rate(size / 1e6, began_s + spent_s)


def _small_files(place: Path, there: Path | None, files: int, tell: Tell) -> Figures:
    figures: Figures = {}
    names = [f"f{number:06}" for number in range(files)]

    def each(step: Callable[[Path, int], None], where: Path) -> float:
        began_s = time.perf_counter()
        for number, name in enumerate(names):
            step(where / name, number)
        return _rate(files, began_s)

    tell("create, write, close of small files")
    figures["create_per_s"] = each(_create, place)
    if there:
        peer = there
        last = names[-1]
        _wait_for(lambda: (peer / last).exists())
        tell("stat, open-read-close on the peer")
        figures["peer_first_stat_per_s"] = each(_stat, peer)
        figures["peer_first_open_read_per_s"] = each(_read, peer)
    tell("stat, open-read-close")
    each(_stat, place)
    figures["warm_stat_per_s"] = each(_stat, place)
    figures["open_read_close_per_s"] = each(_read, place)
    tell("unlink")
    figures["unlink_per_s"] = each(lambda path, _: path.unlink(), place)
    return figures


def _content(number: int) -> bytes:
    return _stamp(number) + BLOCK[STAMP_BYTES:SMALL]


def _create(path: Path, number: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, _content(number))
    os.close(fd)


def _stat(path: Path, _number: int) -> None:
    os.stat(path)


def _read(path: Path, number: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    data = os.read(fd, SMALL + 1)
    os.close(fd)
    if data != _content(number):
        raise WrongBytes(f"{path} is not what was written")


def _visible(place: Path, there: Path, rounds: int = 200) -> Figures:
    """From the return of close here to the right bytes in a fresh open there."""
    path, seen = place / "visible", there / "visible"
    waited_ms = []
    for number in range(rounds):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(fd, _content(number))
        os.close(fd)
        began_s = time.perf_counter()
        wanted = _content(number)
        _wait_for(lambda w=wanted: seen.read_bytes() == w)  # type: ignore[misc]
        waited_ms.append((time.perf_counter() - began_s) * 1000)
    return {
        "visible_p50_ms": statistics.median(waited_ms),
        "visible_p95_ms": statistics.quantiles(waited_ms, n=20)[-1],
    }


def _wait_for(condition: Callable[[], bool]) -> None:
    """Polls as fast as a program can; a missing file means not yet."""
    end_s = time.monotonic() + VISIBLE_LIMIT_S
    while True:
        try:
            if condition():
                return
        except FileNotFoundError:
            pass
        if time.monotonic() > end_s:
            raise WrongBytes(f"not visible on the peer after {VISIBLE_LIMIT_S:.0f} s")
