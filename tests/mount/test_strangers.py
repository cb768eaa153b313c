"""Who has no credential, or speaks garbage, is refused; the others are served on."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
from contextlib import closing

import pytest

from tests.lib.cluster import Cluster, Node

pytestmark = pytest.mark.mount


def dial(node: Node) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.port), 10)


def still_serves(nodes: list[Node], number: int) -> None:
    """What A writes, B reads at once."""
    a, b = nodes
    (a.mnt / f"during-{number}").write_text(str(number))
    assert (b.mnt / f"during-{number}").read_text() == str(number)


def ended(sock: socket.socket) -> bool:
    """The other side closed, whatever it said before."""
    sock.settimeout(30)
    try:
        while sock.recv(65536):
            pass
    except OSError:
        pass
    return True


def speak_without_credential(context: ssl.SSLContext, raw: socket.socket) -> None:
    """Raises OSError when the server ends it, in the handshake or after."""
    with context.wrap_socket(raw) as secured:
        secured.settimeout(20)
        secured.sendall(struct.pack(">II", 1, 0) + b"\x90")
        assert secured.recv(1) == b"", "a stranger was answered"
        raise ConnectionResetError


def test_tls_without_the_clusters_certificate_is_refused(pair: list[Node]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["dfs/1"])
    with closing(dial(pair[0])) as raw, pytest.raises(OSError):
        speak_without_credential(context, raw)
    still_serves(pair, 1)


def test_a_member_of_another_cluster_is_refused(
    pair: list[Node], fresh: Cluster
) -> None:
    stranger = fresh.add("S").mount()
    before = {name for node in pair for name in node.connected()}
    stranger.ask("dial", f"127.0.0.1:{pair[0].port}")
    still_serves(pair, 2)
    assert stranger.connected() == set()
    assert {name for node in pair for name in node.connected()} == before


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 4096,
        b"\x16\x03\x01\xff\xff" + b"\x00" * 100,
        struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF) + b"x" * 1000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"\n" * 10_000,
    ],
)
def test_garbage_is_dropped(pair: list[Node], garbage: bytes) -> None:
    with closing(dial(pair[0])) as sock:
        try:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        assert ended(sock)
    still_serves(pair, 3)


def test_many_that_say_nothing_hold_nobody_up(pair: list[Node]) -> None:
    silent = [dial(pair[0]) for _ in range(100)]
    try:
        for sock in silent[::2]:
            sock.sendall(b"\x16")
        still_serves(pair, 4)
    finally:
        for sock in silent:
            sock.close()


def test_console_answers_loopback(pair: list[Node]) -> None:
    with closing(dial(pair[0])) as sock, sock.makefile("rw", newline="\r\n") as chat:
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(chat), daemon=True)
        for line in ("help", "status", "peers", "quit"):
            chat.write(line + "\n")
        chat.flush()
        reader.start()
        reader.join(30)
        assert not reader.is_alive(), "quit does not close"
    text = "".join(said)
    assert "help" in text
    assert "B" in text


def test_random_bytes_after_the_hello_of_tls(pair: list[Node]) -> None:
    for seed in range(20):
        with closing(dial(pair[seed % 2])) as sock:
            try:
                sock.sendall(b"\x16\x03\x01" + os.urandom(500 + seed))
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
    still_serves(pair, 5)
