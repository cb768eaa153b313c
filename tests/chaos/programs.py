"""Programs that work on a mount until they are told to stop; each in its thread.

What fails is judged by the weather: an error that nothing explains is a problem. Each
program has a gate that it holds while it makes one step; who takes it, and calls
`rest`, finds none of its files open.
"""

from __future__ import annotations

import errno
import os
import random
import re
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from tests.chaos import database
from tests.chaos.weather import Weather
from tests.crash.contents import body, version_of
from tests.lib.cluster import clean_environment
from tests.posix import libc

PAUSE_S = 0.02
"""Between two steps, on average: the machine is shared."""
LINE_S = 0.25
"""Between two lines. Those of two nodes merge with those of a third one that is cut off
as long as they take turns no more than 64 times (`model.appends`)."""


class Program:
    """`step` is one thing it does; `label` names it in what it complains about."""

    label = ""
    pause_s = PAUSE_S

    def __init__(self, name: str, top: Path, weather: Weather, seed: object) -> None:
        self.name, self.top, self.weather = name, top, weather
        self.chance = random.Random(f"{seed} {name} {self.label}")
        self.problems: list[str] = []
        self.errors: Counter[str] = Counter()
        self.steps = 0
        self.gate = threading.Lock()  # held during a step, however long that takes
        self._stopping = threading.Event()
        self._thread = threading.Thread()

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self, limit_s: float) -> None:
        self._stopping.set()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self.problems.append(f"{self.label} on {self.name} hangs")
            return
        self.rest()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self.gate:
                began_s = time.monotonic()
                try:
                    self.step()
                    self.steps += 1
                except OSError as error:
                    self.judge(error, began_s)
                except Exception:
                    self.complain(traceback.format_exc())
            self._stopping.wait(self.chance.expovariate(1 / self.pause_s))

    def judge(self, error: OSError, began_s: float) -> None:
        """Counts an error; complains unless the weather explains it."""
        code = error.errno or errno.EIO
        self.errors[errno.errorcode[code]] += 1
        if not self.weather.excuses(self.name, code, began_s):
            self.complain(f"{error!r} while {self.weather.report(began_s)}")

    def complain(self, what: str) -> None:
        self.problems.append(f"{self.label} on {self.name}: {what}")

    def step(self) -> None:
        raise NotImplementedError

    def rest(self) -> None:
        """Closes what it has open."""

    def broken(self, top: Path) -> list[str]:
        """After the storm: what of its promises does not hold, seen through the mount
        `top` of any machine."""
        return []


class Shared(Program):
    """Anything, under the same few names on all machines."""

    label = "shared"
    NAMES = ("a", "b.txt", "c.tar.gz", "d", "e")
    USUAL = frozenset(
        {
            *(errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR),
            *(errno.ESTALE, errno.EINVAL, errno.ENODATA, errno.ELOOP, errno.EBUSY),
            *(errno.EPERM, errno.ENXIO),
        }
    )
    KINDS = (
        *("write",) * 4,
        *("append",) * 3,
        *("patch",) * 3,
        *("rename",) * 4,
        *("unlink",) * 5,
        *("mkdir",) * 3,
        *("replace",) * 3,
        *("rmdir", "truncate", "link", "chmod", "symlink", "xattr", "exchange"),
        *("read",) * 3,
        "list",
    )

    def judge(self, error: OSError, began_s: float) -> None:
        if error.errno not in self.USUAL:
            super().judge(error, began_s)

    def step(self) -> None:
        kind = self.chance.choice(self.KINDS)
        getattr(self, f"_{kind}")(self._some())

    def _some(self) -> Path:
        path = self.top
        for _ in range(self.chance.choice((1, 1, 1, 2, 2, 3))):
            if self.chance.random() < 0.4 and (there := os.listdir(path)):
                path = path / self.chance.choice(there)
            else:
                path = path / self.chance.choice(self.NAMES)
            if not path.is_dir():
                break
        return path

    def _data(self) -> bytes:
        size = self.chance.choice((0, 3, 100, 5000, 40_000, 200_000))
        return self.chance.randbytes(size)

    def _open(self, path: Path, flags: int, data: bytes, at: int | None = None) -> None:
        fd = os.open(path, flags | os.O_NONBLOCK, 0o644)
        try:
            if at is None:
                os.write(fd, data)
            else:
                os.pwrite(fd, data, at)
            if self.chance.random() < 0.2:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _write(self, path: Path) -> None:
        self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, self._data())

    def _append(self, path: Path) -> None:
        self._open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, self._data())

    def _patch(self, path: Path) -> None:
        at = self.chance.randrange(300_000)
        self._open(path, os.O_WRONLY | os.O_CREAT, self._data()[:4096], at)

    def _replace(self, path: Path) -> None:
        new = path.with_name(f"new-{self.name}")
        self._open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, self._data())
        os.rename(new, path)

    def _rename(self, path: Path) -> None:
        os.rename(path, self._some())

    def _exchange(self, path: Path) -> None:
        other = os.fsencode(self._some())
        libc.renameat2(os.fsencode(path), other, libc.RENAME_EXCHANGE)

    def _unlink(self, path: Path) -> None:
        os.unlink(path)

    def _mkdir(self, path: Path) -> None:
        os.mkdir(path)

    def _rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def _truncate(self, path: Path) -> None:
        os.truncate(path, self.chance.randrange(100_000))

    def _link(self, path: Path) -> None:
        os.link(path, self._some())

    def _symlink(self, path: Path) -> None:
        os.symlink("target", path)

    def _chmod(self, path: Path) -> None:
        os.chmod(path, self.chance.choice((0o600, 0o640, 0o755)))

    def _xattr(self, path: Path) -> None:
        os.setxattr(path, "user.x", self.chance.randbytes(9))

    def _read(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            while os.read(fd, 1 << 20):
                pass
        finally:
            os.close(fd)

    def _list(self, path: Path) -> None:
        for entry in os.scandir(path.parent):
            with suppress(FileNotFoundError):
                entry.stat(follow_symlinks=False)


class Logging(Program):
    """Lines appended to logs that all machines append to."""

    label = "logging"
    pause_s = LINE_S
    LOGS = 3
    DEATHS = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
    LINE = re.compile(rb"[A-Z]\d* \d+-\d+ \d+ x* [0-9a-f]{8}$")
    _cut: ClassVar[set[bytes]] = set()
    """How lines begin that a mount died under, or a disk got full, of all machines."""

    def __init__(self, name: str, top: Path, weather: Weather, seed: object) -> None:
        super().__init__(name, top, weather, seed)
        self.session = f"{os.getpid()}-{id(self)}"
        self.number = 0
        self.said: dict[int, set[int]] = {log: set() for log in range(self.LOGS)}
        self._kept: dict[int, int] = {}

    def step(self) -> None:
        log = self.chance.randrange(self.LOGS)
        fd = self._kept.pop(log, -1)
        if fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            fd = os.open(self.top / f"log-{log}", flags, 0o644)
        try:
            self.number += 1
            text = self.line(self.number)
            if self._write(fd, text) == len(text):
                self.said[log].add(self.number)
            if self.chance.random() < 0.1:
                os.fsync(fd)
            if self.chance.random() < 0.5:
                self._kept[log], fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)

    def _write(self, fd: int, text: bytes) -> int:
        try:
            done = os.write(fd, text)
        except OSError as error:
            if error.errno in self.DEATHS:
                self._cut.add(_beginning(text))
            raise
        if done < len(text):
            self._cut.add(_beginning(text))
        return done

    def line(self, number: int) -> bytes:
        size = self.chance.choice((0, 10, 100, 3000))
        text = f"{self.name} {self.session} {number} {'x' * size}"
        return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()

    def rest(self) -> None:
        for fd in self._kept.values():
            try:
                os.close(fd)
            except OSError as error:
                self.judge(error, time.monotonic())
        self._kept.clear()

    def broken(self, top: Path) -> list[str]:
        return [
            f"{top.name}/log-{log}: {problem}"
            for log in range(self.LOGS)
            for problem in self._broken(top / f"logs/log-{log}", self.said[log])
        ]

    def _broken(self, path: Path, said: set[int]) -> list[str]:
        data = path.read_bytes() if path.exists() else b""
        problems, seen = [], []
        *lines, rest = data.split(b"\n")
        for text in map(self._after_a_death, lines):
            words = text.split(b" ")
            if zlib.crc32(b" ".join(words[:-1])) != int(words[-1] or b"0", 16):
                problems.append(f"no whole line: {text[:60]!r} ({len(text)} bytes)")
            elif words[:2] == [self.name.encode(), self.session.encode()]:
                seen.append(int(words[2]))
        if rest and _beginning(rest) not in self._cut:
            problems.append(f"ends in {rest[-60:]!r}")
        if seen != sorted(set(seen)):
            twice = [n for n, count in Counter(seen).items() if count > 1]
            problems.append(f"{self.name}: out of order, or twice: {twice[:9]}")
        if missing := sorted(said - set(seen)):
            problems.append(f"{self.name}: {len(missing)} lines lost: {missing[:9]}")
        return problems

    def _after_a_death(self, text: bytes) -> bytes:
        """The line that follows in the same one on the first piece of one whose write
        failed, or was short: a write of several pages is several requests."""
        if _beginning(text) not in self._cut:
            return text
        whole = self.LINE.search(text)
        return whole[0] if whole else text


def _beginning(line: bytes) -> bytes:
    return b" ".join(line.split(b" ")[:3])


class Saving(Program):
    """Whole files saved as careful programs do, and those of the other machines read:
    each is one version or another, and none older than what was seen before."""

    label = "saving"
    FILES = 3

    def __init__(self, name: str, top: Path, weather: Weather, seed: object) -> None:
        super().__init__(name, top, weather, seed)
        self.version = 0
        self.saved: dict[str, int] = {}
        self.unsure: dict[str, set[int]] = {}
        self._seen: dict[str, int] = {}

    def step(self) -> None:
        if self.chance.random() < 0.4:
            self._save()
        else:
            self._look()

    def _save(self) -> None:
        name = f"{self.name}-{self.chance.randrange(self.FILES)}"
        self.version += 1
        self.unsure.setdefault(name, set()).add(self.version)
        new = self.top / f"new-{self.name}"
        with new.open("wb", buffering=0) as out:
            data = memoryview(body(name, self.version))
            while data:
                data = data[out.write(data[:100_000]) :]
            if self.chance.random() < 0.7:
                os.fsync(out.fileno())
        os.rename(new, self.top / name)
        self.saved[name], self.unsure[name] = self.version, set()

    def _look(self) -> None:
        names = [n for n in os.listdir(self.top) if not n.startswith("new-")]
        if not names:
            return
        name = self.chance.choice(names)
        self._check(name, (self.top / name).read_bytes())

    def _check(self, name: str, data: bytes) -> None:
        found = version_of(data)
        if data != body(name, found):
            self.complain(f"{name} is no whole version: {len(data)} bytes, {found}")
        elif found < self._seen.get(name, 0):
            self.complain(f"{name} was {self._seen[name]} and is {found}")
        else:
            self._seen[name] = found

    def broken(self, top: Path) -> list[str]:
        problems = []
        for name, version in self.saved.items():
            data = (top / "saved" / name).read_bytes()
            found = version_of(data)
            if found not in {version, *self.unsure[name]} or data != body(name, found):
                problems.append(f"{top.name}/{name}: {found} for {version}")
        return problems


class Database(Program):
    """SQLite, with a journal, on a file of this machine alone."""

    label = "database"

    def __init__(self, name: str, top: Path, weather: Weather, seed: object) -> None:
        super().__init__(name, top / f"db-{name}", weather, seed)
        self.committed: set[int] = set()
        self.number = 0
        self._process: subprocess.Popen[str] | None = None

    def step(self) -> None:
        began_s = time.monotonic()
        os.stat(self.top)  # of this mount, not of what is below it
        self._process = self._process or self._start()
        assert self._process.stdin is not None and self._process.stdout is not None
        self.number += 1
        self._process.stdin.write(f"{self.number}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if answer == str(self.number):
            self.committed.add(self.number)
            return
        self.rest()
        self.errors[answer] += 1
        if "malformed" in answer or not answer or self.weather.calm():
            self.complain(f"{answer} while {self.weather.report(began_s)}")

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.database", str(self.top / "db")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )

    def rest(self) -> None:
        if self._process is not None:
            with self._process as process:  # its input is closed, its end waited for
                self._process = None
                del process

    def broken(self, top: Path) -> list[str]:
        path = top / f"db-{self.name}/db"
        if not path.exists():
            return [f"{path} is missing"] if self.committed else []
        return [f"{path}: {p}" for p in database.broken(str(path), self.committed)]
