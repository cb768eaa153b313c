"""Discovery, with a zeroconf that only counts."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from netnode import discovery
from netnode.discovery import Discovery
from netnode.service import Node

LIMIT_S = 10.0


class Multicast:
    """The module zeroconf. `up`: there is a network to join."""

    def __init__(self) -> None:
        self.up = True
        self.offered: list[object] = []
        self.tries = self.running = 0

    def Zeroconf(self) -> Multicast:
        self.running += 1
        return self

    def ServiceInfo(self, *_: object, addresses: list[bytes], **__: object) -> object:
        return [".".join(map(str, address)) for address in addresses]

    def ServiceBrowser(self, *_: object, **__: object) -> None:
        pass

    def register_service(self, info: object, allow_name_change: bool) -> None:
        up, self.tries = self.up, self.tries + 1
        if not up:
            raise OSError(101, "Network is unreachable")
        self.offered.append(info)

    def close(self) -> None:
        self.running -= 1


def test_a_machine_that_gets_another_address_is_offered_by_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    multicast, addresses = Multicast(), ["192.0.2.1:4000"]
    monkeypatch.setitem(sys.modules, "zeroconf", multicast)  # type: ignore[arg-type]
    settings = SimpleNamespace(addresses=lambda port: tuple(addresses))
    node = cast(Node, SimpleNamespace(me=7, port=4000, settings=settings))

    monkeypatch.setattr(discovery, "LOOK_EVERY_S", 0.001)

    async def tried(times: int) -> None:
        while multicast.tries < times:
            await trio.sleep(0.001)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Discovery(node, b"c" * 16).run)
            with trio.fail_after(LIMIT_S):
                await tried(1)
                multicast.up = False
                addresses[0] = "127.0.0.1:4000"
                await tried(2)
                multicast.up = True
                addresses[0] = "192.0.2.9:4000"
                await tried(3)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert multicast.offered == [["192.0.2.1"], ["192.0.2.9"]]
    assert multicast.running == 0
