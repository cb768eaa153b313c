"""Bytes on demand, nodes that were away, and bytes that nobody has."""

from __future__ import annotations

import errno
import os
import random
import time
from pathlib import Path

import pytest

from tests.lib.cluster import Cluster, Node, errno_of, wait_until

pytestmark = pytest.mark.mount

MIB = 1 << 20


def stored_bytes(node: Node) -> int:
    """What the node's objects take on its disk."""
    found = 0
    for directory, _, names in os.walk(node.store / "objects"):
        for name in names:
            try:
                found += os.stat(os.path.join(directory, name)).st_size
            except FileNotFoundError:  # a new one, which has got its name meanwhile
                pass
    return found


def tree(top: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every path with its mode, mtime and content."""
    found = {}
    for directory, _, files in os.walk(top):
        for name in files:
            path = Path(directory, name)
            status = path.stat()
            key = str(path.relative_to(top))
            found[key] = (status.st_mode, status.st_mtime_ns, path.read_bytes())
    return found


def operations(top: Path, count: int, seed: int) -> None:
    """`count` random changes below a directory: the same for the same seed."""
    chance = random.Random(seed)
    names = [f"{chance.randrange(10)}/{n}" for n in range(count // 4)]
    for number in range(10):
        (top / str(number)).mkdir(exist_ok=True)
    for _ in range(count):
        path = top / chance.choice(names)
        other = top / chance.choice(names)
        kind = chance.randrange(10)
        if kind < 5 or not path.exists():
            path.write_bytes(chance.randbytes(chance.randrange(6000)))
        elif kind < 7:
            os.rename(path, other)
        elif kind < 8:
            path.unlink()
        elif kind < 9:
            os.chmod(path, chance.choice([0o600, 0o644, 0o755]))
        else:
            with path.open("ab") as out:
                out.write(b"more")


def test_bytes_stay_where_they_are_until_they_are_read(fresh: Cluster) -> None:
    """One copy is wanted; who is responsible for a chunk is a matter of its hash, so
    the reader is expected to get no more than its share before it reads."""
    a, b = fresh.start(2, "-o", "replicas=1")
    data = random.Random(1).randbytes(100 * MIB)
    (a.mnt / "large").write_bytes(data)
    wait_until(lambda: size_of(b.mnt / "large") == len(data), "B knows of it")
    before = stored_bytes(b)
    assert before < 75 * MIB
    assert (b.mnt / "large").read_bytes() == data
    assert stored_bytes(b) >= 100 * MIB


def test_two_holders_both_serve_a_third(fresh: Cluster) -> None:
    a, b = fresh.start(2)
    data = random.Random(2).randbytes(48 * MIB)
    (a.mnt / "large").write_bytes(data)
    wait_until(lambda: size_of(b.mnt / "large") == len(data), "B knows of it")
    assert (b.mnt / "large").read_bytes() == data
    c = fresh.add().mount(token=a.token())
    fresh.wait_connected()
    wait_until(lambda: size_of(c.mnt / "large") == len(data), "C knows of it")
    assert (c.mnt / "large").read_bytes() == data
    served = {n.name: served_chunks(n) for n in (a, b)}
    assert all(count > 0 for count in served.values()), served


def size_of(path: Path) -> int:
    """-1 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def served_chunks(node: Node) -> int:
    status = node.ask("status")
    count = status["served_chunks"]
    assert isinstance(count, int)
    return count


def test_a_thousand_operations_while_one_was_away(fresh: Cluster) -> None:
    a, b = fresh.start(2)
    operations(a.mnt, 100, seed=1)
    fresh.wait_equal()
    b.umount()
    operations(a.mnt, 1000, seed=2)
    b.mount()
    fresh.wait_connected()
    fresh.wait_equal()
    assert tree(b.mnt) == tree(a.mnt)


def test_both_write_apart_and_have_all_when_they_meet(fresh: Cluster) -> None:
    a, b = fresh.start(2)
    for node in (a, b):
        (node.mnt / node.name).mkdir()
    fresh.wait_equal()
    b.umount()
    operations(a.mnt / "A", 200, seed=3)
    a.umount()
    b.mount()
    operations(b.mnt / "B", 200, seed=4)
    a.mount()
    fresh.wait_connected()
    fresh.wait_equal()
    assert tree(b.mnt) == tree(a.mnt)
    assert {p.split("/")[0] for p in tree(a.mnt)} == {"A", "B"}


def test_bytes_nobody_reachable_has_are_an_error_within_the_deadline(
    fresh: Cluster,
) -> None:
    a, b = fresh.start(2, "-o", "fetch_timeout_s=3,replicas=1")
    data = random.Random(5).randbytes(20 * MIB)
    (a.mnt / "large").write_bytes(data)
    (a.mnt / "small").write_bytes(b"small")
    wait_until(lambda: size_of(b.mnt / "small") == 5, "B knows of both")
    a.umount()
    began_s = time.monotonic()
    got = errno_of((b.mnt / "large").read_bytes)
    assert got in (errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EIO)
    assert time.monotonic() - began_s < 20  # it is 30 s where nobody says otherwise
    assert (b.mnt / "large").stat().st_size == len(data)
    assert (b.mnt / "small").read_bytes() == b"small"


def test_metadata_answers_at_once_with_every_peer_dead(fresh: Cluster) -> None:
    a, b = fresh.start(2)
    operations(a.mnt, 200, seed=6)
    fresh.wait_equal()
    a.destroy()
    began_s = time.monotonic()
    for directory, _, files in os.walk(b.mnt):
        for name in files:
            os.stat(os.path.join(directory, name))
    os.statvfs(b.mnt)
    (b.mnt / "new").write_text("written alone")
    assert time.monotonic() - began_s < 5  # a peer that is silent for 6 s is gone
    wait_until(lambda: b.connected() == set(), "B noticed that A is gone")
