"""One interruption after the other of one store, and what is left after each.

    worker, node, both   kill -9; the supervisor starts them anew, the workload goes on
    all                  kill -9 of the supervisor, too; mounted again
    cut                  the power fails: everything written is there
    torn                 the power fails, and the disk had only what was synced

After each: what was synced is there, no file is torn, and `dfs fsck` is content.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from fusefs.mountpoint import nodes
from tests.crash import powercut
from tests.crash.promises import Promises
from tests.lib.cluster import Node, clean_environment, dfs, wait_until
from tests.lib.collected import Collected

KINDS = ("worker", "node", "both", "all", "cut", "torn")
KEPT_ROUNDS = 3
"""Directories of earlier rounds that are looked at again."""


class Running(Collected):
    """The workload's process."""

    def __init__(self, top: Path, seed: int) -> None:
        top.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.workload", str(top), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(),
            text=True,
        )
        super().__init__(process)

    def wait_for(self, more: int) -> None:
        """It has said so many lines more, or ended."""
        wanted = len(self.lines) + more
        wait_until(
            lambda: len(self.lines) >= wanted or self.process.poll() is not None,
            "the workload goes on",
        )

    def only_loose(self) -> None:
        """From now on it syncs nothing."""
        assert self.process.stdin is not None
        self.process.stdin.write("loose\n")
        self.process.stdin.flush()
        wait_until(
            lambda: "synced everything 0\n" in self.lines, "the workload syncs no more"
        )

    def kill(self) -> tuple[Promises, str]:
        """What it was promised, and what it complained about before."""
        self.process.kill()
        self.reader.join(30)
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.wait(30)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return Promises(line for line in self.lines if line.endswith("\n")), said


class Rounds:
    """The history of one store. `run` returns what does not hold after a round."""

    def __init__(self, node: Node, seed: int = 0) -> None:
        self.node = node
        self.seed = seed
        self.done = 0
        self.promises = 0
        self.torn = 0
        self._kept: dict[str, tuple[Promises, str]] = {}

    def run(self, kind: str) -> list[str]:
        """Interrupts a workload in the way of `kind`, then checks everything."""
        chance = random.Random(f"{self.seed} {self.done} {kind}")
        name = f"round-{self.done}"
        self.done += 1
        work = Running(self.node.mnt / name, chance.randrange(1 << 30))
        interrupt: Callable[[Running, random.Random], None]
        interrupt = getattr(self, f"_{kind}", None) or self._restarted(kind)
        try:
            work.wait_for(chance.randint(20, 300))
            interrupt(work, chance)
        finally:
            promises, complaint = work.kill()
        self.promises += sum(line.startswith("synced") for line in work.lines)
        goes_on = kind in ("worker", "node", "both")
        problems = [f"the workload: {complaint}"] if goes_on and complaint else []
        if not goes_on:
            self.node.mount()
        self._kept[name] = promises, kind
        return problems + self._look() + self._fsck()

    # -- interruptions ---------------------------------------------------------

    def _restarted(self, kind: str) -> Callable[[Running, random.Random], None]:
        """Worker, node or both die, and are replaced while the workload goes on."""

        def interrupt(work: Running, chance: random.Random) -> None:
            before = self.node.processes()
            assert before is not None
            if kind != "node":
                os.kill(before.worker, signal.SIGKILL)
            if kind != "worker":
                os.kill(before.node, signal.SIGKILL)
            work.wait_for(20)
            wait_until(self._is_whole, "both processes run")

        return interrupt

    def _is_whole(self) -> bool:
        now = self.node.processes()
        return now is not None and now.worker_ready and now.node_ready

    def _all(self, work: Running, chance: random.Random) -> None:
        pids = self._pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            assert nodes.wait_gone(pid, 30)

    def _cut(self, work: Running, chance: random.Random) -> None:
        aside = self.node.store.with_suffix(".cut")
        with self._frozen(work):
            powercut.copy(self.node.store, aside)
            work.process.kill()
        self._restore(aside)

    def _torn(self, work: Running, chance: random.Random) -> None:
        earlier, aside = (self.node.store.with_suffix(s) for s in (".old", ".cut"))
        work.only_loose()
        with self._frozen(work):
            powercut.copy(self.node.store, earlier)
        work.wait_for(chance.randint(5, 60))
        with self._frozen(work):
            powercut.copy(self.node.store, aside)
            work.process.kill()
        self.torn += powercut.tear(earlier, aside, chance)
        shutil.rmtree(earlier)
        self._restore(aside)

    def _frozen(self, work: Running) -> AbstractContextManager[None]:
        """Who asks before who answers: a process in a request does not stop."""
        now = self.node.processes()
        assert now is not None
        return powercut.frozen((work.process.pid, now.pid, now.worker, now.node))

    def _restore(self, copied: Path) -> None:
        """The copy is the store from here on."""
        self.node.destroy()
        shutil.rmtree(self.node.store)
        copied.rename(self.node.store)
        powercut.pretend_other_boot(self.node.store)

    def _pids(self) -> tuple[int, ...]:
        """The supervisor first: it starts others for those that die before it."""
        now = self.node.processes()
        return tuple(filter(None, (now.pid, now.worker, now.node))) if now else ()

    # -- what is left ------------------------------------------------------------

    def _look(self) -> list[str]:
        """Through the mount, this round's directory and the last ones'."""
        problems = []
        for name, (promises, kind) in self._kept.items():
            found = promises.broken(self.node.mnt / name, lost=kind == "torn")
            problems += [f"{name}: {problem}" for problem in found]
            if kind == "torn":
                self._remove_loose(name)
        while len(self._kept) > KEPT_ROUNDS:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            shutil.rmtree(self.node.mnt / oldest)
        return problems

    def _fsck(self) -> list[str]:
        """Stops the node, checks the store, starts it again."""
        self.node.stop()
        done = dfs("fsck", "--store", str(self.node.store), "--json", check=False)
        found = json.loads(done.stdout)["problems"] if done.stdout else [done.stderr]
        self.node.mount()
        return [f"fsck: {p}" for p in found]

    def _remove_loose(self, name: str) -> None:
        """Nobody synced them, and the disk lost them: only removing is left. Emptied
        before, because what a removed file was is remembered for a while."""
        for path in (self.node.mnt / name).glob("loose-*"):
            os.truncate(path, 0)
            path.unlink()
