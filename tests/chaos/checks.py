"""What must hold on all machines once everything has healed."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from fusefs.nodelink import control
from tests.chaos.machines import Machine, Machines
from tests.chaos.mirrored import tree
from tests.lib import commands
from tests.lib.cluster import dfs, wait_until

TREES_S = 8.0
"""So long trees may differ although all registers are equal: what was there to tell to
a kernel is being told."""
AGAIN_S = 150.0
"""From a mount to copies that are where they should be."""
TOLD = ("state", "sync", "to_replicate", "rebalances", "digest")
MOST_KIB = 250 << 10
MOST_DESCRIPTORS = 400
"""Of which objects that are kept open are 256."""


def in_sync(machines: Machines) -> bool:
    """Every node says so, is connected to all others, and owes nobody a copy."""
    digests = set()
    for machine in machines.all:
        try:
            said = machine.node.ask("status")
            digests.add(machine.node.digest())
        except (control.NotRunning, control.Refused, TimeoutError):
            return False
        if said["sync"] != "in sync" or said["to_replicate"] or said["rebalances"]:
            return False
        if len(machine.node.connected()) < len(machines.all) - 1:
            return False
    return len(digests) == 1


def statuses(machines: Machines) -> list[str]:
    """For people, when it is not so."""
    out = []
    for machine in machines.all:
        if machine.node.processes() is None:
            out.append(f"{machine.name} does not run")
            continue
        said = machine.node.status()
        peers = said.get("peers")
        assert isinstance(peers, list | None)
        known = [(p["name"], p["connected"], p.get("lag")) for p in peers or []]
        what = {k: said.get(k) for k in TOLD}
        out.append(f"{machine.name}: {what} {known}")
    return out


def all_of(machines: Machines) -> list[str]:
    problems = equal_trees(machines)
    for program in machines.programs():
        for machine in machines.all:
            problems += program.broken(machine.node.mnt)
    problems += conflicts(machines)
    for machine in machines.all:
        problems += healthy(machine)
        problems += processes(machine)
    return problems


def spared(machines: Machines) -> list[str]:
    """Each machine may go: the others have all bytes, without what is only cache."""
    wanted = whole(machines.all[0].node.mnt)
    problems = []
    for one in machines.all:
        one.node.umount()
        for other in machines.all:
            if other is not one:
                dfs("evict", str(other.node.mnt))
        commands.run(["sh", "-c", "echo 3 >/proc/sys/vm/drop_caches"], check=True)
        problems += [
            f"without {one.name} {other.name} lacks {path}"
            for other in machines.all
            if other is not one
            for path in unreadable(other.node.mnt)
        ]
        one.node.mount()
        if whole(one.node.mnt) != wanted:
            problems.append(f"{one.name} mounted again shows something else")
        wait_until(lambda: in_sync(machines), "all are in sync again", AGAIN_S)
    return problems


def unreadable(top: Path) -> list[str]:
    """Files whose bytes cannot be had."""
    found = []
    for path in sorted(top.rglob("*")):
        if not stat.S_ISREG(path.lstat().st_mode):
            continue
        try:
            path.read_bytes()
        except OSError as error:
            found.append(f"{path}: {error!r}")
    return found[:5]


def equal_trees(machines: Machines) -> list[str]:
    """Names, modes, links, sizes, extended attributes, times and every byte."""
    first, *others = machines.all
    until_s = time.monotonic() + TREES_S
    while True:
        trees = {m.name: whole(m.node.mnt) for m in machines.all}
        differing = [
            f"{path} is {trees[m.name].get(path)} on {m.name} and"
            f" {trees[first.name].get(path)} on {first.name}"
            for m in others
            for path in sorted(trees[first.name].keys() | trees[m.name].keys())
            if trees[first.name].get(path) != trees[m.name].get(path)
        ]
        if not differing or time.monotonic() > until_s:
            return differing[:20]


def whole(top: Path) -> dict[str, tuple[object, ...]]:
    """The tree with numbers and times."""
    found = tree(top)
    out = {}
    for path, seen in found.items():
        st = (top / path).lstat()
        out[path] = (*seen, st.st_ino, st.st_mtime_ns, st.st_nlink, st.st_uid)
    return out


def conflicts(machines: Machines) -> list[str]:
    """None but where several write the same names."""
    top = machines.all[0].node.mnt
    return [
        f"conflict in a place of one writer: {path}"
        for path in tree(top)
        if ".conflict-" in path and not path.startswith(("shared/", "lost+found/"))
    ]


def healthy(machine: Machine) -> list[str]:
    """What `dfs status` says."""
    said = machine.node.status()
    if said["state"] != "running" or said["sync"] != "in sync":
        return [f"{machine.name}: {said['state']}, {said['sync']}"]
    return []


def processes(machine: Machine) -> list[str]:
    """Memory and descriptors of a machine's three processes."""
    problems = []
    for name in ("supervisor", "worker", "node"):
        for pid in machine.pids(name):
            kib, descriptors = resident_kib(pid), len(os.listdir(f"/proc/{pid}/fd"))
            if kib > MOST_KIB or descriptors > MOST_DESCRIPTORS:
                problems.append(f"{machine.name}'s {name}: {kib} KiB, {descriptors} fd")
    return problems


def sizes(machine: Machine) -> str:
    """MiB, descriptors and threads, for the line of a storm."""
    found = []
    for name in ("supervisor", "worker", "node"):
        for pid in machine.pids(name):
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            threads = len(os.listdir(f"/proc/{pid}/task"))
            found.append(f"{resident_kib(pid) >> 10}M/{descriptors}/{threads}")
    return f"{machine.name} {' '.join(found)}"


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def logs(machines: Machines) -> list[str]:
    """Tracebacks and errors."""
    problems = []
    for machine in machines.all:
        for log in sorted((machine.node.store / "run").glob("*.log*")):
            lines = log.read_text(errors="replace").splitlines()
            for number, line in enumerate(lines):
                if "Traceback" in line or " ERROR " in line or " CRITICAL " in line:
                    text = "\n".join(lines[max(0, number - 2) : number + 40])
                    problems.append(f"{machine.name} {log.name}: {text}")
                    break
    return problems


def left_over(base: str) -> list[str]:
    """Processes of this run that have not ended."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{base}/".encode() in words:
                found.append(f"{process.name} {words[:300]!r}")
    return found
