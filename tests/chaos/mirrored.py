"""Random calls on a directory of one machine alone, done twice: on the mount and on a
local disk. Both answer the same, and are the same, whatever happens to the mount.

A call that the weather let fail was done, or was not, or in part where it writes data:
which one is looked up when the mount answers again, and when what had no room to be
published has it: until then a kill may take it back.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.chaos.programs import Program
from tests.chaos.weather import AGAIN, Weather
from tests.posix import libc

MOST_BYTES = 3 << 20
MOST_NAMES = 60
CALLS = 40
"""Told with the first problem: what differs may have done so for a while."""
HELD = "held"
"""Of the file that is written through one descriptor; nothing else happens to it."""
DONE_BEFORE = frozenset({errno.ENODATA, errno.ENOENT, errno.EEXIST})
"""What a call that is asked again of another worker would fail with if it was done by
the first one: the answer is then that it was done."""
Look = tuple[object, ...]


class Call(NamedTuple):
    """`do` takes the top directory; `touched` are the paths it can change."""

    name: str
    do: Callable[[Path], object]
    touched: tuple[str, ...]
    in_parts: bool = False


class Mirrored(Program):
    """`real` is on the mount, `model` beside it."""

    label = "mirrored"
    NAMES = ("a", "b.txt", "c.tar.gz", "d", "e", "F", "gg", "h" * 200, "ü", "j k")
    KINDS = (
        *("write",) * 4,
        *("append",) * 5,
        *("patch",) * 5,
        *("replace",) * 4,
        *("keep",) * 6,
        *("rename",) * 4,
        *("unlink",) * 3,
        *("mkdir",) * 3,
        *("truncate",) * 3,
        *("read",) * 6,
        *("copy",) * 2,
        *("big", "rmdir", "link", "chmod", "symlink", "setxattr", "removexattr"),
        *("exchange", "punch", "utime"),
    )

    def __init__(
        self, name: str, top: Path, weather: Weather, seed: object, aside: Path
    ) -> None:
        super().__init__(name, top, weather, seed)
        self.real, self.model = top / f"own-{name}", aside / f"own-{name}"
        self.model.mkdir(parents=True)
        self._unsure: Call | None = None
        self._then: Call | None = None
        self._held: tuple[int, int] | None = None
        self._calls: deque[str] = deque(maxlen=CALLS)

    def complain(self, what: str) -> None:
        if not self.problems:
            what = "\n    ".join([what, "its last calls:", *self._calls])
        super().complain(what)

    def step(self) -> None:
        if self._unsure is not None:
            if self.weather.excuses(self.name, errno.ENOSPC, time.monotonic()):
                return
            self._settle(self._unsure)
        if (call := self._then) is None:
            call = getattr(self, f"_{self.chance.choice(self.KINDS)}")()
        self._then = None
        if call is not None:
            self._do(call)

    def _do(self, call: Call) -> None:
        self._unsure, began_s = call, time.monotonic()
        code, answer = outcome(call, self.real)
        self._calls.append(f"{began_s:.3f} {call.name} {call.touched}: {code}")
        if code and self.weather.excuses(self.name, code, began_s):
            self.errors[errno.errorcode[code]] += 1
            self.rest()
            return
        wanted = outcome(call, self.model)
        again = self.weather.excuses(self.name, AGAIN, began_s)
        if not code and wanted[0] in DONE_BEFORE and again:
            pass
        elif (code, answer) != wanted:
            self.complain(
                f"{call.name} {call.touched}: {code, answer} for {wanted}"
                f" while {self.weather.report(began_s)}"
            )
            self.rest()
            return
        self._unsure = None

    # -- what became of a call that failed -----------------------------------------

    def _settle(self, call: Call) -> None:
        os.stat(self.real)  # of this mount, not of what is below it
        real = [look(self.real, path) for path in call.touched]
        os.stat(self.real)  # nor has it gone meanwhile
        before = [look(self.model, path) for path in call.touched]
        if real != before:
            outcome(call, self.model)
            after = [look(self.model, path) for path in call.touched]
            if real != after:
                if not call.in_parts:
                    self.complain(
                        f"{call.name} {call.touched} was done by half: {real},"
                        f" neither {before} nor {after}"
                    )
                for path in call.touched:
                    self._adopt(path)
        self._unsure = None

    def _adopt(self, path: str) -> None:
        real, model = self.real / path, self.model / path
        if not exists(real):
            model.unlink(missing_ok=True)
        elif real.is_file():
            with model.open("wb") as out:
                out.write(real.read_bytes())
            shutil.copystat(real, model)

    def settle(self) -> None:
        """With a mount that answers."""
        if self._unsure is not None:
            self._settle(self._unsure)

    def rest(self) -> None:
        for fd in self._held or ():
            self._close(fd)
        self._held = None

    def _close(self, fd: int) -> None:
        """One that may not be there: -1."""
        if fd < 0:
            return
        try:
            os.close(fd)
        except OSError as error:
            self.errors[errno.errorcode[error.errno or errno.EIO]] += 1

    def broken(self, top: Path) -> list[str]:
        real, model = tree(top / self.real.name), tree(self.model)
        return [
            f"{top.name}/{self.real.name}/{path}: {real.get(path)}"
            f" for {model.get(path)}"
            for path in sorted(real.keys() | model.keys())
            if real.get(path) != model.get(path)
        ]

    # -- choosing ------------------------------------------------------------------

    def _paths(self) -> tuple[list[str], list[str]]:
        directories, files = [""], []
        for base, below, names in os.walk(self.model):
            at = os.path.relpath(base, self.model)
            at = "" if at == "." else f"{at}/"
            directories += [f"{at}{name}" for name in below]
            files += [f"{at}{n}" for n in names if not Path(base, n).is_symlink()]
        files = [path for path in files if path != HELD]
        return sorted(directories), sorted(files)

    def _new(self) -> str:
        directories, _ = self._paths()
        at = self.chance.choice([d for d in directories if d.count("/") < 3])
        name = self.chance.choice(self.NAMES)
        return f"{at}/{name}" if at else name

    def _any(self) -> str:
        directories, files = self._paths()
        return self.chance.choice([*directories[1:], *files] or [self._new()])

    def _file(self) -> str:
        _, files = self._paths()
        return self.chance.choice(files or [self._new()])

    def _data(self) -> bytes:
        size = self.chance.choice((0, 1, 100, 4096, 5000, 33_000, 70_000, 300_000))
        return self.chance.randbytes(size)

    # -- calls that write data -----------------------------------------------------

    def _writing(self, path: str, flags: int, data: bytes, at: int = 0) -> Call | None:
        model = self.model / path
        if not self._can_write(model):
            return None
        synced = self.chance.random() < 0.3

        def do(top: Path) -> None:
            fd = os.open(top / path, flags | os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                done = 0
                while done < len(data):
                    done += os.pwrite(fd, data[done : done + 150_000], at + done)
                if synced:
                    os.fsync(fd)
            finally:
                os.close(fd)

        return Call("write", do, (path,), in_parts=True)

    def _can_write(self, model: Path) -> bool:
        if model.is_symlink() or model.is_dir() or not model.parent.is_dir():
            return False
        if not model.exists():
            return sum(map(len, self._paths())) < MOST_NAMES
        return model.stat().st_size < MOST_BYTES

    def _write(self) -> Call | None:
        path = self._new() if self.chance.random() < 0.6 else self._file()
        return self._writing(path, os.O_TRUNC, self._data())

    def _big(self) -> Call | None:
        data = self.chance.randbytes(1000) * self.chance.randrange(2500)
        return self._writing("big", os.O_TRUNC, data)

    def _append(self) -> Call | None:
        return self._writing(self._file(), os.O_APPEND, self._data())

    def _patch(self) -> Call | None:
        path = self._file()
        model = self.model / path
        size = model.stat().st_size if model.is_file() else 0
        at = self.chance.randrange(size + 5000)
        return self._writing(path, 0, self._data()[:5000], at)

    def _replace(self) -> Call | None:
        """Written aside, and renamed over it by the next call."""
        path = self._file()
        if not self._can_write(self.model / path):
            return None
        new = f"{path}~"
        self._then = Call(
            "replace", lambda top: os.rename(top / new, top / path), (new, path)
        )
        return self._writing(new, os.O_TRUNC, self._data())

    def _keep(self) -> Call:
        """A file that stays open."""
        flags = os.O_RDWR | os.O_CREAT
        if self._held is None:
            self._held = (
                os.open(self.real / HELD, flags, 0o644),
                os.open(self.model / HELD, flags, 0o644),
            )
        data, at = self._data(), self.chance.randrange(500_000)
        kind = self.chance.randrange(4)

        def do(top: Path) -> object:
            if self._held is None:
                fd = os.open(top / HELD, flags)
            else:
                fd = os.dup(self._held[top == self.model])
            try:
                if kind == 0:
                    return hashlib.sha256(os.pread(fd, 900_000, 0)).digest()
                if kind == 1:
                    os.ftruncate(fd, at)
                    return at
                return os.pwrite(fd, data, at)
            finally:
                os.close(fd)

        return Call("keep", do, (HELD,), in_parts=True)

    def _copy(self) -> Call | None:
        path, target = self._file(), self._new()
        model = self.model / path
        if not model.is_file() or not self._can_write(self.model / target):
            return None
        if (self.model / target).exists() or model.stat().st_size == 0:
            return None

        def do(top: Path) -> None:
            with (top / path).open("rb") as source, (top / target).open("wb") as out:
                while os.copy_file_range(source.fileno(), out.fileno(), 1 << 30):
                    pass

        return Call("copy", do, (target,), in_parts=True)

    def _punch(self) -> Call | None:
        path = self._file()
        if not (self.model / path).is_file():
            return None
        at, length = self.chance.randrange(100_000), self.chance.randrange(1, 90_000)

        def do(top: Path) -> None:
            fd = os.open(top / path, os.O_WRONLY)
            try:
                libc.fallocate(fd, libc.PUNCH_HOLE | libc.KEEP_SIZE, at, length)
            finally:
                os.close(fd)

        return Call("punch", do, (path,), in_parts=True)

    def _truncate(self) -> Call | None:
        path = self._file()
        size = self.chance.choice((0, 1, 5000, 100_000, 400_000))
        return Call("truncate", lambda top: os.truncate(top / path, size), (path,))

    # -- calls that read -----------------------------------------------------------

    def _read(self) -> Call | None:
        path = self._file()

        def do(top: Path) -> bytes:
            return hashlib.sha256((top / path).read_bytes()).digest()

        return Call("read", do, ())

    # -- calls on names and attributes ---------------------------------------------

    def _rename(self) -> Call:
        old, new = self._any(), self._new()
        return Call("rename", lambda top: os.rename(top / old, top / new), (old, new))

    def _exchange(self) -> Call:
        choose = self.chance.choice((self._file, self._any))
        old, new = choose(), choose()

        def do(top: Path) -> None:
            paths = os.fsencode(top / old), os.fsencode(top / new)
            libc.renameat2(*paths, libc.RENAME_EXCHANGE)

        return Call("exchange", do, (old, new))

    def _unlink(self) -> Call:
        path = self._file()
        return Call("unlink", lambda top: os.unlink(top / path), (path,))

    def _mkdir(self) -> Call | None:
        path = self._new()
        if sum(map(len, self._paths())) >= MOST_NAMES:
            return None
        return Call("mkdir", lambda top: os.mkdir(top / path), (path,))

    def _rmdir(self) -> Call:
        path = self._any()
        return Call("rmdir", lambda top: os.rmdir(top / path), (path,))

    def _link(self) -> Call:
        old, new = self._file(), self._new()
        return Call("link", lambda top: os.link(top / old, top / new), (old, new))

    def _symlink(self) -> Call:
        path, target = self._new(), f"to-{self.chance.randrange(100)}"
        return Call("symlink", lambda top: os.symlink(target, top / path), (path,))

    def _chmod(self) -> Call:
        path, mode = self._any(), self.chance.choice((0o600, 0o640, 0o755))
        return Call("chmod", lambda top: os.chmod(top / path, mode), (path,))

    def _utime(self) -> Call:
        path, ns = self._any(), self.chance.randrange(10**18)
        return Call("utime", lambda top: os.utime(top / path, ns=(ns, ns)), (path,))

    def _setxattr(self) -> Call:
        path, value = self._any(), self.chance.randbytes(20)
        name = self.chance.choice(("user.x", "user.y"))
        return Call(
            "setxattr", lambda top: os.setxattr(top / path, name, value), (path,)
        )

    def _removexattr(self) -> Call:
        path, name = self._any(), self.chance.choice(("user.x", "user.y"))
        return Call(
            "removexattr", lambda top: os.removexattr(top / path, name), (path,)
        )


def outcome(call: Call, top: Path) -> tuple[int, object]:
    """Its errno, or 0 and what it returned."""
    try:
        return 0, call.do(top)
    except OSError as error:
        return error.errno or errno.EIO, None


def exists(path: Path) -> bool:
    """Raises the OSError of a mount that does not answer."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def look(top: Path, path: str) -> dict[str, Look]:
    """What is at a path and below it."""
    where = top / path
    if not exists(where):
        return {}
    found = {"": _one(where)}
    return found | tree(where) if stat.S_ISDIR(where.lstat().st_mode) else found


def tree(top: Path) -> dict[str, Look]:
    """What is below a directory."""
    found: dict[str, Look] = {}

    def fail(error: OSError) -> None:
        raise error

    for base, directories, files in os.walk(top, onerror=fail):
        for name in [*directories, *files]:
            path = Path(base, name)
            found[str(path.relative_to(top))] = _one(path)
    return found


def _one(path: Path) -> Look:
    st = path.lstat()
    attributes = {
        n: os.getxattr(path, n, follow_symlinks=False)
        for n in os.listxattr(path, follow_symlinks=False)
    }
    attributed = tuple(sorted(attributes.items()))
    if stat.S_ISLNK(st.st_mode):
        return "link", os.readlink(path), attributed
    if not stat.S_ISREG(st.st_mode):
        return oct(st.st_mode), attributed
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return oct(st.st_mode), st.st_nlink, st.st_size, digest, attributed
