"""Peers on the local network by multicast DNS, when `zeroconf` is installed.

Only members are of use: the service name carries the cluster id, and whoever is
found still has to prove its membership. zeroconf runs in its own threads; what it
finds is posted to the event loop.
"""

from __future__ import annotations

import ipaddress
import logging
from typing import Any

import trio

from netnode.service import Node
from netnode.tcp import join_address, split_address

log = logging.getLogger(__name__)

SERVICE = "_dfs._tcp.local."
LOOK_EVERY_S = 5.0
GOODBYE_S = 0.3
"""For telling the network that we leave; it finds out anyway."""


class Discovery:
    """Announces this node and offers what it finds as seeds."""

    def __init__(self, node: Node, cluster: bytes) -> None:
        self._node = node
        self._cluster = cluster.hex()[:16]

    async def run(self) -> None:
        """For ever, anew whenever the addresses of this machine change: zeroconf
        knows those it began with. At once over when there is no zeroconf."""
        try:
            import zeroconf
        except ImportError:
            log.info("no discovery on the local network: zeroconf is not installed")
            return
        while True:
            await self._until_moved(zeroconf, self._own())

    def _own(self) -> tuple[str, ...]:
        return self._node.settings.addresses(self._node.port)

    async def _until_moved(self, zeroconf: Any, own: tuple[str, ...]) -> None:
        token = trio.lowlevel.current_trio_token()
        found = None
        try:
            found = await trio.to_thread.run_sync(self._start, zeroconf, token, own)
        except Exception as error:
            log.info("no discovery on the local network now: %s", error)
        try:
            while self._own() == own:
                await trio.sleep(LOOK_EVERY_S)
        finally:
            with trio.move_on_after(GOODBYE_S) as scope:
                scope.shield = True
                if found is not None:
                    await trio.to_thread.run_sync(found.close, abandon_on_cancel=True)

    def _start(
        self, zeroconf: Any, token: trio.lowlevel.TrioToken, own: tuple[str, ...]
    ) -> Any:
        service = zeroconf.Zeroconf()
        try:
            self._offer(service, zeroconf, own)
            self._browse(service, zeroconf, token)
        except BaseException:
            service.close()
            raise
        return service

    def _offer(self, service: Any, zeroconf: Any, own: tuple[str, ...]) -> None:
        name = f"{self._cluster}-{self._node.me:016x}.{SERVICE}"
        addresses = []
        for address in own:
            host, _ = split_address(address)
            try:
                addresses.append(ipaddress.ip_address(host).packed)
            except ValueError:
                continue
        info = zeroconf.ServiceInfo(
            SERVICE,
            name,
            port=self._node.port,
            addresses=addresses,
            properties={"cluster": self._cluster},
        )
        service.register_service(info, allow_name_change=True)

    def _browse(
        self, service: Any, zeroconf: Any, token: trio.lowlevel.TrioToken
    ) -> None:
        def changed(
            zeroconf: Any, service_type: str, name: str, state_change: Any
        ) -> None:
            if not name.startswith(self._cluster) or "Removed" in str(state_change):
                return
            found = zeroconf.get_service_info(service_type, name, 2000)
            if found is not None and found.port:
                for host in found.parsed_addresses():
                    token.run_sync_soon(self._found, join_address(host, found.port))

        zeroconf.ServiceBrowser(service, SERVICE, handlers=[changed])

    def _found(self, address: str) -> None:
        if address not in self._own() and self._node.membership.add_seed(address):
            log.info("found %s on the local network", address)
            self._node.dialler.look()
