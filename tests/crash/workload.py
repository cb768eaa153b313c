"""The program that is interrupted: python -m tests.crash.workload DIRECTORY SEED

Prints `begin NAME VERSION` before it changes something and `synced NAME VERSION` when
the system has promised that version: after fsync, fdatasync, msync, or an fsync of the
directory. A line `loose` on its input makes it go on with writes that nobody syncs.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import sys
from pathlib import Path

from tests.crash.contents import PAGE, PAGES, body, page, record

WRITES = os.O_RDWR | os.O_CREAT


def say(word: str, name: str, version: int) -> None:
    os.write(1, f"{word} {name} {version}\n".encode())


class Workload:
    """Its open files, and the last version of each name."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.random = random.Random(seed)
        self.version = 0
        self.directory = os.open(top, os.O_RDONLY)
        self.log = os.open(top / "log", WRITES | os.O_APPEND, 0o600)
        self.pages = os.open(top / "pages", WRITES, 0o600)
        os.ftruncate(self.pages, PAGES * PAGE)
        fd = os.open(top / "mapped", WRITES, 0o600)
        os.ftruncate(fd, PAGES * PAGE)
        self.mapped = mmap.mmap(fd, PAGES * PAGE)
        self.records = 0
        for opened in (self.log, self.pages, fd, self.directory):
            os.fsync(opened)

    def run(self) -> None:
        steps = (self.append, self.replace, self.place, self.map, self.make)
        while not select.select([0], [], [], 0)[0]:
            self.version += 1
            self.random.choice((*steps, self.leave))()
        say("synced", "everything", 0)
        while True:
            self.version += 1
            self.leave()

    def append(self) -> None:
        """A record at the end of the log, often several before the fsync."""
        for _ in range(self.random.randint(1, 4)):
            self.records += 1
            say("begin", "log", self.records)
            os.write(self.log, record(self.records))
        os.fsync(self.log)
        say("synced", "log", self.records)

    def replace(self) -> None:
        """Write aside, fsync, rename over: as every careful program saves."""
        version, name = self.version, f"replaced-{self.random.randint(0, 2)}"
        say("begin", name, version)
        self._write(self.top / "new", name, version, sync=True)
        os.rename(self.top / "new", self.top / name)
        if self.random.random() < 0.5:
            os.fsync(self.directory)
            say("synced", name, version)

    def place(self) -> None:
        """Pages in place, anywhere in a file that stays open."""
        numbers = [self.random.randrange(PAGES) for _ in range(3)]
        for number in numbers:
            say("begin", f"pages:{number}", self.version)
            os.pwrite(self.pages, page("pages", number, self.version), number * PAGE)
        os.fdatasync(self.pages)
        for number in numbers:
            say("synced", f"pages:{number}", self.version)

    def map(self) -> None:
        """A page through a shared mapping, and msync."""
        number = self.random.randrange(PAGES)
        say("begin", f"mapped:{number}", self.version)
        where = slice(number * PAGE, (number + 1) * PAGE)
        self.mapped[where] = page("mapped", number, self.version)
        self.mapped.flush(number * PAGE, PAGE)
        say("synced", f"mapped:{number}", self.version)

    def make(self) -> None:
        """A new file; one in three is removed at once, which is synced too."""
        name = f"made-{self.version}"
        say("begin", name, self.version)
        self._write(self.top / name, name, self.version, sync=True)
        os.fsync(self.directory)
        say("synced", name, self.version)
        if self.version % 3 == 0:
            say("begin", name, 0)
            os.unlink(self.top / name)
            os.fsync(self.directory)
            say("synced", name, 0)

    def leave(self) -> None:
        """A new file that nobody syncs."""
        name = f"loose-{self.version}"
        say("begin", name, self.version)
        self._write(self.top / name, name, self.version, sync=False)

    def _write(self, path: Path, name: str, version: int, *, sync: bool) -> None:
        with path.open("wb", buffering=0) as out:
            data = memoryview(body(name, version))
            while data:
                data = data[out.write(data[:100_000]) :]
            if sync:
                os.fsync(out.fileno())


if __name__ == "__main__":
    Workload(Path(sys.argv[1]), int(sys.argv[2])).run()
