"""What happens to machines and lines. Each function does one thing, waits, undoes it.

Those that take a machine's life in hand are told apart by `LIVES`: of one machine only
one of them goes on at a time, beside any number of cut lines.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.chaos.machines import FULL, GONE, Machine, Machines
from tests.chaos.weather import AGAIN
from tests.lib import commands
from tests.lib.cluster import dfs, wait_until

WRITTEN_BYTES = 8 << 20
"""Of what fills a disk; the rest is only reserved."""

Mischief = Callable[[Machines, Machine, random.Random], None]


def cut(all: Machines, one: Machine, chance: random.Random) -> None:
    """A machine is alone."""
    with all.weather.spell("cut", one.name):
        one.host.cut()
        time.sleep(chance.choice((0.5, 2, 5, 9)))
        one.host.heal(all.net)


def cut_line(all: Machines, one: Machine, chance: random.Random) -> None:
    """Two machines do not reach each other, or one the other: others reach both."""
    other = chance.choice([m for m in all.all if m is not one])
    both = chance.random() < 0.6
    with all.weather.spell(f"{'line' if both else 'one way'} cut to {other.name}", ""):
        one.host.cut_towards(other.host)
        if both:
            other.host.cut_towards(one.host)
        time.sleep(chance.choice((0.5, 2, 5, 9, 14)))
        one.host.heal_towards(other.host)
        other.host.heal_towards(one.host)


def slow_line(all: Machines, one: Machine, chance: random.Random) -> None:
    """What comes faster waits, and is lost."""
    kbit_s = chance.choice((200, 1000, 8000))
    with all.weather.spell(f"{kbit_s} kbit/s", one.name):
        one.host.narrow(kbit_s)
        time.sleep(chance.choice((2, 5, 9, 14)))
        one.host.widen()


def clock(all: Machines, one: Machine, chance: random.Random) -> None:
    """It is wrong for a while, and not quite right after it. Never five minutes ahead
    of any other: what is written then is left out until all have come so far."""
    wrong_s = chance.choice((-3600, -3600, -130, -7, 3, 130))
    with all.weather.spell(f"clock wrong by {wrong_s} s", one.name):
        one.set_clock(wrong_s)
        time.sleep(chance.choice((0.5, 2, 5, 9)))
        one.set_clock(chance.choice((-60, 0, 0, 60)))


def kill_worker(all: Machines, one: Machine, chance: random.Random) -> None:
    # A write in flight in that moment may be EIO.
    with all.weather.spell("worker killed", one.name, errno.EIO, AGAIN):
        _kill(one, "worker")


def kill_node(all: Machines, one: Machine, chance: random.Random) -> None:
    with all.weather.spell("node killed", one.name):
        _kill(one, "node")


def kill_both(all: Machines, one: Machine, chance: random.Random) -> None:
    with all.weather.spell("both killed", one.name, errno.EIO, AGAIN):
        _kill(one, "node", "worker")


def _kill(one: Machine, *which: str) -> None:
    one.kill(*which)
    wait_until(one.is_whole, f"{one.name} runs again")


def kill_all(all: Machines, one: Machine, chance: random.Random) -> None:
    """The supervisor, too, under the programs. They are not waited for: the kernel may
    hold what is left of the worker, and with it their calls, until it is mounted."""
    with all.weather.spell("all killed", one.name, *GONE):
        one.kill("supervisor", "worker", "node")
        time.sleep(chance.choice((0, 0, 1, 4)))
        one.mount(all.weather)


def abort(all: Machines, one: Machine, chance: random.Random) -> None:
    with all.weather.spell("umount --force", one.name, *GONE):
        dfs("umount", "--force", str(one.node.mnt))
        with one.quiet():
            one.mount(all.weather)


def detach(all: Machines, one: Machine, chance: random.Random) -> None:
    """Unmounted while it is in use; the node ends with the last file."""
    with all.weather.spell("umount --lazy", one.name, *GONE):
        dfs("umount", "-l", str(one.node.mnt))
        time.sleep(chance.choice((0, 1)))
        with one.quiet():
            one.mount(all.weather)


def remount(all: Machines, one: Machine, chance: random.Random) -> None:
    with one.quiet(), all.weather.spell("unmounted", one.name):
        one.node.umount()
        time.sleep(chance.choice((0, 0, 2, 6)))
        one.mount(all.weather)


def check(all: Machines, one: Machine, chance: random.Random) -> None:
    """`dfs fsck`, in the middle of everything."""
    with one.quiet(), all.weather.spell("fsck", one.name):
        one.node.umount()
        try:
            one.node.fsck()
        finally:
            one.mount(all.weather)


def upgrade(all: Machines, one: Machine, chance: random.Random) -> None:
    with all.weather.spell("upgrade", one.name, AGAIN):
        dfs("upgrade", str(one.node.mnt))
        wait_until(one.is_whole, f"{one.name} runs again")


def stop_worker(all: Machines, one: Machine, chance: random.Random) -> None:
    with all.weather.spell("worker stopped", one.name):
        _stop(one, chance.choice((0.2, 1, 3)), "worker")


def stop_node(all: Machines, one: Machine, chance: random.Random) -> None:
    with all.weather.spell("node stopped", one.name):
        _stop(one, chance.choice((0.2, 1, 3, 8)), "node")


def stop_all(all: Machines, one: Machine, chance: random.Random) -> None:
    """As a machine that sleeps."""
    with all.weather.spell("all stopped", one.name):
        which = ("supervisor", "worker", "node")
        _stop(one, chance.choice((1, 3, 8, 17)), *which)


def _stop(one: Machine, for_s: float, *which: str) -> None:
    """By another process: this one may wait, all threads of it, for who is stopped."""
    pids = " ".join(map(str, one.pids(*which)))
    script = f"kill -STOP {pids}; sleep {for_s}; kill -CONT {pids}"
    commands.run(["sh", "-c", script], check=False)


def fill(all: Machines, one: Machine, chance: random.Random) -> None:
    """The disk of a store has no room for a while, or not a byte."""
    small = all.with_small_disk()
    if not small:
        return
    one = chance.choice(small)
    keep = chance.choice((0, 1, 6, 8, 9, 12, 17)) << 20
    filler = one.node.store / f"filler-{chance.randrange(1 << 30)}"
    with all.weather.spell(f"disk full but for {keep}", one.name, *FULL):
        _reserve(filler, keep + WRITTEN_BYTES)
        for size in (1 << 20, 1 << 12):
            _fill(filler, size, keep)
        time.sleep(chance.choice((1, 4, 8)))
        filler.unlink()


def _reserve(filler: os.PathLike[str], keep: int) -> None:
    """Most of it at once, without writing."""
    with open(filler, "ab") as out, suppress(OSError):
        free = os.statvfs(filler)
        size = free.f_bavail * free.f_frsize - keep
        if size > 0:
            os.posix_fallocate(out.fileno(), 0, size)
            out.seek(0, os.SEEK_END)


def _fill(filler: os.PathLike[str], size: int, keep: int) -> None:
    with open(filler, "ab", buffering=0) as out:
        while True:
            free = os.statvfs(filler)
            if free.f_bavail * free.f_frsize < keep + size:
                return
            try:
                out.write(bytes(size))
            except OSError:
                return


def _some_tree(one: Machine, chance: random.Random) -> str:
    top = one.node.mnt
    names = ["", "shared", "saved", "logs"]
    names += [name for name in os.listdir(top) if name.startswith(("own-", "db-"))]
    return str(top / chance.choice(names))


def pin(all: Machines, one: Machine, chance: random.Random) -> None:
    """Trees are kept here for a while. What cannot be asked now is not."""
    with all.weather.spell("pin", one.name):
        try:
            path = _some_tree(one, chance)
        except OSError:
            return
        dfs("pin", path, "--store", str(one.node.store), check=False)
        time.sleep(chance.choice((0, 0.5, 3, 9)))
        if chance.random() < 0.7:
            dfs("unpin", path, "--store", str(one.node.store), check=False)


def evict(all: Machines, one: Machine, chance: random.Random) -> None:
    """Cache goes, again and again."""
    with all.weather.spell("evict", one.name):
        for _ in range(chance.choice((1, 3, 6))):
            try:
                path = _some_tree(one, chance)
            except OSError:
                return
            dfs("evict", path, "--store", str(one.node.store), check=False)
            time.sleep(chance.choice((0, 0.5)))


def forget_all(all: Machines, one: Machine, chance: random.Random) -> None:
    """What kernels keep of names and pages goes, again and again."""
    for _ in range(chance.choice((1, 4))):
        words = ["sh", "-c", f"echo {chance.choice((2, 3))} >/proc/sys/vm/drop_caches"]
        commands.run(words, check=False)
        time.sleep(chance.choice((0, 0.5)))


def kill_workers(all: Machines, one: Machine, chance: random.Random) -> None:
    """One after the other, also those that are not ready yet."""
    with all.weather.spell("workers killed", one.name, errno.EIO, AGAIN):
        for _ in range(chance.choice((2, 3))):
            one.kill("worker")
            time.sleep(chance.choice((0, 0.1, 0.3, 0.6, 1)))
        wait_until(one.is_whole, f"{one.name} runs again")


def kill_any(all: Machines, one: Machine, chance: random.Random) -> None:
    """Worker and node, each some times, in any order."""
    with all.weather.spell("some killed", one.name, errno.EIO, AGAIN):
        for _ in range(chance.choice((2, 4))):
            one.kill(chance.choice(("worker", "node")))
            time.sleep(chance.choice((0, 0.1, 0.3, 0.6, 1)))
        wait_until(one.is_whole, f"{one.name} runs again")


def kill_in_upgrade(all: Machines, one: Machine, chance: random.Random) -> None:
    with all.weather.spell("killed in upgrade", one.name, errno.EIO, AGAIN):
        work = threading.Thread(
            target=lambda: dfs("upgrade", str(one.node.mnt), check=False)
        )
        work.start()
        time.sleep(chance.choice((0.2, 0.4, 0.7, 1)))
        one.kill(*chance.choice((("worker",), ("node",), ("worker", "node"))))
        work.join()
        wait_until(one.is_whole, f"{one.name} runs again")


def upgrade_twice(all: Machines, one: Machine, chance: random.Random) -> None:
    """SIGHUP, and again before that is done."""
    with all.weather.spell("upgrades", one.name, AGAIN):
        for _ in range(3):
            for pid in one.pids("supervisor"):
                os.kill(pid, signal.SIGHUP)
            time.sleep(chance.choice((0, 0.2, 0.6)))
        time.sleep(1)
        wait_until(one.is_whole, f"{one.name} runs again")


def stop_and_kill(all: Machines, one: Machine, chance: random.Random) -> None:
    """Killed while it is stopped, so with much that waits."""
    which = chance.choice(("worker", "node"))
    with all.weather.spell(f"{which} stopped, killed", one.name, errno.EIO, AGAIN):
        for pid in one.pids(which):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(chance.choice((0.2, 1, 3)))
        one.kill(which)
        wait_until(one.is_whole, f"{one.name} runs again")


def kill_supervisor(all: Machines, one: Machine, chance: random.Random) -> None:
    """It alone: the others notice."""
    with all.weather.spell("supervisor killed", one.name, *GONE):
        one.kill("supervisor")
        time.sleep(chance.choice((0, 0, 1, 4)))
        one.mount(all.weather)


def kill_at_mount(all: Machines, one: Machine, chance: random.Random) -> None:
    """Killed, and again while it is mounted."""
    with all.weather.spell("all killed, twice", one.name, *GONE):
        one.kill("supervisor", "worker", "node")

        def mount() -> None:
            with suppress(pytest.fail.Exception):
                one.node.mount()

        work = threading.Thread(target=mount)
        work.start()
        time.sleep(chance.choice((0.3, 0.5, 0.8, 1.2)))
        one.kill("supervisor", "worker", "node")
        work.join()
        if not one.is_whole():
            one.mount(all.weather)


LINES: tuple[Mischief, ...] = (
    *(cut, cut, cut_line, cut_line, fill, fill, slow_line, clock, clock),
    *(evict, evict, pin, pin, forget_all, forget_all),
)
LIVES: tuple[Mischief, ...] = (
    *(kill_worker, kill_node, kill_both, kill_all, abort, detach, remount, check),
    *(upgrade, stop_worker, stop_node, stop_all),
    *(kill_workers, kill_any, kill_in_upgrade, upgrade_twice, stop_and_kill),
    *(kill_supervisor, kill_at_mount, kill_workers, kill_any),
)
