"""The summary of all registers that heartbeats carry, read once for each state, and the
task that sees to it that it tells of damage on this disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from fusefs.model.vector import Vector
from fusefs.namespace.namespace import Namespace
from netnode.environment import Environment

log = logging.getLogger(__name__)

VERIFY_S = 5.0
"""Between two looks at a small database: one takes milliseconds."""
VERIFY_REGISTER_S = 0.0015
"""More for each register: one takes some 5 us to look at, so a third of a percent of a
core, and half an hour for a million."""


class Digest:
    """See the module."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._changes = 0
        self._known: tuple[tuple[object, int], bytes] | None = None

    def changed(self) -> None:
        """Something was written, or damage found: what is remembered is not true."""
        self._changes += 1

    def of(self, vector: Vector) -> bytes:
        """Of exactly this vector; empty when something came in between."""
        key = (tuple(sorted(vector.items())), self._changes)
        if self._known is None or self._known[0] != key:
            digest = self._namespace.digest()
            if self._namespace.vector() != vector:
                return b""
            self._known = (key, digest)
        return self._known[1]


async def verify_registers(
    namespace: Namespace, environment: Environment, corrected: Callable[[], None]
) -> None:
    """Damage on this disk shows in the digest, so that a heartbeat finds it."""
    while True:
        damaged = await environment.offload(namespace.verify)
        if damaged:
            log.error("registers in %d of 256 buckets are damaged", damaged)
            corrected()
        count = await environment.offload(namespace.registers_count)
        await trio.sleep(VERIFY_S + VERIFY_REGISTER_S * count)
