"""git(1) on a repository of each machine."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.chaos.programs import Program
from tests.chaos.weather import Weather
from tests.lib import commands
from tests.lib.cluster import clean_environment

ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    **{f"GIT_{who}_NAME": "a" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "a@b" for who in ("AUTHOR", "COMMITTER")},
    "GIT_OPTIONAL_LOCKS": "0",
}
_GONE = (errno.ENOTCONN, errno.ENOENT, errno.ECONNABORTED, errno.EIO, errno.ENOSPC)


class Git(Program):
    """Commits to a repository of this machine, packed now and then; those of other
    machines are looked at."""

    label = "git"
    pause_s = 0.3
    EXCUSES = (
        *("No route to host", "timed out", "not connected", "o space left"),
        *("nput/output error", "connection abort", "No locks available"),
    )

    def __init__(self, name: str, top: Path, weather: Weather, seed: object) -> None:
        super().__init__(name, top, weather, seed)
        self.repository = top / f"git-{name}"
        self.number = 0
        self.committed: set[int] = set()

    def _git(self, *words: str, where: Path | None = None) -> tuple[int, str, str]:
        done = commands.run(
            ["git", "-C", str(where or self.repository), *words],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=clean_environment(**ENVIRONMENT),
            errors="replace",
        )
        return done.returncode, done.stdout, done.stderr

    def _must(self, began_s: float, *words: str, where: Path | None = None) -> bool:
        code, out, said = self._git(*words, where=where)
        if not code:
            return True
        self.errors[f"{words[0]} {code} {said[-60:]!r}"] += 1
        os.stat(self.top / "shared")  # of this mount
        excused = any(self.weather.excuses(self.name, e, began_s) for e in _GONE)
        excused |= code == -signal.SIGBUS  # bytes of a pack are out of reach
        if not excused and not any(word in said for word in self.EXCUSES):
            self.complain(
                f"{words} {where}: {code} {out[-300:]} {said[-900:]}"
                f" while {self.weather.report(began_s)}"
            )
        for lock in self.repository.glob(".git/**/*.lock"):
            lock.unlink()
        return False

    def step(self) -> None:
        began_s = time.monotonic()
        os.stat(self.top / "shared")
        if not (self.repository / ".git/HEAD").exists():
            self.repository.mkdir(exist_ok=True)
            self._must(began_s, "init", "-q", "-b", "main")
            return
        dice = self.chance.random()
        if dice < 0.1:
            self._must(began_s, "gc", "-q", "--prune=now")
        elif dice < 0.2:
            self._must(began_s, "fsck", "--full")
        elif dice < 0.3:
            others = [
                p
                for p in self.top.glob("git-*")
                if (p / ".git/refs/heads/main").exists()
            ]
            if others:
                where = self.chance.choice(others)
                self._must(began_s, "log", "--stat", "-n", "30", "main", where=where)
        elif dice < 0.4:
            self._must(began_s, "status", "--porcelain")
        else:
            self._commit(began_s)

    def _commit(self, began_s: float) -> None:
        self.number += 1
        for _ in range(self.chance.choice((1, 3, 8))):
            at = self.repository / f"d{self.chance.randrange(4)}"
            at.mkdir(exist_ok=True)
            path = at / f"f{self.chance.randrange(12)}"
            if self.chance.random() < 0.2:
                path.unlink(missing_ok=True)
            else:
                size = self.chance.choice((10, 500, 9000, 80_000))
                path.write_bytes(self.chance.randbytes(size))
        (self.repository / "number").write_text(str(self.number))
        if not self._must(began_s, "add", "-A"):
            return
        if self._must(began_s, "commit", "-q", "-m", str(self.number)):
            self.committed.add(self.number)

    def broken(self, top: Path) -> list[str]:
        where = top / self.repository.name
        if not (where / ".git/HEAD").exists():
            return [f"{where} is gone"] if self.committed else []
        problems = []
        code, out, said = self._git("fsck", "--full", where=where)
        if code:
            problems.append(f"{where}: fsck {code} {out[-500:]} {said[-900:]}")
        if not self.committed:
            return problems
        code, out, said = self._git("log", "--format=%s", "main", where=where)
        if code:
            problems.append(f"{where}: log {code} {said[-900:]}")
        if missing := sorted(self.committed - {int(n) for n in out.split()}):
            problems.append(f"{where}: commits lost: {missing[:9]}")
        return problems
