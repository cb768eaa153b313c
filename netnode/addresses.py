"""Under which addresses this machine can be reached by others."""

from __future__ import annotations

import socket
from collections.abc import Callable

from netnode.tcp import is_loopback, join_address

PROBES = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Documentation addresses (RFC 5737, RFC 3849): nothing is sent, the kernel only
says which address it would use for the default route."""


def _towards(family: int, target: str) -> str | None:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((target, 9))
            return str(sock.getsockname()[0])
    except OSError:
        return None


def _of_host_name() -> list[str]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(item[4][0]) for item in found]


def reachable(listen: str, port: int, advertise: str = "") -> tuple[str, ...]:
    """host:port, most useful first. A node on a machine without a network is at
    least reachable from the machine itself."""
    if advertise:
        return (advertise if ":" in advertise else join_address(advertise, port),)
    if listen and listen not in ("0.0.0.0", "::"):
        return (join_address(listen, port),)
    hosts = [host for host in (_towards(*probe) for probe in PROBES) if host]
    hosts += _of_host_name()
    outside = [h for h in dict.fromkeys(hosts) if not is_loopback(h) and "%" not in h]
    return tuple(join_address(h, port) for h in outside or ["127.0.0.1"])


def for_node(listen: str, advertise: str) -> Callable[[int], tuple[str, ...]]:
    """The same as a function of the port, looked up once per port."""
    known: dict[int, tuple[str, ...]] = {}

    def addresses(port: int) -> tuple[str, ...]:
        if not port:
            return ()
        if port not in known:
            known[port] = reachable(listen, port, advertise)
        return known[port]

    return addresses
