"""Real sockets: members, strangers, the console, the link."""

from __future__ import annotations

import errno
import json
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import trio

from fusefs.errors import Interrupted, Unreachable, WouldBlock
from fusefs.model.ids import MAX_SEQ, ROOT_INO, ChunkId, Ino, NodeId, Seq, chunk_id
from fusefs.model.records import S_REG, Member
from fusefs.model.tx import Body, Effects
from fusefs.namespace.namespace import Namespace
from fusefs.nodelink import calls as links
from fusefs.nodelink import control
from fusefs.nodelink.client import NodeLink
from fusefs.nodelink.frames import FrameReader, pack
from fusefs.nodelink.messages import (
    Cancel,
    FromNode,
    HeldLocks,
    Invalidated,
    Lock,
    LockDone,
    Peers,
    decode_from_node,
    encode,
)
from fusefs.nodelink.ranges import UNLOCK, WRITE, HeldLock, LockKey, Range
from fusefs.store.store import Store
from netnode import identity as identities
from netnode import tcp
from netnode.addresses import for_node
from netnode.commands import Commands
from netnode.console import Console, metrics
from netnode.core.nearness import Nearness
from netnode.environment import Environment
from netnode.identity import Token
from netnode.link import LinkServer
from netnode.service import Node, Settings
from netnode.tcp import TcpNetwork, bind, is_loopback, join_address, split_address
from netnode.tls import Contexts
from netnode.wire import messages as wire

LIMIT_S = 30.0


class Running:
    """One node in a thread of its own, with its link."""

    def __init__(self, directory: Path, name: str, token: Token | None) -> None:
        directory.mkdir()
        self.directory = directory
        self.socket = directory / "node.sock"
        self.identity = identities.create(directory, name, token)
        Namespace.create(directory, self.identity.node_id, root=token is None).close()
        self.namespace = Namespace.open(directory)
        self.store = Store.open(directory, min_free_bytes=0)
        self.node: Node
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        assert self._ready.wait(LIMIT_S)

    async def _main(self) -> None:
        parts: dict[str, Commands] = {}
        network = TcpNetwork(
            Contexts(self.identity, self.directory / "identity"),
            "127.0.0.1",
            0,
            Console(lambda: parts["commands"]),
        )
        who = self.identity
        addresses = for_node("127.0.0.1", "")
        settings = Settings(who.cluster, who.name, who.seeds, addresses)
        self.node = Node(settings, self.namespace, self.store, network, Environment())
        link = LinkServer(self.node, self.socket, lambda w, a: parts["commands"](w, a))
        parts["commands"] = Commands(
            self.node, who.secret, "/mnt", link.worker_statistics
        )
        async with trio.open_nursery() as nursery:
            self.port = await nursery.start(self._run_node, nursery)
            await nursery.start(link.run)
            self._ready.set()

    async def _run_node(
        self, nursery: trio.Nursery, *, task_status: trio.TaskStatus[int]
    ) -> None:
        await self.node.run(task_status=task_status)
        nursery.cancel_scope.cancel()

    @property
    def token(self) -> Token:
        return Token(self.identity.secret, (f"127.0.0.1:{self.port}",))

    def ask(self, what: str, *arguments: str) -> object:
        return control.ask(self.socket, what, *arguments, timeout_s=LIMIT_S)

    def peers(self) -> set[str]:
        found = self.ask("peers")
        assert isinstance(found, list)
        return {p["name"] for p in found if p["connected"] and p["bulk"]}

    def stop(self) -> None:
        if self._thread.is_alive():
            self.ask("shutdown")
            self._thread.join(LIMIT_S)
            assert not self._thread.is_alive()
        self.namespace.close()
        self.store.close()

    def create(self, link: NodeLink, name: bytes, data: bytes = b"") -> int:
        with self.namespace.transaction() as t:
            ino = t.new_ino(ROOT_INO, name, S_REG)
            t.create(ROOT_INO, name, ino, 0o100644, 0, 0)
        assert t.tx is not None
        bodies = (Body(self.store.put(data), data),) if data else ()
        link.publish(t.tx, bodies)
        return t.tx.seq


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Running, Running]]:
    """Near, and waited for, however slow the machine is."""
    monkeypatch.setattr("netnode.peers.Nearness", lambda: Nearness(LIMIT_S))
    monkeypatch.setattr("netnode.core.nearness.SLOW_S", LIMIT_S)
    a = Running(tmp_path / "a", "a", None)
    b = Running(tmp_path / "b", "b", a.token)
    until(lambda: a.peers() == {"b"} and b.peers() == {"a"})
    yield a, b
    b.stop()
    a.stop()


class Mount:
    """Stands in for the worker of a node."""

    def __init__(self, running: Running) -> None:
        self.effects: list[Effects] = []
        self.reconnects = 0
        self.hold = threading.Event()
        self.hold.set()
        self.link = NodeLink(running.socket, lambda effects: None, self._told)
        until(self.link.connected)
        until(lambda: self.reconnects and not running.node.settling.pending)

    def _told(self, effects: Effects | None) -> None:
        assert self.hold.wait(LIMIT_S)
        if effects is None:
            self.reconnects += 1
        else:
            self.effects.append(effects)


# -- members -------------------------------------------------------------------------


def test_barrier_returns_when_the_other_mount_has_forgotten(
    pair: tuple[Running, Running],
) -> None:
    a, b = pair
    with closing_mounts(a, b) as (at_a, at_b):
        until(lambda: at_a.link.statistics().near_peers == 1)
        seq = a.create(at_a.link, b"file", b"data")
        assert at_a.link.barrier(seq, LIMIT_S)
        assert [e.name for f in at_b.effects for e in f.entries] == [b"file"]
        assert b.store.get(chunk_id(b"data")) == b"data"
        at_b.hold.clear()
        assert not at_a.link.barrier(a.create(at_a.link, b"other"), 0.05)
        at_b.hold.set()
        until(lambda: len(at_b.effects) == 2)
        assert at_a.link.statistics().barrier_timeouts == 1


class closing_mounts:
    def __init__(self, *running: Running) -> None:
        self.mounts = [Mount(r) for r in running]

    def __enter__(self) -> list[Mount]:
        return self.mounts

    def __exit__(self, *_: object) -> None:
        for mount in self.mounts:
            mount.hold.set()
            mount.link.close()


def test_fetch_over_tls_and_its_errors(pair: tuple[Running, Running]) -> None:
    a, b = pair
    chunks = [bytes((n,)) * (1 << 20) for n in range(20)]
    ids = [a.store.put(data) for data in chunks]
    with closing_mounts(b) as (mount,):
        mount.link.fetch(ids, timeout_s=LIMIT_S)
        assert b.store.missing(ids) == []
        assert b.store.get(ids[7]) == chunks[7]
        began = time.monotonic()
        with pytest.raises(Unreachable) as raised:
            mount.link.fetch([chunk_id(b"nowhere")], timeout_s=LIMIT_S)
        assert raised.value.errno == errno.EHOSTUNREACH
        assert time.monotonic() - began < LIMIT_S / 2
        absent: list[ChunkId] = [chunk_id(b"nothing")]
        with pytest.raises((Interrupted, Unreachable)):
            mount.link.fetch(absent, timeout_s=LIMIT_S, cancelled=lambda: True)


def test_link_without_a_node_fails_only_fetches(tmp_path: Path) -> None:
    link = NodeLink(tmp_path / "none", lambda e: None, lambda e: None)
    assert link.barrier(5, 1)
    link.prefetch([chunk_id(b"x")])
    with pytest.raises(Unreachable):
        link.fetch([chunk_id(b"x")], timeout_s=0.1)
    assert not link.connected()
    link.close()


def test_what_is_published_while_the_node_is_away_arrives(
    pair: tuple[Running, Running],
) -> None:
    a, b = pair
    link = NodeLink(a.directory / "later.sock", lambda e: None, lambda e: None)
    for n in range(100):
        a.create(link, b"f%d" % n)
    (a.directory / "later.sock").symlink_to(a.socket)
    until(lambda: a.namespace.digest() == b.namespace.digest())
    assert len(b.namespace.children(ROOT_INO)) == 100
    link.close()


def test_third_node_joins_through_the_second(
    pair: tuple[Running, Running], tmp_path: Path
) -> None:
    a, b = pair
    c = Running(tmp_path / "c", "c", b.token)
    try:
        until(lambda: c.peers() == {"a", "b"} and a.peers() == {"b", "c"})
    finally:
        c.stop()
    until(lambda: a.peers() == {"b"})


def test_locks_and_reservations_between_mounts(pair: tuple[Running, Running]) -> None:
    a, b = pair
    until(lambda: a.node.membership.others() and b.node.membership.others())
    with closing_mounts(a, b) as (at_a, at_b):
        until(lambda: at_a.link.statistics().near_peers == 1)
        until(lambda: at_b.link.statistics().near_peers == 1)
        take, drop = Range(1, WRITE), Range(1, UNLOCK)
        for number in range(20, 30):
            ino = Ino(number)
            at_a.link.lock(ino, take, is_flock=False, wait=True)
            assert at_b.link.test_lock(ino, take, is_flock=False) == take
            with pytest.raises(WouldBlock):
                at_b.link.lock(ino, take, is_flock=False, wait=False)
            with pytest.raises(Interrupted):
                at_b.link.lock(
                    ino, take, is_flock=False, wait=True, cancelled=lambda: True
                )
            at_b.link.lock(ino, take, is_flock=True, wait=False)
            at_a.link.lock(ino, drop, is_flock=False, wait=False)
            at_b.link.lock(ino, take, is_flock=False, wait=True)
            assert at_b.link.test_lock(ino, take, is_flock=False) is None
        for number in range(10):
            name = b"%d" % number
            assert at_a.link.reserve(ROOT_INO, name)
            assert not at_b.link.reserve(ROOT_INO, name)
            a.create(at_a.link, name)
        until(lambda: len(b.namespace.children(ROOT_INO)) == 10)
        assert not at_b.link.reserve(ROOT_INO, b"5")


@contextmanager
def local(node: Running, role: str) -> Iterator[Callable[..., list[FromNode]]]:
    """A connection with the link, by hand: sends, and gives what has come so far."""
    sock = links.connect(node.socket, role)
    sock.settimeout(0.2)
    reader, heard = FrameReader(), list[FromNode]()

    def say(*messages: object) -> list[FromNode]:
        sock.sendall(b"".join(pack(encode(message)) for message in messages))
        with suppress(TimeoutError):
            while count := sock.recv_into(reader.buffer()):
                heard.extend(decode_from_node(f.header) for f in reader.filled(count))
        return heard

    with closing(sock):
        yield say


FILE = LockKey(Ino(20), False)
HELD, FREE = Range(1, WRITE, 0, 9), Range(1, UNLOCK, 0, 9)
MORE = Range(1, WRITE, 20, 29)


def test_changes_of_locks_wait_for_the_list_they_overtook(
    pair: tuple[Running, Running],
) -> None:
    """The node has just started, or the worker has connected anew."""
    a, b = pair
    until(lambda: a.node.membership.others() and b.node.membership.others())
    with local(a, "worker") as worker, local(a, "call") as call:
        assert not call(Lock(1, FILE, FREE, False), Lock(2, FILE, MORE, False))
        worker(HeldLocks((HeldLock(FILE, HELD),)), Invalidated(1 << 40))
        until(lambda: call() == [LockDone(1), LockDone(2)])
        assert a.node.locking._mine == {FILE: [MORE]}
        with local(a, "worker") as worker, local(a, "call") as other:
            waits = Range(2, WRITE, 40, 49)
            other(Lock(3, FILE, waits, False))
            other(Cancel(3))
            worker(HeldLocks((HeldLock(FILE, MORE),)))
            assert not other()
            assert a.node.locking._mine == {FILE: [MORE]}


def test_changes_of_locks_wait_for_the_list_that_is_for_the_first_member(
    tmp_path: Path,
) -> None:
    a = Running(tmp_path / "a", "a", None)
    with local(a, "worker") as worker, local(a, "call") as call:
        worker(HeldLocks(()))
        until(lambda: Peers(0, 0, 0) in worker())
        b = Running(tmp_path / "b", "b", a.token)
        until(lambda: a.node.membership.others() and b.node.membership.others())
        assert not call(Lock(1, FILE, FREE, False))
        worker(HeldLocks((HeldLock(FILE, HELD), HeldLock(FILE, MORE))))
        until(lambda: call() == [LockDone(1)])
        assert a.node.locking._mine == {FILE: [MORE]}
    b.stop()
    a.stop()


# -- strangers -----------------------------------------------------------------------


def connect(node: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.port), LIMIT_S)


def still_serves(a: Running, b: Running) -> None:
    assert a.peers() == {"b"}
    assert b.peers() == {"a"}


def ends(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536):
            pass
    except (ConnectionError, ssl.SSLError):
        pass
    return True


def test_stranger_with_another_secret_gets_nothing(
    pair: tuple[Running, Running], tmp_path: Path
) -> None:
    a, b = pair
    stranger = identities.create(tmp_path / "s", "s", None)
    context = Contexts(stranger, tmp_path / "s" / "identity").client
    with pytest.raises(ssl.SSLError), closing(connect(a)) as raw:
        context.wrap_socket(raw)
    context.verify_mode = ssl.CERT_NONE
    with closing(connect(a)) as raw:
        try:
            tls = context.wrap_socket(raw)
            tls.send(b"x" * 100)
            assert tls.recv(10) == b""
        except (ssl.SSLError, ConnectionError):
            pass
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    with closing(connect(a)) as raw:
        try:
            tls = bare.wrap_socket(raw)
            tls.send(b"x" * 100)
            assert tls.recv(10) == b""
        except (ssl.SSLError, ConnectionError):
            pass
    still_serves(a, b)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\xff\xff" + bytes(300),
        b"\x16" + b"\xff" * 5000,
        bytes(range(256)) * 100,
        struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF),
        b"",
    ],
)
def test_random_bytes_are_dropped(pair: tuple[Running, Running], data: bytes) -> None:
    a, b = pair
    with closing(connect(a)) as sock:
        with suppress(OSError):  # it may have hung up already
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        assert ends(sock)
    still_serves(a, b)


def test_many_strangers_are_a_few_lines_of_the_log(
    pair: tuple[Running, Running],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = pair

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]

    with caplog.at_level(logging.INFO, "netnode.tcp"):
        for _ in range(3 * tcp.TOLD):
            with closing(connect(a)) as sock:
                sock.shutdown(socket.SHUT_WR)
                assert ends(sock)
        until(lambda: len(said()) == tcp.TOLD)
        monkeypatch.setattr(tcp, "TOLD_S", 0.0)
        with closing(connect(a)) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert ends(sock)
        until(lambda: len(said()) == tcp.TOLD + 2)
    assert said()[-2] == f"dropped {2 * tcp.TOLD} more connections of strangers"
    still_serves(a, b)


def member_socket(node: Running) -> ssl.SSLSocket:
    """What somebody with the secret but without manners could do."""
    contexts = Contexts(node.identity, node.directory / "identity")
    return contexts.client.wrap_socket(connect(node))


@pytest.mark.parametrize(
    "data",
    [struct.pack(">II", 0xFFFFFFFF, 0), struct.pack(">II", 4, 0) + b"\xc1" * 4],
)
def test_bad_frames_of_a_member_are_dropped(
    pair: tuple[Running, Running], data: bytes
) -> None:
    a, b = pair
    with closing(member_socket(a)) as sock:
        sock.sendall(data)
        assert ends(sock)
    still_serves(a, b)


class OddMember:
    """A member that greets as one does, and then says what it likes."""

    def __init__(self, directory: Path, node: Running) -> None:
        who = identities.create(directory, "odd", node.token)
        contexts = Contexts(who, directory / "identity")
        self.sock = contexts.client.wrap_socket(connect(node))
        hello = wire.Hello(3, 1, who.cluster, who.node_id, "odd", "control", 7)
        self.say(hello)

    def say(self, *messages: object) -> None:
        with suppress(OSError):  # it may have hung up already
            self.sock.sendall(b"".join(pack(wire.encode(m)) for m in messages))


def test_a_member_that_asks_and_takes_no_answers_is_dropped(
    pair: tuple[Running, Running],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = pair
    monkeypatch.setattr("netnode.connection.MAX_OWED_BYTES", 1 << 20)
    with closing_mounts(a, b):
        member = OddMember(tmp_path / "odd", a)
        with closing(member.sock), caplog.at_level(logging.WARNING):
            for _ in range(100):
                member.say(*[wire.AskBuckets()] * 100)
            until(lambda: "dropped odd: it asks for more than it takes" in caplog.text)
    still_serves(a, b)


@pytest.mark.parametrize(
    "saying",
    [
        lambda vector: wire.Ack(tuple(vector.items())),
        lambda vector: wire.Ping(5, vector),
    ],
    ids=["acknowledged", "had"],
)
def test_a_member_that_names_ever_more_nodes_is_dropped(
    pair: tuple[Running, Running],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    saying: Callable[[dict[NodeId, Seq]], object],
) -> None:
    a, b = pair
    member = OddMember(tmp_path / "odd", a)
    with closing(member.sock), caplog.at_level(logging.WARNING):
        for at in (1, 9001):
            nodes = range(at, at + 9000)
            member.say(saying({NodeId(node): Seq(1) for node in nodes}))
        until(lambda: "dropped odd: it knows of more than" in caplog.text)
    still_serves(a, b)


def test_what_a_member_says_that_we_made_leaves_us_numbers(
    pair: tuple[Running, Running], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = pair
    member = OddMember(tmp_path / "odd", a)
    with closing(member.sock), caplog.at_level(logging.WARNING):
        beyond = {NodeId(a.identity.node_id): MAX_SEQ}
        member.say(wire.Ping(1, {NodeId(77): Seq(5)}))  # then we ask for a delta
        member.say(*(wire.Delta(n, {}, (), beyond, True) for n in (0, 1)))
        until(lambda: "dropped odd: it says that this node made" in caplog.text)
    still_serves(a, b)
    with a.namespace.transaction() as t:
        t.put_member(a.identity.node_id, Member("a", ("n:1",)))
    assert t.tx is not None and t.tx.seq < 1 << 28


def test_silent_connections_are_ended(
    pair: tuple[Running, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    monkeypatch.setattr("netnode.connection.GREETING_S", 0.2)
    member = member_socket(a)  # while a handshake has its usual time
    monkeypatch.setattr(tcp, "HANDSHAKE_S", 0.2)
    silent = [connect(a) for _ in range(150)]
    for sock in silent[::2]:
        with suppress(OSError):  # it may have hung up already
            sock.sendall(b"\x16")
    still_serves(a, b)
    assert ends(member)
    for sock in silent:
        assert ends(sock)
        sock.close()
    still_serves(a, b)


# -- console -------------------------------------------------------------------------


def talk(node: Running, text: str) -> str:
    with closing(connect(node)) as sock:
        sock.sendall(text.encode())
        out = b""
        while data := sock.recv(65536):
            out += data
    return out.decode()


def test_console_of_old(pair: tuple[Running, Running]) -> None:
    said = talk(pair[0], "help\r\nstatus\r\npeers\r\nnonsense\r\nquit\r\n")
    assert "dfs node a" in said
    assert "inodes" in said
    assert " b " in said or "b  " in said
    assert "What is 'nonsense'?" in said
    assert said.endswith("Bye.\r\n")


def test_http_pages(pair: tuple[Running, Running]) -> None:
    head, _, body = talk(pair[0], "GET /status HTTP/1.1\r\n\r\n").partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200")
    status = json.loads(body)
    assert status["name"] == "a"
    assert status["peers"][0]["name"] == "b"
    assert 'dfs_peer_connected{name="b"' in talk(
        pair[0], "GET /metrics HTTP/1.0\r\n\r\n"
    )
    assert "<pre>" in talk(pair[0], "GET / HTTP/1.1\r\n\r\n")
    assert talk(pair[0], "GET /x HTTP/1.1\r\n\r\n").startswith("HTTP/1.1 404")
    assert talk(pair[0], "POST / HTTP/1.1\r\n\r\n").startswith("HTTP/1.1 405")


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost:4000", 200),
        ("127.0.0.1:4000", 200),
        ("[::1]:4000", 200),
        ("dfs.localhost", 200),
        (socket.gethostname(), 200),
        ("evil.example:4000", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.0.2.1", 403),
    ],
)
def test_a_web_page_whose_name_leads_here_reads_nothing(
    pair: tuple[Running, Running], host: str, code: int
) -> None:
    said = talk(pair[0], f"GET /status?now HTTP/1.1\r\nHost: {host}\r\n\r\n")
    assert said.startswith(f"HTTP/1.1 {code}")
    assert ("node_id" in said) == (code == 200)


def test_names_in_metrics_are_as_prometheus_reads_them(
    pair: tuple[Running, Running],
) -> None:
    status = pair[0].ask("status")
    assert isinstance(status, dict)
    status["peers"][0]["name"] = 'bür"o\n'
    assert '{name="bür\\"o\\\\n",node=' in metrics(status)


def test_text_from_elsewhere_gets_one_line(
    pair: tuple[Running, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "is_loopback", lambda remote: False)
    said = talk(pair[0], "status\r\n")
    assert said == "dfs: this port is for members of the cluster\r\n"


def has_ended(sock: socket.socket) -> bool:
    try:
        return ends(sock)
    except BlockingIOError:
        return False


def test_texts_are_bounded_in_number_and_in_what_is_not_read(
    pair: tuple[Running, Running],
) -> None:
    a, b = pair
    many = [connect(a) for _ in range(3 * tcp.TEXTS)]
    for sock in many:
        sock.sendall(b"help\n")
        sock.setblocking(False)
    until(lambda: sum(has_ended(sock) for sock in many) == 2 * tcp.TEXTS)
    assert "Bye" in talk(a, "quit\n")
    deaf = connect(a)
    deaf.settimeout(0.5)
    with pytest.raises(TimeoutError):
        while True:
            deaf.sendall(b"help\n" * 10_000)
    for sock in (*many, deaf):
        sock.close()
    still_serves(a, b)


def test_names_that_nobody_answers_for_hold_nothing_up(
    pair: tuple[Running, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than there are threads for the disk."""
    a, b = pair
    over = threading.Event()
    known = socket.getaddrinfo

    def silent(host: str, *args: object, **more: object) -> object:
        if not host.startswith("silent") or more.get("flags"):
            return known(host, *args, **more)  # type: ignore[arg-type]
        over.wait(LIMIT_S)
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr(tcp, "LOOKUP_S", 0.2)
    try:
        for number in range(50):
            a.ask("dial", f"silent{number}:1")
        until(lambda: len(unreached(a)) == 50)
        assert "not found in time" in unreached(a)[0]["error"]
        assert a.ask("digest")
        still_serves(a, b)
    finally:
        over.set()


# -- commands ------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".com", "ä_b"])
def test_a_name_that_is_none_fails_as_one_that_nobody_knows(
    pair: tuple[Running, Running], host: str
) -> None:
    a, _ = pair
    a.ask("dial", f"{host}:1")
    until(lambda: any(host in d["address"] for d in unreached(a)))
    assert a.peers() == {"b"}


def unreached(running: Running) -> list[dict[str, str]]:
    status = running.ask("status")
    assert isinstance(status, dict)
    found: list[dict[str, str]] = status["unreached"]
    return found


def test_commands_of_the_link(pair: tuple[Running, Running]) -> None:
    a, b = pair
    invited = a.ask("invite")
    assert isinstance(invited, dict)
    token = identities.decode_token(invited["token"])
    assert token == a.token
    assert a.ask("set", "replicas", "2") == {"replicas": 2}
    until(lambda: b.node.copies.of_cluster == 2)
    with pytest.raises(control.Refused, match="no command"):
        a.ask("nonsense")
    with pytest.raises(control.Refused, match="no member"):
        a.ask("forget", "nobody")
    until(lambda: len(a.namespace.members()) == 2)
    members = a.ask("members")
    assert isinstance(members, list)
    assert {m["name"] for m in members} == {"a", "b"}
    with pytest.raises(control.NotRunning):
        control.ask(a.directory / "other.sock", "status")


def test_forgotten_member_is_refused(pair: tuple[Running, Running]) -> None:
    a, _ = pair
    until(lambda: len(a.namespace.members()) == 2)
    with pytest.raises(control.Refused, match="b is connected; unmount it first"):
        a.ask("forget", "b")
    with pytest.raises(control.Refused, match="itself"):
        a.ask("forget", "a", "force")
    a.ask("forget", "b", "force")
    until(lambda: a.peers() == set())
    time.sleep(0.5)
    assert a.peers() == set()


def test_member_is_forgotten_by_its_id_where_two_have_its_name(
    pair: tuple[Running, Running],
) -> None:
    a, _ = pair
    until(lambda: len(a.namespace.members()) == 2)
    for number in (7, 8):
        a.namespace.put_member(NodeId(number), Member("away", ()))
    with pytest.raises(control.Refused, match=f"{7:016x}, {8:016x}"):
        a.ask("forget", "away")
    assert a.ask("forget", f"{7:016x}") == {"forgotten": f"{7:016x}"}
    assert a.ask("forget", "away") == {"forgotten": f"{8:016x}"}


# -- small things --------------------------------------------------------------------


def test_addresses() -> None:
    assert split_address("host:1") == ("host", 1)
    assert split_address("[::1]:2") == ("::1", 2)
    assert join_address("::1", 2) == "[::1]:2"
    for bad in ("host", "host:", "host:0", "host:99999", "host:x", "host:\u00b2"):
        with pytest.raises(OSError):
            split_address(bad)
    assert is_loopback("127.0.0.5") and is_loopback("::1")
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("10.0.0.1") and not is_loopback("")


@pytest.mark.parametrize("host", ["my..host", ".", "a" * 300])
def test_what_is_no_name_of_a_host_cannot_be_dialled(
    pair: tuple[Running, Running], host: str
) -> None:
    """As somebody mistyped it: every member is told, and dials it."""
    a, _ = pair
    a.ask("dial", f"{host}:1")
    until(lambda: any(host in d.last_error for d in a.node.dialler.failures()))
    assert a.peers() == {"b"}


def test_port_in_use_is_an_error() -> None:
    (first,) = bind("127.0.0.1", 0)
    with pytest.raises(OSError) as raised:
        bind("127.0.0.1", first.getsockname()[1])
    assert raised.value.errno == errno.EADDRINUSE
    first.close()
