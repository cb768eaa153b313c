"""The machines of a run: a node, its line, and the programs that work on its mount."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fusefs.mountpoint import nodes
from tests.chaos.git import Git
from tests.chaos.programs import Database, Logging, Program, Saving, Shared
from tests.chaos.thorough import Thorough
from tests.chaos.weather import Weather
from tests.lib.cluster import ROOT, Cluster, Node, dfs
from tests.lib.netns import Host, Network

COMMON = ("--replicas=2", "-o", "mass_delete=0")
SETTINGS = (("--dirty-size=1M",), ("--cache-size=3M",), (), ("-o", "sync=all"))
"""Of the first machines, beside those."""
SMALL_DISK_BYTES = 1600 << 20
"""What was replaced in a storm is on it for some minutes."""
DIRECTORIES = ("shared", "logs", "saved")
AGAIN_S = 0.5
"""From one attempt to mount to the next, while the disk has no room."""
END_S = 120.0
"""For one step of a program: a command that mounts again may be in its way."""


class Machine:
    """`life` is held by who mounts, unmounts, stops or kills it. `shim`: makes its
    clock wrong (`tests/lib/clock.c`)."""

    def __init__(self, node: Node, host: Host, shim: Path) -> None:
        self.node, self.host = node, host
        self.name = node.name
        self._clock = shim.with_name(f"clock-{self.name}")
        self.set_clock(0)
        paths = {"LD_PRELOAD": str(shim), "CLOCK_SHIFT": str(self._clock)}
        node.environment = paths
        self.life = threading.Lock()
        self.programs: list[Program] = []
        self.small = False

    def begin(self, weather: Weather, aside: Path, seed: object) -> None:
        """Its programs, not started yet."""
        top = self.node.mnt
        (top / f"own-{self.name}").mkdir()
        (top / f"db-{self.name}").mkdir()
        for name in DIRECTORIES:
            (top / name).mkdir(exist_ok=True)
        for log in range(Logging.LOGS):  # else each side of a cut line makes its own
            (top / f"logs/log-{log}").touch()
        self.programs = [
            Thorough(self.name, top, weather, seed, aside),
            Shared(self.name, top / "shared", weather, seed),
            Logging(self.name, top / "logs", weather, seed),
            Saving(self.name, top / "saved", weather, seed),
            Database(self.name, top, weather, seed),
            Git(self.name, top, weather, seed),
        ]

    def set_clock(self, wrong_s: int) -> None:
        """At once, and for what is started later."""
        with open(self._clock, "r+b" if self._clock.exists() else "wb") as file:
            file.write(struct.pack("=q", wrong_s))

    def mount(self, weather: Weather) -> None:
        """Again and again while its disk has no room."""
        while True:
            began_s = time.monotonic()
            try:
                self.node.mount()
            except pytest.fail.Exception:
                if not weather.excuses(self.name, errno.ENOSPC, began_s):
                    raise
                time.sleep(AGAIN_S)
            else:
                return

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No program runs, and none has a file open."""
        with ExitStack() as gates:
            for program in self.programs:
                gates.enter_context(program.gate)
                program.rest()
            yield

    def kill(self, *which: str) -> None:
        """SIGKILL to worker, node or supervisor. That one is gone then; what is left of
        a worker the kernel may hold until the mount is ended."""
        for number, pid in enumerate(self.pids(*which)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            if "supervisor" in which and not number:
                assert nodes.wait_gone(pid, END_S)

    def pids(self, *which: str) -> list[int]:
        """The supervisor first: it starts others for those that end before it."""
        now = self.node.processes()
        if now is None:
            return []
        found = {"supervisor": now.pid, "worker": now.worker, "node": now.node}
        return [found[name] for name in found if name in which and found[name]]

    def is_whole(self) -> bool:
        now = self.node.processes()
        return now is not None and now.worker_ready and now.node_ready


class Machines:
    """Those of one run. The first founds the cluster, and has hardly any memory for
    what is written; the second evicts what others keep as soon as it can; the third has
    its store on a small disk; the fourth waits for peers after every change."""

    def __init__(
        self, made: Cluster, net: Network, weather: Weather, seed: object
    ) -> None:
        self.made, self.net, self.weather, self.seed = made, net, weather, seed
        self.all: list[Machine] = []
        self._shim = made.base / "clock.so"
        source = str(ROOT / "tests/lib/clock.c")
        words = ["cc", "-shared", "-fPIC", "-o", str(self._shim), source, "-ldl"]
        subprocess.run(words, check=True)
        self._disks: list[Path] = []

    def add(self, name: str = "") -> Machine:
        host = self.net.add()
        node = self.made.add(name, host)
        machine = Machine(node, host, self._shim)
        number = len(self.all)
        node.settings = (*COMMON, *(SETTINGS[number] if number < len(SETTINGS) else ()))
        if number == 2:
            machine.small = self._small_disk(node)
        node.mount(token=self.all[0].node.token() if self.all else "")
        self.all.append(machine)
        return machine

    def _small_disk(self, node: Node) -> bool:
        """A file with a file system of its own, mounted where the store will be."""
        image = self.made.base / f"{node.name}.img"
        with image.open("wb") as out:
            out.truncate(SMALL_DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        node.store.mkdir()
        words = ["mount", "-o", "loop", str(image), str(node.store)]
        if subprocess.run(words, capture_output=True).returncode:
            return False
        os.rmdir(node.store / "lost+found")
        self._disks.append(node.store)
        node.settings = (*node.settings, "--min-free=8M")
        self.weather.small_disks[node.name] = node.store
        return True

    def begin(self, machine: Machine) -> None:
        """Its programs, not started yet."""
        machine.begin(self.weather, self.made.base / "aside", self.seed)

    def programs(self) -> Iterator[Program]:
        for machine in self.all:
            yield from machine.programs

    def leave(self, machine: Machine) -> None:
        """For good: unmounted, forgotten, its store and what it made deleted."""
        machine.node.umount()
        machine.node.fsck()
        self.all.remove(machine)
        self.made.nodes.remove(machine.node)
        shutil.rmtree(machine.node.store)
        first = self.all[0].node
        dfs("forget", machine.name, "--store", str(first.store))
        for name in (f"own-{machine.name}", f"db-{machine.name}"):
            shutil.rmtree(first.mnt / name)
        shutil.rmtree(first.mnt / f"git-{machine.name}", ignore_errors=True)

    def release(self) -> None:
        """The small disks, when their nodes have ended and were checked."""
        for store in self._disks:
            subprocess.run(["umount", "-l", str(store)], check=False)

    def with_small_disk(self) -> list[Machine]:
        return [machine for machine in self.all if machine.small]


FAR = (errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.ENOLCK, errno.EFAULT)
"""What programs get while a peer that has, or decides about, something is away; EFAULT
stands for SIGBUS."""
GONE = (errno.ENOTCONN, errno.ENOENT, errno.ECONNABORTED, errno.EBADF, errno.EIO)
"""What they get of a mount that ended under them."""
FULL = (errno.ENOSPC,)
