"""Storms: programs and mischief for a while, then everything is healed and checked."""

from __future__ import annotations

import random
import re
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos import checks, mischief
from tests.chaos.machines import END_S, FAR, Machine, Machines
from tests.chaos.mirrored import Mirrored
from tests.chaos.weather import Weather
from tests.lib.cluster import cluster, wait_until
from tests.lib.commands import commands_apart
from tests.lib.netns import network

EVERY_S = 1.0
"""From one piece of mischief to the next, on average."""
HEALED_S = 150.0


class Storms:
    """The history of one cluster."""

    def __init__(self, machines: Machines, seed: object) -> None:
        self.machines, self.weather = machines, machines.weather
        self.chance = random.Random(f"storms {seed}")
        self.done = 0
        self.happened: list[str] = []
        self._problems: list[str] = []

    def run(self, for_s: float, guests: float = 0.0) -> list[str]:
        """One storm and what is wrong after it. `guests`: how probable it is that
        another member joins for it, and leaves the cluster when all is well."""
        self._problems, self.happened = [], []
        with self.weather.spell("storm", "", *FAR):
            for program in self.machines.programs():
                program.start()
            guest = self._guest() if self.chance.random() < guests else None
            self._rage(for_s)
            for program in self.machines.programs():
                program.stop(END_S)
        self.done += 1
        problems = self._problems + self._look()
        if guest is not None and not problems:
            self.machines.leave(guest)
        return problems

    def _guest(self) -> Machine:
        """A member for one storm."""
        guest = self.machines.add(f"G{self.done}")
        self.happened.append(f"{guest.name} joined")
        self.machines.begin(guest)
        for program in guest.programs:
            program.start()
        return guest

    # -- the storm ---------------------------------------------------------------------

    def _rage(self, for_s: float) -> None:
        began_s, running = time.monotonic(), []
        while (now_s := time.monotonic() - began_s) < for_s:
            kinds = self.chance.choice((mischief.LINES, mischief.LIVES))
            kind, one = self.chance.choice(kinds), self.chance.choice(self.machines.all)
            chance = random.Random(self.chance.random())
            work = threading.Thread(
                target=self._do, args=(kind, one, chance, now_s), daemon=True
            )
            work.start()
            running.append(work)
            time.sleep(self.chance.expovariate(1 / EVERY_S))
        for work in running:
            work.join(END_S)
            if work.is_alive():
                self._problems.append("mischief does not end")

    def _do(
        self, kind: mischief.Mischief, one: Machine, chance: random.Random, now_s: float
    ) -> None:
        is_life = kind in mischief.LIVES
        if is_life and not one.life.acquire(blocking=False):
            return
        self.happened.append(f"{now_s:.1f} {kind.__name__} {one.name}")
        try:
            kind(self.machines, one, chance)
        except BaseException:  # what pytest.fail raises is no Exception
            said = traceback.format_exc()
            self._problems.append(f"{kind.__name__} {one.name}: {said}")
        finally:
            if is_life:
                one.life.release()

    # -- after it ----------------------------------------------------------------------

    def _look(self) -> list[str]:
        problems = []
        for program in self.machines.programs():
            problems += program.problems
            program.problems = []
        try:
            self.healed_s = wait_until(self._is_healed, "all are in sync", HEALED_S)
            for program in self.machines.programs():
                if isinstance(program, Mirrored):
                    program.settle()
                    problems += program.problems
            problems += checks.all_of(self.machines)
            if not problems:
                problems += checks.spared(self.machines)
        except BaseException:  # as above
            problems.append(traceback.format_exc())
            problems += checks.statuses(self.machines)
        return problems

    def _is_healed(self) -> bool:
        return checks.in_sync(self.machines)

    def end(self) -> list[str]:
        """What the logs say, and what the stores are, when all have ended."""
        return checks.logs(self.machines)


@contextmanager
def storms(base: Path, nodes: int, seed: object) -> Iterator[Storms]:
    """A cluster that is connected, and its first storm not begun."""
    weather = Weather()
    with commands_apart(), network() as net, cluster(base) as made:
        machines = Machines(made, net, weather, seed)
        try:
            for _ in range(nodes):
                machines.add()
            made.wait_connected()
            for machine in machines.all:
                machines.begin(machine)
            made.wait_equal()
            yield Storms(machines, seed)
            made.close(fsck=True)
        except BaseException:
            made.close(fsck=False)
            raise
        finally:
            for node in made.nodes:
                node.destroy()
            machines.release()
            made.nodes.clear()
    left = checks.left_over(str(base))
    assert not left, left


def names(happened: list[str]) -> str:
    return re.sub(r"[\d.]+ ", "", ", ".join(happened))
