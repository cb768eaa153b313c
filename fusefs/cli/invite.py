"""dfs invite: a token with which another machine can join."""

from __future__ import annotations

import ipaddress
import sys

from fusefs.cli import asking, settings
from netnode.identity import decode_token

DESCRIPTION = """\
Prints one join token, for `./mount.sh DIR --join TOKEN` on another machine. Whoever
has it is a member of the cluster with all rights: hand it over like a password."""


def main(argv: list[str]) -> int:
    """The token is the only line on standard output."""
    parser = settings.Parser("invite", DESCRIPTION)
    parser.add_argument("directory", nargs="?", metavar="DIR", help="the mountpoint")
    settings.add_store(parser)
    store = settings.store_of(parser.parse_args(argv))
    answer = asking.node(store, "invite")
    token = answer["token"] if isinstance(answer, dict) else answer
    print(token)
    addresses = decode_token(str(token)).addresses
    if all(_is_loopback(address) for address in addresses):
        print(
            f"dfs invite: this token has only {', '.join(addresses)} in it: other "
            "machines cannot use it; mount with --advertise HOST",
            file=sys.stderr,
        )
    if sys.stdout.isatty():
        print("keep it secret: it gives full access", file=sys.stderr)
    return 0


def _is_loopback(address: str) -> bool:
    """Of host:port or [v6]:port. A name may be known elsewhere."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
