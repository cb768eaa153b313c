"""A process that serves a kernel mount from a MemoryVfs, steered by lines of JSON.

    python -m tests.lib.kernel_child --fd N [--state FILE] [--files N] [...]

Each line on stdin is [verb, *arguments]; each is answered by a line of JSON. Verbs
are the methods of MemoryVfs named remote_* and quiet_*, and those of `Child`. The
tree at the start is the same in every process, so that a second one can take over.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import stat
import sys
import threading
import time
from pathlib import Path

from fusefs.bindings.kernel import server
from fusefs.bindings.kernel.connection import Settings
from fusefs.model.ids import Ino
from fusefs.nodelink.fence import Gate, map_file
from fusefs.vfs.types import Caller
from tests.lib.memory_vfs import MemoryVfs


class Gates:
    """Points where calls can be held: `hold NAME`, `waiting NAME`, `release NAME`."""

    def __init__(self) -> None:
        self._closed: dict[str, threading.Event] = {}
        self._waiting: dict[str, int] = {}
        self._lock = threading.Lock()

    def pass_through(self, name: str) -> None:
        gate = self._closed.get(name)
        if gate is not None:
            with self._lock:
                self._waiting[name] = self._waiting.get(name, 0) + 1
            gate.wait(30)

    def hold(self, name: str) -> None:
        self._waiting[name] = 0
        self._closed[name] = threading.Event()

    def release(self, name: str) -> None:
        self._closed.pop(name).set()

    def waiting(self, name: str, count: int = 1) -> bool:
        """Waits until `count` calls are held."""
        deadline = time.monotonic() + 25
        while self._waiting.get(name, 0) < count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True


class Child:
    def __init__(self, fs: MemoryVfs, gates: Gates) -> None:
        self.fs, self.gates = fs, gates
        self.server: server.Server | None = None

    def statistics(self) -> dict[str, int]:
        assert self.server is not None
        return self.server.statistics()

    def settle(self) -> bool:
        """Waits until every notification has been sent and taken."""
        assert self.server is not None
        deadline = time.monotonic() + 25
        while not self.server.notifier.settled:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def everything(self) -> None:
        assert self.server is not None
        self.server.notifier.everything()

    def stop(self) -> None:
        assert self.server is not None
        self.server.stop()

    def seen(self) -> dict[str, object]:
        return {
            "cancelled": self.fs.cancelled,
            "forgotten": self.fs.forgotten,
            "adopted": self.fs.adopted,
        }

    def ino(self, path: str) -> int:
        return self.fs._resolve(path).ino

    def do(self, verb: str, arguments: list[object]) -> object:
        if verb in ("hold", "release", "waiting"):
            return getattr(self.gates, verb)(*arguments)
        if verb.startswith(("remote_", "quiet_")):
            values = arguments[:1] + [
                a.encode() if isinstance(a, str) else a for a in arguments[1:]
            ]
            started = time.monotonic()
            getattr(self.fs, verb)(*values)
            return time.monotonic() - started
        if verb == "mark":
            path, name = arguments
            self.fs._resolve(str(path)).xattrs[str(name).encode()] = b"1"
            return None
        return getattr(self, verb)(*arguments)

    def listen(self) -> None:
        for line in sys.stdin:
            verb, *arguments = json.loads(line)
            try:
                answer = {"ok": self.do(verb, arguments)}
            except Exception as problem:
                answer = {"error": repr(problem)}
            print(json.dumps(answer), flush=True)
        os._exit(3)


def fill(fs: MemoryVfs, files: int) -> None:
    """/d/f0000 ... of 4 KiB each, and a link."""
    who = Caller()
    directory = fs.mkdir(Ino(1), b"d", 0o777, who).ino
    for number in range(files):
        name = b"f%04d" % number
        made = fs.create(directory, name, stat.S_IFREG | 0o644, os.O_EXCL, who)
        fs.write(made.handle, 0, name * 1024, who)
        fs.release(made.handle)
        fs._nodes[made.attr.ino].kernel_version = 0


def do_what_was_left(fs: MemoryVfs, verb: str) -> None:
    """The tree as a worker left it that died before it could answer."""
    who, name = Caller(), b"left"
    if verb == "mkdir":
        fs.mkdir(Ino(1), name, 0o755, who)
    elif verb == "symlink":
        fs.symlink(Ino(1), name, b"to", who)
    elif verb == "create":
        made = fs.create(Ino(1), name, stat.S_IFREG | 0o644, os.O_EXCL, who)
        fs.release(made.handle)
    else:
        fs.unlink(fs._resolve("d").ino, b"f0007", who)


def gate_writes(gates: Gates) -> None:
    """Replies of serving threads pass the gate "reply"."""
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if threading.current_thread().name == "fuse":
            gates.pass_through("reply")
        return real(fd, data)

    os.write = write  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--most-threads", type=int, default=160)
    parser.add_argument("--most-parked", type=int, default=4000)
    parser.add_argument("--notify-wait-s", type=float, default=0.02)
    parser.add_argument("--local-locks", action="store_true")
    parser.add_argument("--first-handle", type=int, default=os.getpid() << 16)
    parser.add_argument("--done", default="")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    gates = Gates()
    fs = MemoryVfs()
    fill(fs, options.files)
    fs.number_handles_from(options.first_handle)
    if options.done:
        do_what_was_left(fs, options.done)
    fs.before = gates.pass_through
    gate_writes(gates)
    child = Child(fs, gates)

    def begun(made: server.Server) -> None:
        child.server = made

    def ready() -> None:
        print(json.dumps({"ok": "ready"}), flush=True)
        threading.Thread(target=child.listen, daemon=True).start()

    server.run(
        fs,
        options.fd,
        on_ready=ready,
        on_server=begun,
        set_invalidator=fs.set_invalidator,
        settings=Settings(
            readers=options.readers,
            most_threads=options.most_threads,
            most_parked=options.most_parked,
            notify_wait_s=options.notify_wait_s,
            locks=not options.local_locks,
        ),
        state=options.state,
        gate=Gate(map_file(options.state.with_name("fence")))
        if options.state
        else None,
    )


if __name__ == "__main__":
    main()
