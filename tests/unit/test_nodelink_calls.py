"""What is asked over the link: the close barrier, which travels with the transactions,
and chunks."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from fusefs.model.ids import ChunkId, NodeId, Seq, chunk_id
from fusefs.nodelink import messages
from fusefs.nodelink.client import NodeLink
from fusefs.nodelink.messages import Barrier
from netnode.link import LinkServer, _Client


class Nothing:
    """Whatever is asked of it, it does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class OneNear:
    """A node with one near peer, which has everything at once."""

    me = NodeId(7)
    fence = None
    settled = True
    settling = locking = chunks = Nothing()

    def __init__(self) -> None:
        self.asked: list[Seq] = []
        self.wanted: list[object] = []

    def on_near_changed(self, tell: Callable[[int, int, int], None]) -> None:
        tell(1, 1, 1)

    def behind(self) -> None:
        pass

    def barrier(self, seq: Seq, limit_s: float, done: Callable[[bool], None]) -> None:
        self.asked.append(seq)
        done(True)

    def fetch(
        self,
        cids: tuple[ChunkId, ...],
        limit_s: float,
        hint: tuple[NodeId, ...],
        done: Callable[[int, str], None],
    ) -> int:
        self.wanted.append((cids, limit_s, hint))
        done(0, "")
        return 1

    def prefetch(
        self, cids: tuple[ChunkId, ...], hint: tuple[NodeId, ...], small: bool
    ) -> None:
        self.wanted.append((cids, hint, small))


class Server(LinkServer):
    """Notes which way each barrier came."""

    ways: list[int]

    def _barrier(self, client: _Client, message: Barrier) -> None:
        self.ways.append(message.call)
        super()._barrier(client, message)


class Running:
    """A node's side of the link in a thread of its own, until it is stopped."""

    def __init__(self, path: Path) -> None:
        self.node = OneNear()
        server = Server(self.node, path, Nothing())  # type: ignore[arg-type]
        self.ways: list[int] = []
        server.ways = self.ways
        started = threading.Event()

        async def serve() -> None:
            self.token = trio.lowlevel.current_trio_token()
            self.scope = trio.CancelScope()
            with self.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(server.run)
                    started.set()

        self._thread = threading.Thread(target=lambda: trio.run(serve), daemon=True)
        self._thread.start()
        assert started.wait(10)

    def stop(self) -> None:
        self.token.run_sync_soon(self.scope.cancel)
        self._thread.join(10)


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Any]:
    links: list[NodeLink] = []

    def make() -> NodeLink:
        links.append(NodeLink(tmp_path / "sock", lambda _: None, lambda _: None))
        return links[-1]

    yield make
    for made in links:
        made.close()


def near(link: NodeLink) -> None:
    """Wait until it knows of the peer."""
    attached = threading.Event()
    while not (link.connected() and link.near()):
        attached.wait(0.005)


def met(tmp_path: Path, link: Callable[[], NodeLink]) -> tuple[Running, NodeLink]:
    """A node, and a worker that knows of its peer."""
    running, worker = Running(tmp_path / "sock"), link()
    near(worker)
    return running, worker


def test_what_is_asked_ahead_comes_behind_what_is_waited_for(
    tmp_path: Path, link: Callable[[], NodeLink]
) -> None:
    running, worker = met(tmp_path, link)
    a, b, c = (chunk_id(name) for name in (b"a", b"b", b"c"))
    hint = (NodeId(8),)
    worker.fetch([a], timeout_s=5.0, hint=hint, ahead=[b, c], small=True)
    worker.fetch([b], timeout_s=5.0)
    waited, ahead, alone = running.node.wanted
    assert (waited, ahead) == (((a,), 5.0, hint), ((b, c), hint, True))
    assert alone == ((b,), 5.0, ())
    running.stop()


def test_barrier_travels_with_the_transactions_once_the_node_knows_who_waits(
    tmp_path: Path, link: Callable[[], NodeLink]
) -> None:
    running, worker = met(tmp_path, link)
    for seq in (1, 2, 3):
        assert worker.barrier(Seq(seq), 10.0)
    assert running.node.asked == [1, 2, 3]
    assert running.ways[0] == 0
    assert 0 not in running.ways[1:] and len(running.ways) == 3
    running.stop()


def test_barrier_after_the_node_came_back_is_answered_by_the_new_one(
    tmp_path: Path, link: Callable[[], NodeLink]
) -> None:
    first, worker = met(tmp_path, link)
    assert worker.barrier(Seq(1), 10.0) and worker.barrier(Seq(2), 10.0)
    first.stop()
    second = Running(tmp_path / "sock")
    while not second.node.asked:  # until the worker has found it
        near(worker)
        assert worker.barrier(Seq(3), 10.0)
    assert worker.barrier(Seq(4), 10.0)
    assert worker.connected()
    assert second.node.asked[-2:] == [3, 4]
    assert second.ways[-1] != 0
    second.stop()


def test_barrier_of_a_worker_that_an_older_node_does_not_understand(
    tmp_path: Path, link: Callable[[], NodeLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = messages.Attached
    monkeypatch.setattr("netnode.link.Attached", lambda me, **_: attached(me))
    running, worker = met(tmp_path, link)
    for seq in (1, 2, 3):
        assert worker.barrier(Seq(seq), 10.0)
    assert running.ways == [0, 0, 0]
    running.stop()


def test_barrier_is_asked_for_although_the_workers_connection_broke(
    tmp_path: Path, link: Callable[[], NodeLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, worker = met(tmp_path, link)
    assert worker.barrier(Seq(1), 10.0)
    monkeypatch.setattr(worker, "_send_locked", lambda data: False)
    assert worker.barrier(Seq(2), 10.0)
    assert running.ways == [0, 0]
    running.stop()


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While this is set the worker's side has descriptors left for a socket."""
    left = threading.Event()

    def make(*args: Any) -> socket.socket:
        if left.is_set():
            return socket.socket(*args)
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        fake = SimpleNamespace(**{**vars(socket), "socket": make})
        patch.setattr("fusefs.nodelink.calls.socket", fake)
        yield left


def test_barrier_without_a_descriptor_is_one_without_a_node(
    tmp_path: Path, link: Callable[[], NodeLink], descriptors: threading.Event
) -> None:
    descriptors.set()
    running, worker = met(tmp_path, link)
    descriptors.clear()
    assert worker.barrier(Seq(1), 10.0)
    descriptors.set()
    assert worker.barrier(Seq(2), 10.0)
    assert running.node.asked == [2]
    running.stop()


def test_link_that_finds_no_descriptor_is_made_later(
    tmp_path: Path, link: Callable[[], NodeLink], descriptors: threading.Event
) -> None:
    running, worker = Running(tmp_path / "sock"), link()
    assert not worker.wait_connected(0.05)
    descriptors.set()
    assert worker.wait_connected(10.0)
    running.stop()
