"""Plain text on the peers' port: telnet and HTTP, from this machine only.

Lines come in, lines go out; a first line that looks like HTTP gets one response.
Everything is bounded: line length, time between lines, lines that are not read.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import trio

from fusefs.plain import plain
from netnode.commands import Commands, Report
from netnode.tcp import is_loopback
from netnode.transport import BrokenStream, SocketStream

MAX_LINE_BYTES = 8192
"""An HTTP request's head of a browser fits."""
MOST_HEADERS = 100
IDLE_S = 300.0
"""A person may think."""
FIRST_S = 10.0
"""A program does not."""
LEAVE_S = 1.0
UNREAD_BYTES = 16 << 10
"""More than this, and the next line is not answered."""
REFUSAL = b"dfs: this port is for members of the cluster\r\n"
HELP = """\
status   this node, its data and its peers
peers    who is connected, how far and how far behind
help     this
quit     close the connection
"""


class Console:
    """Serves one text connection per call."""

    def __init__(self, commands: Callable[[], Commands]) -> None:
        self._commands = commands

    async def __call__(self, stream: SocketStream, local: bool) -> None:
        """Until it ends; never raises for what the other side does."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.run)
                if local:
                    await self._serve(stream)
                else:
                    stream.send_nowait(REFUSAL)
                await _leave(stream)
                nursery.cancel_scope.cancel()
        except* BrokenStream:
            pass

    async def _serve(self, stream: SocketStream) -> None:
        lines = _Lines(stream)
        first = await lines.next(FIRST_S)
        if first is not None and first.split(" ")[-1].startswith("HTTP/"):
            await self._http(stream, lines, first)
            return
        name = plain(self._commands().name)
        say(stream, f"This is dfs node {name}. Type help for help.\n")
        line = first
        while line is not None:
            if not await self._line(stream, line.strip().lower()):
                return
            with trio.move_on_after(IDLE_S) as unread:
                await stream.drained(UNREAD_BYTES)
            if unread.cancelled_caught:
                return
            line = await lines.next(IDLE_S)

    async def _line(self, stream: SocketStream, word: str) -> bool:
        commands = self._commands()
        match word:
            case "":
                pass
            case "help" | "?":
                say(stream, HELP)
            case "status":
                say(stream, status_page(await commands.status()))
            case "peers":
                say(stream, peers_page(await commands.peers()))
            case "quit" | "exit" | "bye":
                say(stream, "Bye.\n")
                return False
            case _:
                say(stream, f"What is {word[:40]!r}? Type help for help.\n")
        return True

    async def _http(self, stream: SocketStream, lines: _Lines, first: str) -> None:
        host = ""
        for _ in range(MOST_HEADERS):
            line = await lines.next(FIRST_S)
            if not line:
                break
            name, _, value = line.partition(":")
            host = value.strip() if name.lower() == "host" else host
        method, path = (first.split(" ") + [""])[:2]
        path = path.partition("?")[0]
        commands = self._commands()
        if not is_called_here(host):
            code, kind, body = "403 Forbidden", "text/plain", "call it localhost\n"
        elif method not in ("GET", "HEAD"):
            code, kind, body = "405 Method Not Allowed", "text/plain", "GET only\n"
        elif path == "/status":
            text = json.dumps(await commands.status(), indent=1) + "\n"
            code, kind, body = "200 OK", "application/json", text
        elif path == "/metrics":
            text = metrics(await commands.status())
            code, kind, body = "200 OK", "text/plain; version=0.0.4", text
        elif path == "/":
            code, kind, body = "200 OK", "text/html", page(await commands.status())
        else:
            code, kind, body = "404 Not Found", "text/plain", "no such page\n"
        data = body.encode()
        head = (
            f"HTTP/1.1 {code}\r\nContent-Type: {kind}; charset=utf-8\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        stream.send_nowait(head.encode() + (data if method == "GET" else b""))


def is_called_here(host: str) -> bool:
    """Whether a request's Host is a name of this machine, which no page from
    elsewhere has: a browser shows what is here to a page whose own name leads here."""
    name = host.lower()
    name = name[1:].partition("]")[0] if name[:1] == "[" else name.partition(":")[0]
    ours = ("", "localhost", socket.gethostname().lower())
    return name in ours or name.endswith(".localhost") or is_loopback(name)


class _Lines:
    """Lines of a stream, each short and in time; None at the end."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._pending = b""
        self._memory = memoryview(bytearray(4096))

    async def next(self, limit_s: float) -> str | None:
        with trio.move_on_after(limit_s):
            while b"\n" not in self._pending:
                if len(self._pending) > MAX_LINE_BYTES:
                    return None
                count = await self._stream.receive_into(self._memory)
                if not count:
                    return None
                self._pending += self._memory[:count]
            line, _, self._pending = self._pending.partition(b"\n")
            return line.rstrip(b"\r").decode("utf-8", "replace")
        return None


async def _leave(stream: SocketStream) -> None:
    """Let the answer arrive: closing with bytes unread would reset it away."""
    unread = memoryview(bytearray(4096))
    with trio.move_on_after(LEAVE_S):
        await stream.drained(1)
        stream.half_close()
        for _ in range(64):
            if not await stream.receive_into(unread):
                break


def say(stream: SocketStream, text: str) -> None:
    stream.send_nowait(text.replace("\n", "\r\n").encode())


# -- pages ---------------------------------------------------------------------------


def status_page(status: Report) -> str:
    shown = ("name", "node_id", "mountpoint", "sync", "inodes", "bytes", "chunks")
    lines = [f"{key:<12} {plain(str(status[key]))}" for key in shown]
    lines += [f"{key:<12} {status[key]}" for key in ("chunk_bytes", "digest")]
    peers = status["peers"]
    assert isinstance(peers, list)
    connected = sum(1 for p in peers if p["connected"])
    lines.append(f"{'peers':<12} {connected} of {len(peers)} connected")
    return "\n".join(lines) + "\n"


def peers_page(peers: list[Report]) -> str:
    if not peers:
        return "no peers\n"
    lines = [f"{'name':<16} {'address':<24} {'rtt ms':>8} {'lag':>6}  state"]
    for peer in peers:
        rtt = peer["rtt_ms"] if peer["rtt_ms"] is not None else "-"
        lag = peer["lag"] if peer["lag"] is not None else "-"
        name, address = plain(str(peer["name"]))[:16], plain(str(peer["address"]))
        lines.append(f"{name:<16} {address:<24} {rtt:>8} {lag:>6}  {peer['state']}")
    return "\n".join(lines) + "\n"


METRICS = (
    ("inodes", "gauge"),
    ("bytes", "gauge"),
    ("chunks", "gauge"),
    ("chunk_bytes", "gauge"),
    ("to_replicate", "gauge"),
    ("fetching", "gauge"),
    ("locks", "gauge"),
    ("delegated_locks", "gauge"),
    ("received_bytes", "counter"),
    ("served_bytes", "counter"),
    ("served_chunks", "counter"),
    ("rejected_chunks", "counter"),
    ("patched_chunks", "counter"),
    ("saved_bytes", "counter"),
    ("applied", "counter"),
    ("early", "counter"),
    ("sent_messages", "counter"),
)


def metrics(status: Report) -> str:
    """Prometheus' text format."""
    lines: list[str] = []
    for key, kind in METRICS:
        name = f"dfs_{key}" + ("_total" if kind == "counter" else "")
        lines += [f"# TYPE {name} {kind}", f"{name} {status[key]}"]
    peers = status["peers"]
    assert isinstance(peers, list)
    lines.append("# TYPE dfs_peer_connected gauge")
    for peer in peers:
        name = json.dumps(plain(str(peer["name"])), ensure_ascii=False)
        label = f'{{name={name},node="{peer["node_id"]}"}}'
        lines.append(f"dfs_peer_connected{label} {int(bool(peer['connected']))}")
        if peer["rtt_ms"] is not None:
            lines.append(f"dfs_peer_rtt_ms{label} {peer['rtt_ms']}")
        if peer["lag"] is not None:
            lines.append(f"dfs_peer_lag{label} {peer['lag']}")
    return "\n".join(lines) + "\n"


def page(status: Report) -> str:
    """One page for a browser, refreshed now and then."""
    peers = status["peers"]
    assert isinstance(peers, list)
    text = _escape(status_page(status) + "\n" + peers_page(peers))
    title = _escape(plain(f"dfs {status['name']}"))
    return (
        f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
        f"<title>{title}</title><h1>{title}</h1><pre>{text}</pre>"
        '<p><a href="/status">status</a> <a href="/metrics">metrics</a></p>\n'
    )


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
