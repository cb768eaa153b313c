"""The addresses of this machine's interfaces, as the kernel tells them in /proc/net.

Only those that are up have any there. Elsewhere than on Linux nothing is found.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

FIB_TRIE = Path("/proc/net/fib_trie")
IF_INET6 = Path("/proc/net/if_inet6")
GLOBAL_SCOPE = 0x00
UNFIT = 0x01 | 0x08 | 0x20 | 0x40
"""Flags: temporary (another one tomorrow), duplicate, deprecated, tentative.
Source: linux/if_addr.h."""


def outside() -> list[str]:
    """Addresses that another machine may reach, IPv4 first."""
    found = [*ipv4(_text(FIB_TRIE)), *ipv6(_text(IF_INET6))]
    return [host for host in dict.fromkeys(found) if _leads_here(host)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def ipv4(fib_trie: str) -> Iterator[str]:
    """Local addresses in the routing tables: leaves with a line "/32 host LOCAL"."""
    leaf = ""
    for line in fib_trie.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            leaf = words[1]
        elif words == ["/32", "host", "LOCAL"]:
            yield leaf


def ipv6(if_inet6: str) -> Iterator[str]:
    """Lines of address, interface, prefix length, scope, flags (hexadecimal), name."""
    for line in if_inet6.splitlines():
        address, _, _, scope, flags, _ = line.split()
        if int(scope, 16) == GLOBAL_SCOPE and not int(flags, 16) & UNFIT:
            yield str(ipaddress.IPv6Address(bytes.fromhex(address)))


def _leads_here(host: str) -> bool:
    ip = ipaddress.ip_address(host)
    return not (ip.is_loopback or ip.is_link_local)
