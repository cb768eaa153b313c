"""Networks made for one test: namespaces on a bridge, with links that can be cut.

A program joins one by `nsenter --net`, not `ip netns exec`: the latter makes a mount
namespace too, in which our mounts would be invisible to the test.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lib import commands

_numbers = itertools.count(1)
NOBODY = "02:00:00:00:00:01"
"""A hardware address that nobody has."""


def ip(*words: str, check: bool = True) -> None:
    """Runs ip(8)."""
    commands.run(["ip", *words], check=check, capture_output=True)


class Host:
    """A namespace with an address on the test's bridge."""

    def __init__(self, network: Network, number: int) -> None:
        self.address = f"10.213.{network.number}.{number}"
        self.namespace = f"dfs-{network.tag}-{number}"
        self._port = f"d{network.tag}p{number}"
        ip("netns", "add", self.namespace)
        self._inside = inside = f"d{network.tag}i{number}"
        ip("link", "add", self._port, "type", "veth", "peer", "name", inside)
        ip("link", "set", self._port, "master", network.bridge, "up")
        ip("link", "set", inside, "netns", self.namespace)
        within = ("-n", self.namespace)
        ip(*within, "addr", "add", f"{self.address}/24", "dev", inside)
        ip(*within, "link", "set", inside, "up")
        ip(*within, "link", "set", "lo", "up")

    @property
    def prefix(self) -> list[str]:
        """In front of a command that should run there."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--"]

    def cut(self) -> None:
        """Nothing gets in or out, and nobody is told: packets vanish."""
        ip("link", "set", self._port, "nomaster")

    def heal(self, network: Network) -> None:
        ip("link", "set", self._port, "master", network.bridge)

    def cut_towards(self, other: Host) -> None:
        """What this one sends to another one vanishes, and nobody is told."""
        where = (other.address, "dev", self._inside)
        nowhere = ("lladdr", NOBODY, "nud", "permanent")
        ip("-n", self.namespace, "neigh", "replace", *where, *nowhere)

    def heal_towards(self, other: Host) -> None:
        where = (other.address, "dev", self._inside)
        ip("-n", self.namespace, "neigh", "del", *where, check=False)

    def narrow(self, kbit_s: int) -> None:
        """So much goes to this host in a second, and as much comes from it. What would
        wait for more than half a second is lost."""
        words = ("root", "tbf", "rate", f"{kbit_s}kbit", "burst", "16kb")
        self._queue("replace", *words, "latency", "500ms")

    def widen(self) -> None:
        self._queue("del", "root")

    def _queue(self, what: str, *words: str) -> None:
        for prefix, device in (([], self._port), (self.prefix, self._inside)):
            command = [*prefix, "tc", "qdisc", what, "dev", device, *words]
            commands.run(command, check=False, capture_output=True)

    def slow(self, delay_ms: int) -> None:
        """Every packet towards this host is late."""
        words = ["tc", "qdisc", "replace", "dev", self._port, "root", "netem"]
        commands.run([*words, "delay", f"{delay_ms}ms"], check=True)

    def close(self) -> None:
        ip("netns", "del", self.namespace, check=False)
        ip("link", "del", self._port, check=False)


class Network:
    """A bridge and its hosts."""

    def __init__(self) -> None:
        self.number = next(_numbers) % 250
        self.tag = f"{os.getpid() % 10_000}n{self.number}"
        self.bridge = f"d{self.tag}b"
        self.hosts: list[Host] = []
        ip("link", "add", self.bridge, "type", "bridge")
        ip("link", "set", self.bridge, "up")

    def add(self) -> Host:
        host = Host(self, len(self.hosts) + 1)
        self.hosts.append(host)
        return host

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        ip("link", "del", self.bridge, check=False)


@contextmanager
def network() -> Iterator[Network]:
    """Skips where namespaces cannot be made (not root, or a container)."""
    try:
        made = Network()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces cannot be made here")
    try:
        yield made
    finally:
        made.close()
