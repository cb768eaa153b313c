"""Real nodes and mounts for tests, started through the `dfs` command.

Each node has its own store, port and mountpoint below a temporary directory. A node
is ready when `dfs mount` returns (it waits for the event); convergence is waited for
by asking the nodes. The finaliser never trusts a mount: it aborts the connection,
kills by pid, detaches, and then runs `dfs fsck` on every store.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusefs.mountpoint import nodes, table, unmounting
from fusefs.nodelink import control
from fusefs.supervisor import state
from tests.lib import commands
from tests.lib.netns import Host

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 30.0
"""For one command or one wait. Far above what any takes; a bug never hangs the run."""
LOOK_EVERY_S = 0.005
DFS = [
    sys.executable,
    "-c",
    "import sys; from fusefs.cli import main; sys.exit(main())",
]


def require_fuse() -> None:
    """Skips where /dev/fuse is missing, but fails in CI, where it must not be."""
    if Path("/dev/fuse").exists():
        return
    if os.environ.get("CI") == "true":
        pytest.fail("/dev/fuse is missing, and CI must run the mount tests")
    pytest.skip("/dev/fuse is missing")


def wait_until(
    condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S
) -> float:
    """Asks again and again until it is so; returns how long that took, in seconds."""
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > limit_s:
            pytest.fail(f"not so after {limit_s:.0f} s: {what}")
        time.sleep(LOOK_EVERY_S)
    return time.monotonic() - began_s


def clean_environment(**extra: str) -> dict[str, str]:
    """Ours without settings of a user, and with this checkout importable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DFS_")}
    return {**kept, "PYTHONPATH": str(ROOT), **extra}


def runs(pid: int) -> bool:
    """One that ended and that nobody has waited for yet does not (proc_pid_stat(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def dfs(
    *words: str, check: bool = True, host: Host | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs one `dfs` command to its end. `host`: in its network."""
    done = commands.run(
        [*(host.prefix if host else []), *DFS, *words],
        env=clean_environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S * (20 if words[0] == "fsck" else 4),  # it reads everything
        check=False,
    )
    if check and done.returncode:
        pytest.fail(f"dfs {' '.join(words)}: {done.returncode}\n{done.stderr}")
    return done


def status_page(*words: str) -> str:
    """What `dfs status` prints of a running node. It gives the node 0.3 s to answer;
    one that a crowded machine holds up for longer is asked again."""
    said = ""

    def answered() -> bool:
        nonlocal said
        done = dfs("status", *words, check=False)
        said = done.stdout
        return done.returncode == 0

    wait_until(answered, "dfs status has the answer of the node")
    return said


def _ports_of_this_run() -> Iterator[int]:
    """None of those that the system gives to whoever asks for any: while a node is down
    nobody else gets its own. Each process of a run has some for itself."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    first = 10_000 + zlib.crc32(run.encode()) % 10 * 2_000 + number % 2 * 1_000
    for port in itertools.cycle(range(first, first + 1_000)):
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


_ports = _ports_of_this_run()


class Node:
    """One node of a test's cluster: a store, and a mountpoint when it is mounted.

    `host`: in whose network it runs; `settings` and `environment`: what each mount of
    it is given, too.
    """

    def __init__(
        self, base: Path, name: str, binding: str, host: Host | None = None
    ) -> None:
        self.name = name
        self.binding = binding
        self.host = host
        self.settings: tuple[str, ...] = ()
        self.environment: dict[str, str] = {}
        self.store = base / f"store-{name}"
        self.mnt = base / f"mnt-{name}"
        self.mnt.mkdir(parents=True, exist_ok=True)
        self._join: tuple[str, ...] = ()
        self.port = next(_ports)

    # -- life ------------------------------------------------------------------

    def mount(self, *words: str, token: str = "") -> Node:
        """Returns when the mount answers. The port stays the same over mounts."""
        join = ["--join", token] if token else []
        words = (*self._common(), *self.settings, *join, *words)
        dfs("mount", str(self.mnt), *words, host=self.host, **self.environment)
        self.port = int(self.ask("status")["port"])  # type: ignore[call-overload]
        return self

    def _common(self) -> list[str]:
        return [
            f"--store={self.store}",
            f"--port={self.port}",
            f"--listen={self.host.address if self.host else '127.0.0.1'}",
            f"--name={self.name}",
            "--discovery=no",
            f"--binding={self.binding}",
        ]

    def run_without_mount(self, token: str = "") -> Node:
        """A storage node in the background."""
        join = ["--join", token] if token else []
        words = (*self._common()[:-1], *self.settings, *join)
        dfs("node", "--background", *words, host=self.host)
        self.port = int(self.ask("status")["port"])  # type: ignore[call-overload]
        return self

    def umount(self) -> None:
        """Returns when the node has ended."""
        dfs("umount", str(self.mnt))

    def remount(self) -> None:
        """So that nothing is cached."""
        self.umount()
        self.mount()

    def stop(self) -> None:
        """SIGTERM to the supervisor, whether mounted or not; waits for the end."""
        if (now := self.processes()) is not None:
            os.kill(now.pid, signal.SIGTERM)
            assert nodes.wait_gone(now.pid, LIMIT_S), f"{self.name} does not end"

    def destroy(self) -> None:
        """Ends everything of this node whatever state it is in."""
        now = self.processes()
        mount = table.find(str(self.mnt))
        if mount is not None and mount.is_ours:
            unmounting.abort(mount.connection)
            unmounting.detach(str(self.mnt))
        for pid in (now.pid, now.worker, now.node) if now else ():
            if pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                nodes.wait_gone(pid, LIMIT_S)

    # -- what it says about itself ------------------------------------------------

    def processes(self) -> state.State | None:
        """The supervisor's view; None when none runs."""
        now = state.read(self.store)
        return now if now is not None and runs(now.pid) else None

    def worker_pid(self) -> int:
        now = self.processes()
        assert now is not None
        return now.worker

    def node_pid(self) -> int:
        now = self.processes()
        assert now is not None
        return now.node

    def ask(self, what: str, *arguments: str) -> dict[str, object]:
        """A question to the node process over its socket."""
        answer = control.ask(
            self.store / "run" / "node.sock", what, *arguments, timeout_s=LIMIT_S
        )
        assert isinstance(answer, dict)
        return answer

    def status(self) -> dict[str, object]:
        """`dfs status --json`."""
        answer = json.loads(status_page("--store", str(self.store), "--json"))
        assert isinstance(answer, dict)
        return answer

    def connected(self) -> set[str]:
        """Names of the peers connected now."""
        try:
            peers = self.ask("status")["peers"]
        except (control.NotRunning, TimeoutError):
            return set()
        assert isinstance(peers, list)
        return {str(p["name"]) for p in peers if p["connected"]}

    def near(self) -> int:
        """How many peers a close waits for."""
        peers = self.ask("status")["peers"]
        assert isinstance(peers, list)
        return sum(bool(p["near"]) for p in peers)

    def digest(self) -> str:
        """Equal on two nodes when their namespaces are."""
        return str(self.ask("digest")["digest"])

    def token(self) -> str:
        done = dfs("invite", "--store", str(self.store))
        return done.stdout.strip().splitlines()[-1]

    def fsck(self) -> None:
        """The store is clean; the node must not run."""
        done = dfs("fsck", "--store", str(self.store), check=False)
        assert done.returncode == 0, f"fsck {self.name}: {done.stdout}{done.stderr}"

    def logs(self) -> str:
        """The ends of all its logs."""
        files = sorted((self.store / "run").glob("*.log"))
        ends = [f"--- {self.name} {p.name}\n{p.read_text()[-3000:]}" for p in files]
        return "\n".join(ends)


class Cluster:
    """The nodes of one test. `binding`: which one their mounts use."""

    def __init__(self, base: Path, binding: str = "kernel") -> None:
        self.base = base
        self.binding = binding
        self.nodes: list[Node] = []

    def add(self, name: str = "", host: Host | None = None) -> Node:
        """A node that is not started yet."""
        name = name or "ABCDEFGH"[len(self.nodes)]
        node = Node(self.base, name, self.binding, host)
        self.nodes.append(node)
        return node

    def start(self, count: int, *words: str) -> list[Node]:
        """The first node founds, the others join it; all connected at the end."""
        first = self.add().mount(*words)
        token = first.token() if count > 1 else ""
        for _ in range(count - 1):
            self.add().mount(*words, token=token)
        self.wait_connected()
        return self.nodes

    def wait_connected(self) -> None:
        """Every running node is connected to every other one."""
        running = [n for n in self.nodes if n.processes()]
        for node in running:
            others = {n.name for n in running if n is not node}
            wait_until(
                lambda node=node, others=others: others <= node.connected(),  # type: ignore[misc]
                f"{node.name} is connected to {others}",
            )

    def wait_near(self) -> None:
        """Every running node waits at close for every other one."""
        running = [n for n in self.nodes if n.processes()]
        for node in running:
            wait_until(
                lambda node=node: node.near() == len(running) - 1,  # type: ignore[misc]
                f"{node.name} finds the others near",
            )

    def wait_equal(self, limit_s: float = LIMIT_S) -> None:
        """All running nodes have equal namespaces."""
        running = [n for n in self.nodes if n.processes()]
        wait_until(
            lambda: len({n.digest() for n in running}) == 1,
            "all digests are equal",
            limit_s,
        )

    def close(self, *, fsck: bool) -> None:
        """Politely first; then whatever is left by force; then the stores' checks."""
        stuck = []
        for node in self.nodes:
            try:
                if fsck:
                    node.stop()
            except BaseException as error:
                stuck.append(error)
            finally:
                node.destroy()
        if stuck:
            raise stuck[0]
        if fsck:
            for node in self.nodes:
                if (node.store / "format").exists():
                    node.fsck()


@contextmanager
def cluster(base: Path, binding: str = "kernel") -> Iterator[Cluster]:
    """A cluster that leaves nothing behind; prints its logs when the test failed."""
    require_fuse()
    made = Cluster(base, binding)
    try:
        yield made
    except BaseException:
        for node in made.nodes:
            print(node.logs())
        made.close(fsck=False)
        raise
    made.close(fsck=True)


def holds(path: Path, data: bytes) -> bool:
    """Whether that is the file's content now. Its name may come before it, where close
    did not wait: the peer was not known to be near yet, or took longer than a barrier.
    """
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def errno_of(call: Callable[[], object]) -> int:
    """The errno of the OSError that the call raises; 0 when it does not."""
    try:
        call()
    except OSError as error:
        return error.errno or errno.EIO
    return 0
