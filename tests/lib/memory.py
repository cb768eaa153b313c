"""How much memory the processes of a node held."""

from __future__ import annotations

from pathlib import Path

from tests.lib.cluster import Node


def peak_mib(pid: int) -> float:
    """The most memory a process ever held (proc(5), VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"{pid} has no VmHWM")


def memory(node: Node) -> str:
    worker, network = peak_mib(node.worker_pid()), peak_mib(node.node_pid())
    return f"{node.name}: worker {worker:.0f} MiB, node {network:.0f} MiB"
