"""Under which addresses this machine can be reached by others."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

from netnode import interfaces
from netnode.tcp import is_loopback, join_address

PROBES = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Documentation addresses (RFC 5737, RFC 3849): nothing is sent, the kernel only
says which address it would use for the default route."""
MOST = 8
"""A token is passed on by hand, and each address costs who joins an attempt."""


def _towards(family: int, target: str) -> str | None:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((target, 9))
            return str(sock.getsockname()[0])
    except OSError:
        return None


def reachable(listen: str, port: int, advertise: str = "") -> tuple[str, ...]:
    """host:port, most useful first: the default route's, then those of the other
    networks. A node on a machine without a network is at least reachable from the
    machine itself."""
    if advertise:
        return (_with_port(advertise, port),)
    if listen and listen not in ("0.0.0.0", "::"):
        return (join_address(listen, port),)
    hosts = [host for host in (_towards(*probe) for probe in PROBES) if host]
    hosts += interfaces.outside()
    if listen:  # all of one family
        hosts = [host for host in hosts if (":" in host) == (":" in listen)]
    outside = [h for h in dict.fromkeys(hosts) if not is_loopback(h)][:MOST]
    return tuple(join_address(h, port) for h in outside or ["127.0.0.1"])


def _with_port(advertise: str, port: int) -> str:
    try:
        ipaddress.IPv6Address(advertise)
    except ValueError:
        return advertise if ":" in advertise else join_address(advertise, port)
    return join_address(advertise, port)


def for_node(listen: str, advertise: str) -> Callable[[int], tuple[str, ...]]:
    """The same as a function of the port. Looked up each time: a network may come
    when the node runs."""

    def addresses(port: int) -> tuple[str, ...]:
        return reachable(listen, port, advertise) if port else ()

    return addresses
