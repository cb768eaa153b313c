"""Keeps dialling everyone we should be connected to, each with its own back-off."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection

import trio

from fusefs.model.ids import NodeId
from netnode.connection import Refused
from netnode.core.backoff import Backoff
from netnode.core.membership import Membership, Target
from netnode.environment import Environment
from netnode.transport import BrokenStream
from netnode.wire.frames import ProtocolError

log = logging.getLogger(__name__)

STEADY_S = 5.0
"""A connection that lived this long was a success."""
FATAL_PAUSE_S = 30.0
"""After a refusal that will be repeated (another cluster, a wrong clock)."""

Attempt = Callable[[str, NodeId | None], Awaitable[None]]
"""Dial an address and serve the connection until it ends; raises when it fails."""


class Dialling:
    """One target: what was tried and what came of it."""

    def __init__(self, target: Target, environment: Environment) -> None:
        self.target = target
        self.backoff = Backoff(environment.rng.uniform)
        self.attempts = 0
        self.last_error = ""
        self.logged: dict[str, str] = {}
        """By address: each has its own reason, said once."""
        self.hurry = trio.Event()


class Dialler:
    """`attempt` does the work; `connected` says whom not to dial."""

    def __init__(
        self,
        membership: Membership,
        environment: Environment,
        connected: Callable[[], Collection[NodeId]],
        attempt: Attempt,
    ) -> None:
        self._membership = membership
        self._environment = environment
        self._connected = connected
        self._attempt = attempt
        self._active: dict[str, Dialling] = {}
        self._look = trio.Event()
        self.tried_all = False
        """Everyone known at the start was tried once: who is away is away."""

    def look(self) -> None:
        """Something changed: members, addresses, connections."""
        self._look.set()

    def hurry(self, node: NodeId) -> None:
        """It is known to be there: dial now."""
        dialling = self._active.get(str(node))
        if dialling is not None:
            dialling.backoff.reset()
            dialling.hurry.set()
        self.look()

    def failures(self) -> list[Dialling]:
        """Targets that could not be reached, for status."""
        return [d for d in self._active.values() if d.last_error]

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._look = trio.Event()
                for target in self._targets():
                    if target.key not in self._active:
                        dialling = Dialling(target, self._environment)
                        self._active[target.key] = dialling
                        nursery.start_soon(self._keep_dialling, dialling)
                self._note_tried()
                with trio.move_on_after(1.0):
                    await self._look.wait()

    def _targets(self) -> list[Target]:
        return self._membership.targets(self._connected())

    def _wanted(self, dialling: Dialling) -> Target | None:
        for target in self._targets():
            if target.key == dialling.target.key:
                return target
        return None

    def _note_tried(self) -> None:
        if not self.tried_all:
            self.tried_all = all(d.attempts for d in self._active.values())

    async def _keep_dialling(self, dialling: Dialling) -> None:
        try:
            while (target := self._wanted(dialling)) is not None:
                pause = await self._try_addresses(dialling, target)
                self._note_tried()
                dialling.hurry = trio.Event()
                with trio.move_on_after(pause):
                    await dialling.hurry.wait()
        finally:
            self._active.pop(dialling.target.key, None)

    async def _try_addresses(self, dialling: Dialling, target: Target) -> float:
        """One attempt per address, or until connected; how long to pause."""
        for address in target.addresses:
            if target.node is not None and target.node in self._connected():
                return 0.0
            began = self._environment.now()
            try:
                await self._attempt(address, target.node)
                error = ""
            except Refused as refused:
                error = f"refused: {refused}"
                if refused.fatal:
                    self._failed(dialling, address, error)
                    return FATAL_PAUSE_S
            except (OSError, BrokenStream, ProtocolError) as failure:
                error = str(failure) or type(failure).__name__
            except Exception as failure:  # of one target: the others are dialled
                self._environment.bug(f"dialling {address}")
                error = repr(failure)
            if self._environment.now() - began > STEADY_S and not error:
                dialling.backoff.reset()
            self._failed(dialling, address, error)
            if not error:
                break
        return dialling.backoff.next_s()

    def _failed(self, dialling: Dialling, address: str, error: str) -> None:
        dialling.attempts += 1
        if error and error != dialling.logged.get(address):
            log.info("dialling %s: %s", address, error)
        dialling.logged[address] = error
        dialling.last_error = error
