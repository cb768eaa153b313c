"""More of what is done twice (`mirrored`): what few programs do, and what a mount that
goes on with another worker could get wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from pathlib import Path

from tests.chaos.mirrored import Call, Mirrored
from tests.chaos.weather import Weather
from tests.lib import commands
from tests.posix import libc

MAP = """
import mmap, os, sys
try:
    fd = os.open(sys.argv[1], os.O_RDWR)
    data, at = sys.stdin.buffer.read(), int(sys.argv[2])
    with mmap.mmap(fd, os.fstat(fd).st_size) as memory:
        memory[at : at + len(data)] = data
        memory.flush()
    os.close(fd)
except OSError as error:
    sys.exit(error.errno)
"""
"""In a process of its own, which a page that cannot be had ends."""


class Thorough(Mirrored):
    """Files without a name that stay open, memory, ranges, directories in the place of
    others, and all names with what stat(2) says of them."""

    KINDS = (
        *Mirrored.KINDS,
        *("tmpfile", "range", "map", "zero", "list", "list", "over", "prune"),
        *("orphan",) * 6,
    )

    def __init__(
        self, name: str, top: Path, weather: Weather, seed: object, aside: Path
    ) -> None:
        super().__init__(name, top, weather, seed, aside)
        self._nameless: tuple[int, int] | None = None

    def rest(self) -> None:
        super().rest()
        for fd in self._nameless or ():
            self._close(fd)
        self._nameless = None

    def _unname(self) -> Call:
        """A file that stays open, without a name."""
        name = None if self.chance.random() < 0.4 else f"gone-{self.steps}"
        self._nameless = None
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL

        def do(top: Path) -> None:
            if name is None:
                fd = os.open(top, os.O_RDWR | libc.O_TMPFILE, 0o644)
            else:
                fd = os.open(top / name, flags, 0o644)
                try:
                    os.unlink(top / name)
                except OSError:
                    os.close(fd)
                    raise
            if top == self.real:
                self._nameless = fd, -1
            else:
                assert self._nameless is not None
                self._nameless = self._nameless[0], fd

        return Call("unname", do, (name,) if name else (), in_parts=True)

    def _orphan(self) -> Call | None:
        if self._nameless is None or self.chance.random() < 0.1:
            for fd in self._nameless or ():
                os.close(fd)
            return self._unname()
        data, at = self._data(), self.chance.randrange(500_000)
        kind = self.chance.randrange(5)
        pair = self._nameless

        def do(top: Path) -> object:
            fd = pair[top == self.model]
            if kind == 0:
                return hashlib.sha256(os.pread(fd, 900_000, 0)).digest()
            if kind == 1:
                os.ftruncate(fd, at)
                return at
            if kind == 2:
                st = os.fstat(fd)
                return st.st_size, st.st_nlink, st.st_mode
            return os.pwrite(fd, data, at)

        return Call("orphan", do, (), in_parts=True)

    def _tmpfile(self) -> Call | None:
        """Written without a name, then given one."""
        path, data = self._new(), self._data()
        if not (self.model / path).parent.is_dir():
            return None

        def do(top: Path) -> None:
            fd = os.open((top / path).parent, os.O_RDWR | libc.O_TMPFILE, 0o640)
            try:
                done = 0
                while done < len(data):
                    done += os.write(fd, data[done:])
                libc.linkat_fd(fd, os.fsencode(top / path))
            finally:
                os.close(fd)

        return Call("tmpfile", do, (path,))

    def _range(self) -> Call | None:
        """copy_file_range into the middle of another file."""
        path, target = self._file(), self._file()
        model = self.model / path
        if not model.is_file() or not self._can_write(self.model / target):
            return None
        if not (self.model / target).exists():
            return None
        if os.path.samefile(model, self.model / target):
            return None
        size = model.stat().st_size
        at = self.chance.randrange(size + 1) & self.chance.choice((-1, -4096))
        to = self.chance.randrange(200_000) & self.chance.choice((-1, -4096))
        length = self.chance.randrange(1, 200_000)

        def do(top: Path) -> int:
            done = 0
            with (top / path).open("rb") as source, (top / target).open("r+b") as out:
                while done < length:
                    n = os.copy_file_range(
                        source.fileno(),
                        out.fileno(),
                        length - done,
                        at + done,
                        to + done,
                    )
                    if not n:
                        break
                    done += n
            return done

        return Call("range", do, (target,), in_parts=True)

    def _map(self) -> Call | None:
        """Changed through memory."""
        path = self._file()
        model = self.model / path
        if not model.is_file() or not (size := model.stat().st_size):
            return None
        at = self.chance.randrange(size)
        data = self._data()[: size - at][:9000]
        if not data:
            return None

        def do(top: Path) -> None:
            words = [sys.executable, "-c", MAP, str(top / path), str(at)]
            code = commands.run(words, input=data).returncode
            if code < 0:  # SIGBUS
                raise OSError(errno.EFAULT, "SIGBUS")
            if code:
                raise OSError(code, os.strerror(code))

        return Call("map", do, (path,), in_parts=True)

    def _zero(self) -> Call | None:
        path = self._file()
        if not (self.model / path).is_file():
            return None
        at, length = self.chance.randrange(100_000), self.chance.randrange(1, 90_000)
        mode = self.chance.choice((0, libc.KEEP_SIZE, libc.ZERO_RANGE))

        def do(top: Path) -> None:
            fd = os.open(top / path, os.O_WRONLY)
            try:
                libc.fallocate(fd, mode, at, length)
            finally:
                os.close(fd)

        return Call("zero", do, (path,), in_parts=True)

    def _list(self) -> Call:
        """All names with what stat(2) says of them."""

        def do(top: Path) -> object:
            out = []
            for base, below, names in os.walk(top):
                for name in [*below, *names]:
                    path = Path(base, name)
                    st = path.lstat()
                    is_dir = stat.S_ISDIR(st.st_mode)
                    size = 0 if is_dir else st.st_size
                    links = 0 if is_dir else st.st_nlink
                    out.append((str(path.relative_to(top)), st.st_mode, size, links))
            return sorted(out)

        return Call("list", do, ())

    def _over(self) -> Call | None:
        """A directory onto another one."""
        directories, _ = self._paths()
        if len(directories) < 3:
            return None
        old, new = self.chance.sample(directories[1:], 2)
        return Call("over", lambda top: os.rename(top / old, top / new), (old, new))

    def _prune(self) -> Call | None:
        """What is in a directory goes, so that some are empty."""
        directories, _ = self._paths()
        if len(directories) < 2:
            return None
        path = self.chance.choice(directories[1:])
        names = [e.name for e in os.scandir(self.model / path) if not e.is_dir()]
        if not names:
            return None

        def do(top: Path) -> None:
            for name in sorted(names):
                os.unlink(top / path / name)

        return Call("prune", do, tuple(f"{path}/{n}" for n in names), in_parts=True)
