"""Kills the worker of a node, again and again, while programs use the mount."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from fusefs.supervisor.child import STEADY_S
from tests.kills.programs import (
    Copying,
    Database,
    Following,
    Naming,
    Probe,
    Untarring,
)
from tests.lib.cluster import Node, wait_until


class Rounds:
    """The programs on one mount. `run` is one kill; `end` the last check."""

    def __init__(self, node: Node, aside: Path, seed: int = 0) -> None:
        self.node = node
        self.longest_ms: list[float] = []
        self._chance = random.Random(seed)
        self._copying = Copying(node.mnt / "cp", aside)
        self._untarring = Untarring(node.mnt / "tar", aside)
        self._naming = Naming(node.mnt / "names")
        self._database = Database(node.mnt / "sqlite")
        self._following = Following(node.mnt / "tail")
        self._probe = Probe(node.mnt / "probe")
        self._killed_s = 0.0

    def run(self, *, patient: bool = True) -> list[str]:
        """One kill; what went wrong. `patient`: not before the supervisor takes the
        last worker for a healthy one, after which it would wait before the next."""
        repeated = (self._copying, self._untarring, self._naming)
        if (
            patient
            and (rest_s := self._killed_s + STEADY_S + 0.5 - time.monotonic()) > 0
        ):
            time.sleep(rest_s)
        self._copying.freshen(len(self.longest_ms))
        self._probe.longest()
        for program in repeated:
            program.start()
        time.sleep(self._chance.uniform(0.05, 1.5))
        self._kill()
        for program in repeated:
            program.stop()
        longest_ms, problems = self._probe.longest()
        self.longest_ms.append(longest_ms)
        problems += self._database.problems() + self._following.problems()
        for program in repeated:
            problems += program.problems
            program.problems = []
        return problems

    def _kill(self) -> None:
        pid = self.node.worker_pid()
        os.kill(pid, signal.SIGKILL)
        self._killed_s = time.monotonic()

        def is_back() -> bool:
            now = self.node.processes()
            return now is not None and now.worker != pid and now.worker_ready

        wait_until(is_back, "another worker serves")

    def end(self) -> list[str]:
        """Ends all programs; what does not hold at the end."""
        return self._database.end() + self._following.end() + self._probe.end()
