"""The same random operations on two directories; everything seen must agree.

`python -m tests.posix.random_ops --ops N --seed S DIR HOSTDIR`: DIR is on the mount,
HOSTDIR on a local disk (ext4). Compared after each operation: result or errno, and
which of mtime and ctime moved on every path involved; every few hundred operations
the whole trees: names, kinds, modes, owners, link counts, sizes, contents, targets,
extended attributes, explicitly set times, and which names share an inode.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path

from tests.posix.random_calls import (
    Features,
    Generator,
    Side,
    describe,
    digest,
    xattr_names,
)

COMPARE_EVERY = 400
REMEMBERED = 25


class Differs(Exception):
    """The two sides do not agree."""


def snapshot(side: Side) -> dict[bytes, tuple[object, ...]]:
    """Every path below the top and all that can be seen of it."""
    found: dict[bytes, tuple[object, ...]] = {}
    first_name: dict[int, bytes] = {}
    _walk(side, b"", found, first_name)
    return found


def _walk(
    side: Side,
    relative: bytes,
    found: dict[bytes, tuple[object, ...]],
    first_name: dict[int, bytes],
) -> None:
    path = side.path(relative)
    status = os.lstat(path)
    content: object = None
    if stat.S_ISREG(status.st_mode):
        content = digest(path)
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    xattrs: object = ()
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        names = xattr_names(path)
        xattrs = tuple((name, os.getxattr(path, name)) for name in names)
    same_as = first_name.setdefault(status.st_ino, relative)
    found[relative] = (describe(status), content, xattrs, same_as)
    if stat.S_ISDIR(status.st_mode):
        for name in sorted(os.listdir(path)):
            below = relative + b"/" + name if relative else name
            _walk(side, below, found, first_name)


class Comparison:
    """Runs operations on both sides until something differs."""

    def __init__(self, mount: Path, host: Path, seed: int) -> None:
        self.sides = (Side(mount), Side(host))
        self.generator = Generator(seed, Features.probe(mount))
        self.log: deque[str] = deque(maxlen=REMEMBERED)
        self.counts: Counter[str] = Counter()

    def run(self, operations: int) -> None:
        try:
            for number in range(operations):
                self.step(number)
                if number % COMPARE_EVERY == COMPARE_EVERY - 1:
                    self.compare_trees(number)
            for side in self.sides:
                side.close()
            self.compare_trees(operations)
        finally:
            for side in self.sides:
                side.close()

    def step(self, number: int) -> None:
        operation = self.generator.draw()
        mount, host = (side.perform(operation) for side in self.sides)
        self.log.append(f"{number}: {operation.text} -> {host}")
        result = host[0]
        failed = isinstance(result, str) and result in errno.errorcode.values()
        self.counts[str(result) if failed else "ok"] += 1
        if mount != host:
            raise Differs(f"mount: {mount}\nhost:  {host}\n{self.history()}")

    def compare_trees(self, number: int) -> None:
        mount, host = (snapshot(side) for side in self.sides)
        if mount == host:
            return
        lines = []
        for path in sorted(mount.keys() | host.keys()):
            if mount.get(path) != host.get(path):
                lines.append(f"{path!r}\n  mount {mount.get(path)}")
                lines.append(f"  host  {host.get(path)}")
        raise Differs(f"trees differ at {number}\n" + "\n".join(lines[:20]))

    def history(self) -> str:
        return "\n".join(self.log)


def compare(mount: Path, host: Path, seed: int, operations: int) -> Comparison:
    """One run in fresh directories below both. Raises Differs."""
    os.umask(0o022)
    made = [Path(tempfile.mkdtemp(prefix="random-", dir=d)) for d in (mount, host)]
    tops = [path / "tree" for path in made]  # "../x" stays inside what is made here
    for path in (*made, *tops):
        path.mkdir(exist_ok=True)
        path.chmod(0o777)
    try:
        comparison = Comparison(tops[0], tops[1], seed)
        comparison.run(operations)
        return comparison
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.posix.random_ops")
    parser.add_argument("--ops", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("dir", type=Path)
    parser.add_argument("hostdir", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    try:
        done = compare(options.dir, options.hostdir, options.seed, options.ops)
    except Differs as error:
        print(f"seed {options.seed}: {error}")
        return 1
    seconds = time.perf_counter() - started
    print(f"seed {options.seed}: {options.ops} operations agree, {seconds:.1f} s")
    print(", ".join(f"{name} {count}" for name, count in done.counts.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
