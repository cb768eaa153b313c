"""The network as it is: TCP and TLS 1.3, one listening port for everything.

The first byte of a connection tells what it is: 0x16 begins a TLS handshake (a
peer), anything else is text for the console. Strangers are bounded: so many
connections may be undecided at a time, each for a few seconds; when there are
more, the oldest of them goes.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from fusefs.model.ids import NodeId
from netnode.tls import ALPN, Contexts, peer_node
from netnode.transport import (
    Accept,
    BrokenStream,
    SocketStream,
    Stream,
)

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
"""From accept to a proven peer; a handshake takes milliseconds."""
CONNECT_S = 4.0
LOOKUP_S = 6.0
"""For the address of a name: the resolver asks a server that is silent for 5 s."""
LOOKUPS = 8
"""At a time. One that was given up goes on in its thread, for as long as the resolver
tries: those threads are not the ones that the disk is worked on with."""
UNSENT_BYTES = 128 << 10
"""Taken by the kernel beyond what is under way (TCP_NOTSENT_LOWAT, tcp(7)): whatever is
urgent waits behind it."""
UNDECIDED = 128
"""Connections between accept and a proven peer."""
TEXTS = 32
"""Connections for text from this machine, whoever's program made them; and from
elsewhere, which get one line."""
TOLD, TOLD_S = 10, 60.0
"""Lines of the log about strangers, in so long: a scanner must not fill the disk."""
TLS_FIRST_BYTE = 0x16
BACKLOG = 256

Found = tuple[socket.AddressFamily, socket.SocketKind, int, tuple[object, ...]]
"""Family, kind, protocol and address, as getaddrinfo(3) gives them."""
Console = Callable[[SocketStream, bool], Awaitable[None]]
"""Serves a text connection; True: it comes from this machine."""


class TcpNetwork:
    """A Network. `console` gets what is not TLS."""

    def __init__(
        self, contexts: Contexts, host: str, port: int, console: Console
    ) -> None:
        self._contexts = contexts
        self._host = host
        self._port = port
        self._console = console
        self._undecided = Crowd(UNDECIDED)
        self._texts = {True: Crowd(TEXTS), False: Crowd(TEXTS)}
        self._lookups = trio.CapacityLimiter(LOOKUPS)
        self.strangers = 0
        """Connections dropped before they proved to be peers."""
        self._told_since = float("-inf")
        self._told = self._untold = 0

    # -- dialling --------------------------------------------------------------

    async def dial(self, address: str) -> Stream:
        """Raises OSError, BrokenStream (not a member, no answer in time)."""
        host, port = split_address(address)
        found = await self._look_up(host, port)
        last: OSError | BrokenStream = OSError(f"{host} has no address")
        for family, kind, proto, where in found:
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, proto)
            try:
                with trio.fail_after(CONNECT_S):
                    await _connect(sock, where)
                    return await self._handshake(sock, str(where[0]), server=False)
            except trio.TooSlowError:
                last = BrokenStream(f"{address} did not answer in time")
            except (OSError, BrokenStream) as error:
                last = error
            except BaseException:
                sock.close()
                raise
            sock.close()
        raise last

    async def _look_up(self, host: str, port: int) -> list[Found]:
        """Raises OSError, BrokenStream (no answer in time)."""
        try:
            try:
                return addresses(host, port, socket.AI_NUMERICHOST)
            except socket.gaierror:  # it is a name
                with trio.fail_after(LOOKUP_S):
                    return await trio.to_thread.run_sync(
                        addresses, host, port, abandon_on_cancel=True,
                        limiter=self._lookups,
                    )  # fmt: skip
        except trio.TooSlowError:
            raise BrokenStream(f"the address of {host} was not found in time") from None
        except ValueError as error:  # an empty or too long part, as of "a..b", or a NUL
            raise OSError(errno.EINVAL, f"{host!r} is no host's name") from error

    # -- listening -------------------------------------------------------------

    async def listen(
        self, accept: Accept, *, task_status: trio.TaskStatus[int]
    ) -> None:
        sockets = bind(self._host, self._port)
        port = int(sockets[0].getsockname()[1])
        async with trio.open_nursery() as nursery:
            for sock in sockets:
                nursery.start_soon(self._accept_for_ever, sock, accept, nursery)
            task_status.started(port)

    async def _accept_for_ever(
        self, listener: socket.socket, accept: Accept, nursery: trio.Nursery
    ) -> None:
        failed = ""
        try:
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    sock, where = listener.accept()
                    failed = ""
                except BlockingIOError:
                    continue
                except OSError as error:
                    # Out of descriptors: serve those we have, try again soon.
                    if failed != (failed := str(error)):
                        log.warning("accepting a connection failed: %s", error)
                    await trio.sleep(0.1)
                    continue
                nursery.start_soon(self._serve, sock, str(where[0]), accept)
        finally:
            listener.close()

    async def _serve(self, sock: socket.socket, remote: str, accept: Accept) -> None:
        """One connection, from accept to its end. Never raises."""
        try:
            stream = await self._decide(sock, remote)
        except (OSError, BrokenStream) as error:
            self._tell_of_stranger(f"{remote}: {error}")
            sock.close()
            return
        except BaseException:
            sock.close()
            raise
        try:
            if stream.node is None:
                local = is_loopback(remote)
                with self._texts[local].one():
                    await self._console(stream, local)
            else:
                await accept(stream)
        except Exception:
            log.exception("serving %s failed", remote)
        finally:
            stream.close()

    def _tell_of_stranger(self, what: str) -> None:
        self.strangers += 1
        now = trio.current_time()
        if now - self._told_since >= TOLD_S:
            if self._untold:
                log.info("dropped %d more connections of strangers", self._untold)
            self._told_since, self._told, self._untold = now, 0, 0
        if self._told < TOLD:
            self._told += 1
            log.info("dropped a connection from %s", what)
        else:
            self._untold += 1

    async def _decide(self, sock: socket.socket, remote: str) -> SocketStream:
        """A peer, or a text connection (without a node)."""
        sock.setblocking(False)
        with self._undecided.one(HANDSHAKE_S):
            if await _first_byte(sock) == TLS_FIRST_BYTE:
                return await self._handshake(sock, remote, server=True)
            return SocketStream(sock, plain_address(remote), None)
        raise BrokenStream("it did not say who it is in time")

    async def _handshake(
        self, sock: socket.socket, remote: str, *, server: bool
    ) -> SocketStream:
        """Mutual TLS. Raises BrokenStream when the other side is no member."""
        tune(sock)
        context = self._contexts.server if server else self._contexts.client
        tls = context.wrap_socket(
            sock, server_side=server, do_handshake_on_connect=False
        )
        try:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await trio.lowlevel.wait_readable(tls)
                except ssl.SSLWantWriteError:
                    await trio.lowlevel.wait_writable(tls)
            node = peer_node(tls)
            if node is None or tls.selected_alpn_protocol() != ALPN:
                raise BrokenStream("it is no dfs node")
        except ssl.SSLError as error:
            tls.close()
            if error.reason is None:  # a second connection, closed for the first
                raise BrokenStream("it hung up while greeting") from error
            raise BrokenStream(f"no member of this cluster: {error.reason}") from error
        except BaseException:
            tls.close()
            raise
        return SocketStream(tls, plain_address(remote), NodeId(node))


class Crowd:
    """At most so many at a time: when there are more, the oldest of them goes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._scopes: dict[int, trio.CancelScope] = {}

    @contextmanager
    def one(self, limit_s: float = float("inf")) -> Iterator[None]:
        """Its work, which ends early where it has to go, or takes too long."""
        if len(self._scopes) >= self._most:
            self._scopes.pop(next(iter(self._scopes))).cancel()
        self._count += 1
        number = self._count
        with trio.move_on_after(limit_s) as scope:
            self._scopes[number] = scope
            try:
                yield
            finally:
                self._scopes.pop(number, None)


def addresses(host: str, port: int, flags: int = 0) -> list[Found]:
    """Raises OSError, ValueError (no name at all)."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, kind, proto, where) for family, kind, proto, _, where in found]


async def _first_byte(sock: socket.socket) -> int:
    while True:
        try:
            data = sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        if not data:
            raise BrokenStream("it said nothing")
        return data[0]


async def _connect(sock: socket.socket, where: tuple[object, ...]) -> None:
    sock.setblocking(False)
    code = sock.connect_ex(where)
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, errno.errorcode.get(code, "connect"))
    await trio.lowlevel.wait_writable(sock)
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, errno.errorcode.get(code, "connect"))


def tune(sock: socket.socket) -> None:
    """No waiting for more to send. How much is under way is the business of the kernel,
    which knows the line; what waits for that is little."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets; both families on one when no host is given. Raises
    OSError."""
    if not host:
        try:
            return [_bind_one(socket.AF_INET6, ("::", port), both=True)]
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
        return [_bind_one(socket.AF_INET, ("0.0.0.0", port))]
    out: list[socket.socket] = []
    for family, _, _, where in dict.fromkeys(addresses(host, port)):
        address = (where[0], out[0].getsockname()[1] if out else port)
        out.append(_bind_one(socket.AddressFamily(family), address))
    return out


def _bind_one(
    family: socket.AddressFamily, where: tuple[object, ...], both: bool = False
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def plain_address(remote: str) -> str:
    """An IPv4 address that came in over IPv6 as itself."""
    return remote.removeprefix("::ffff:") if "." in remote else remote


def is_loopback(remote: str) -> bool:
    try:
        return ipaddress.ip_address(plain_address(remote).split("%")[0]).is_loopback
    except ValueError:
        return False


def split_address(address: str) -> tuple[str, int]:
    """ "host:port", "[v6]:port". Raises OSError for anything else."""
    host, colon, port = address.rpartition(":")
    is_number = port.isascii() and port.isdigit() and len(port) <= 5
    if not colon or not is_number or not 0 < int(port) < 65536:
        raise OSError(errno.EINVAL, f"{address!r} is not host:port")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
