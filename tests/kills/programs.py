"""What runs while a worker is killed: cp, tar, names, sqlite3, tail -f and a probe."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import IO

from tests.kills import database, lines
from tests.lib.cluster import clean_environment, wait_until
from tests.lib.collected import Collected

COPIED_BYTES = 48 << 20
FILES = 600
"""In the archive: tar takes longer over it than from a kill to the next worker."""
LIMIT_S = 60.0


def module(name: str, *words: str) -> subprocess.Popen[str]:
    """A process of this package with pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.kills.{name}", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
        text=True,
    )


class Repeated:
    """A program run again and again, each time with a target of its own. The one that
    runs when `stop` is called is the last, and is finished."""

    def __init__(self, top: Path) -> None:
        top.mkdir()
        self.top = top
        self.problems: list[str] = []
        self.runs = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(2 * LIMIT_S)
        if self._thread.is_alive():
            self.problems.append(f"{type(self).__name__} does not end")

    def _repeat(self) -> None:
        while not self._stopping.is_set():
            self.runs += 1
            target = self.top / f"{self.runs}"
            try:
                self.problems += [
                    f"{type(self).__name__}: {p}" for p in self.once(target)
                ]
            except Exception as error:
                self.problems.append(f"{type(self).__name__}: {error!r}")

    def once(self, target: Path) -> list[str]:
        """Runs it; what is wrong with the result, which is then removed."""
        raise NotImplementedError


def run(*words: str | Path) -> list[str]:
    """What a program complained about."""
    done = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, timeout=LIMIT_S
    )
    said = (done.stdout + done.stderr).strip()[-500:]
    return [f"{words[0]}: {done.returncode} {said}"] if done.returncode or said else []


class Copying(Repeated):
    """cp of one large file."""

    def __init__(self, top: Path, aside: Path) -> None:
        super().__init__(top)
        self.source = aside / "large"
        self.source.write_bytes(random.Random(1).randbytes(COPIED_BYTES))

    def freshen(self, number: int) -> None:
        """Other chunks than in earlier rounds: none is stored already."""
        with self.source.open("r+b") as file:
            for offset in range(0, COPIED_BYTES, 1 << 20):
                os.pwrite(file.fileno(), b"%8d" % number, offset)

    def once(self, target: Path) -> list[str]:
        problems = run("cp", self.source, target) + run("cmp", self.source, target)
        target.unlink(missing_ok=True)
        return problems


class Untarring(Repeated):
    """tar x of many small files."""

    def __init__(self, top: Path, aside: Path) -> None:
        super().__init__(top)
        self.archive = aside / "small.tar"
        chance = random.Random(2)
        tree = aside / "tree"
        for number in range(FILES):
            path = tree / f"{number % 13}" / f"{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = chance.choice((0, 100, 4096, 9000, 40_000, 300_000))
            path.write_bytes(chance.randbytes(size))
        with tarfile.open(self.archive, "w") as archive:
            archive.add(tree, ".")
        shutil.rmtree(tree)

    def once(self, target: Path) -> list[str]:
        target.mkdir()
        problems = run("tar", "xf", self.archive, "-C", target)
        problems += run("tar", "df", self.archive, "-C", target)
        shutil.rmtree(target)
        return problems


class Naming(Repeated):
    """Names made, moved and taken away. Done twice, most of these would fail."""

    def once(self, target: Path) -> list[str]:
        target.mkdir()
        file, moved, other = (target / name for name in ("file", "moved", "other"))
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        file.rename(moved)
        file.symlink_to("nowhere")
        other.hardlink_to(moved)
        os.mknod(target / "node", stat.S_IFIFO | 0o644)
        for name in ("file", "moved", "other", "node"):
            (target / name).unlink()
        left = os.listdir(target)
        target.rmdir()
        return [f"{left} left"] if left else []


class Writing(Collected):
    """A program of this package that writes until its input is closed."""

    def end(self) -> str:
        """Closes its input and waits for its end; what it complained about."""
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        self.process.wait(LIMIT_S)
        self.reader.join(LIMIT_S)
        return self.process.stderr.read()


class Database:
    """sqlite3 with transactions open most of the time."""

    def __init__(self, top: Path) -> None:
        top.mkdir()
        self.path = str(top / "db")
        self._writer = Writing(module("database", self.path))

    def problems(self) -> list[str]:
        """While the writer goes on: all that it had committed is there."""
        committed = len(self._writer.lines)
        problems = database.broken(self.path, committed)
        if self._writer.process.poll() is not None:
            problems.append("the writer ended")
        return problems + self._goes_on(committed)

    def _goes_on(self, before: int) -> list[str]:
        wait_until(
            lambda: (
                len(self._writer.lines) > before
                or self._writer.process.poll() is not None
            ),
            "the database goes on",
        )
        return []

    def end(self) -> list[str]:
        said = self._writer.end()
        problems = database.broken(self.path, len(self._writer.lines))
        return [f"sqlite: {p}" for p in problems + [said] * bool(said)]


class Following:
    """A log that one process appends to and `tail -f` reads."""

    def __init__(self, top: Path) -> None:
        top.mkdir()
        path = top / "log"
        path.touch()
        self._writer = Writing(module("lines", str(path)))
        self._tail = subprocess.Popen(
            ["tail", "-n", "+1", "-f", str(path)], stdout=subprocess.PIPE, text=True
        )
        self._seen: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.path = path

    def _read(self) -> None:
        assert self._tail.stdout is not None
        for line in self._tail.stdout:
            self._seen.append(line)

    def problems(self) -> list[str]:
        """Every line once and in order, as far as they came."""
        for number, found in enumerate(list(self._seen), 1):
            if found.encode() != lines.line(number):
                return [f"tail: instead of line {number}: {found[:80]!r}"]
        if self._tail.poll() is not None:
            return ["tail ended"]
        return []

    def end(self) -> list[str]:
        said = self._writer.end()
        written = int(self._writer.lines[-1]) if self._writer.lines else -1
        try:
            wait_until(lambda: len(self._seen) >= written, "tail has seen all lines")
        finally:
            self._tail.kill()
            self._tail.wait(LIMIT_S)
        expected = b"".join(lines.line(n) for n in range(1, written + 1))
        wrong = self.path.read_bytes() != expected
        return (
            self.problems_at_end()
            + ["the log is not what was written"] * wrong
            + [f"the log's writer: {said}"] * bool(said)
        )

    def problems_at_end(self) -> list[str]:
        return [p for p in self.problems() if p != "tail ended"]


class Probe:
    """How long the longest operation took."""

    def __init__(self, top: Path) -> None:
        self._process = module("probe", str(top))

    def longest(self) -> tuple[float, list[str]]:
        """Milliseconds since the last call, and what failed."""
        _pipe(self._process.stdin).write("\n")
        _pipe(self._process.stdin).flush()
        answer = _pipe(self._process.stdout).readline()
        if not answer:
            return 0.0, [f"the probe ended: {_pipe(self._process.stderr).read()}"]
        longest_ms, failed = json.loads(answer)
        return longest_ms, [f"probe: {failed}"] if failed else []

    def end(self) -> list[str]:
        _, problems = self.longest()
        _pipe(self._process.stdin).close()
        self._process.wait(LIMIT_S)
        return problems


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
