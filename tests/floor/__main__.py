"""Floor: python -m tests.floor [--rounds N]

What this machine leaves to a file system of this kind: bursts of the same small work,
by turns, on a mount whose processes do nothing but pass on what they have to, and on
dfs.

* `binding`: the kernel binding over dictionaries (tests/lib/memory_vfs.py).
* `passed on`: the same; a close waits until the bytes have gone through two further
  processes, each an event loop, one to the other over TLS, and an answer has come back.
* `dfs`: two nodes.

Printed are medians, per second, and in milliseconds what a change takes that comes
alone, when the processors have gone to sleep since the last: `close`, and from its
beginning until the bytes were `read`, at the peer where there is one. No figure is
asserted. Root only: the kernel's caches are dropped before anything is looked at for
the first time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import trio

from fusefs.bindings.kernel import mounting, server
from fusefs.mountpoint import unmounting
from fusefs.vfs.types import Caller
from netnode import identity
from netnode.tls import Contexts
from tests.lib.cluster import cluster
from tests.lib.kernel_mount import connection_of
from tests.lib.memory_vfs import MemoryVfs

FILES = 200
ALONE = 40
"""Changes, each after a pause."""
PAUSES_S = [0.003 + 0.001 * (number % 17) for number in range(ALONE)]
CONTENT = os.urandom(4096)
Figures = dict[str, list[dict[str, float]]]
PIECE = 65536
ANSWER = b"."
PROCESSES = multiprocessing.get_context("fork")


class PassedOn(MemoryVfs):
    """Flush waits for an answer from far away."""

    def __init__(self, link: socket.socket) -> None:
        super().__init__()
        self._link = link
        self._written: dict[int, bytes] = {}

    def write(self, handle: int, offset: int, data: memoryview, *more: object) -> int:
        self._written[handle] = bytes(data)
        return super().write(handle, offset, data, *more)  # type: ignore[arg-type]

    def flush(self, handle: int, lock_owner: int, caller: Caller) -> None:
        super().flush(handle, lock_owner, caller)
        data = self._written.pop(handle, None)
        if data is not None:
            self._link.sendall(len(data).to_bytes(4) + data)
            self._link.recv(1)


async def near(worker: socket.socket, port: int, contexts: Contexts) -> None:
    """Passes on what the worker says, and what is said to that."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(worker))
    far = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), contexts.client)

    async def pass_on(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
        while data := await source.receive_some(PIECE):
            await target.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_on, stream, far)
        nursery.start_soon(pass_on, far, stream)


async def answering(listener: socket.socket, contexts: Contexts) -> None:
    """Says a byte for each message that is whole."""
    connection, _ = await trio.socket.from_stdlib_socket(listener).accept()
    stream = trio.SSLStream(
        trio.SocketStream(connection), contexts.server, server_side=True
    )
    have = b""
    while data := await stream.receive_some(PIECE):
        have += data
        while len(have) >= 4 and len(have) >= 4 + (size := int.from_bytes(have[:4])):
            have = have[4 + size :]
            await stream.send_all(ANSWER)


@contextmanager
def running(target: Callable[..., object], *arguments: object) -> Iterator[BaseProcess]:
    process = PROCESSES.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


@contextmanager
def mounted(where: Path, fs: MemoryVfs) -> Iterator[Path]:
    where.mkdir()
    device = mounting.mount(where, fsname="floor")
    connection = connection_of(where)

    def serve() -> None:
        server.run(fs, device, set_invalidator=fs.set_invalidator)

    try:
        with running(serve):
            where.stat()
            yield where
    finally:
        unmounting.abort(connection)
        unmounting.detach(str(where))
        os.close(device)


@contextmanager
def passing_on(base: Path) -> Iterator[Path]:
    base.mkdir()
    contexts = Contexts(identity.create(base, "floor", None), base)
    worker, node = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        port = listener.getsockname()[1]
        stack.enter_context(running(trio.run, answering, listener, contexts))
        stack.enter_context(running(trio.run, near, node, port, contexts))
        yield stack.enter_context(mounted(base / "mnt", PassedOn(worker)))


# -- the work ------------------------------------------------------------------------


def drop_caches() -> None:
    """What was used since it was made survives the first time."""
    for _ in range(3):
        Path("/proc/sys/vm/drop_caches").write_text("2")


def created(top: Path) -> None:
    top.mkdir()
    for number in range(FILES):
        with open(top / str(number), "wb", buffering=0) as file:
            file.write(CONTENT)


def looked_at(top: Path) -> None:
    for number in range(FILES):
        os.stat(f"{top}/{number}")


def appended(top: Path) -> None:
    for _ in range(FILES):
        with open(top / "log", "ab", buffering=0) as file:
            file.write(b"a line\n")


def removed(top: Path) -> None:
    for number in range(FILES):
        os.unlink(f"{top}/{number}")


WORK = created, looked_at, appended, removed


def burst(top: Path) -> dict[str, float]:
    """Per second."""
    found = {}
    for work in WORK:
        if work is looked_at:
            drop_caches()
            os.stat(top)
        began_s = time.monotonic()
        work(top)
        found[work.__name__] = FILES / (time.monotonic() - began_s)
    return found


def shown(path: Path) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(2 * len(CONTENT)) == CONTENT
    except FileNotFoundError:
        return False


def alone(top: Path, seen: Path) -> dict[str, float]:
    """Medians in milliseconds: of close, and from its beginning until the bytes were
    read below `seen`."""
    (top / "alone").mkdir()
    closed, read = [], []
    for number, pause_s in enumerate(PAUSES_S):
        time.sleep(pause_s)
        with open(top / "alone" / str(number), "wb", buffering=0) as file:
            file.write(CONTENT)
            began_s = time.monotonic()
        closed.append(time.monotonic() - began_s)
        while not shown(seen / "alone" / str(number)):
            time.sleep(0.0005)
        read.append(time.monotonic() - began_s)
    return {
        "close": statistics.median(closed) * 1000,
        "read": statistics.median(read) * 1000,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.floor", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with (
        tempfile.TemporaryDirectory(prefix="dfs-floor-") as base,
        mounted(Path(base, "quick"), MemoryVfs()) as quick,
        passing_on(Path(base, "passed")) as passed,
        cluster(Path(base, "dfs")) as real,
    ):
        first, second = real.start(2)
        real.wait_near()
        places = {
            "binding": (quick, quick),
            "passed on": (passed, passed),
            "dfs": (first.mnt, second.mnt),
        }
        rates: Figures = {title: [] for title in places}
        waits: Figures = {title: [] for title in places}
        for number in range(rounds):
            for title, (place, seen) in places.items():
                name = f"round-{number}"
                rates[title].append(burst(place / name))
                waits[title].append(alone(place / name, seen / name))
    print(f"{'':12}", *(f"{title:>12}" for title in places))
    for work in WORK:
        tell(work.__name__, rates, 0)
    for what in ("close", "read"):
        tell(what, waits, 2)
    return 0


def tell(what: str, figures: Figures, digits: int) -> None:
    medians = [
        statistics.median(one[what] for one in found) for found in figures.values()
    ]
    print(f"{what:12}", *(f"{median:12.{digits}f}" for median in medians))


if __name__ == "__main__":
    sys.exit(main())
