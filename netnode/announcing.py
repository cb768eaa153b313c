"""Our member register: what other members know of us while we are not connected."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from fusefs.errors import Corrupt
from fusefs.model.records import Member
from fusefs.model.tx import Tx
from fusefs.namespace.namespace import Namespace
from netnode.core.membership import Membership

log = logging.getLogger(__name__)

ANNOUNCE_EVERY_S = 30.0
"""Each change is a transaction that all members apply."""


class Announcing:
    """`addresses`: ours at this moment; `publish`: to all peers."""

    def __init__(
        self,
        namespace: Namespace,
        membership: Membership,
        name: str,
        addresses: Callable[[], tuple[str, ...]],
        publish: Callable[[tuple[Tx]], None],
    ) -> None:
        self._namespace = namespace
        self._membership = membership
        self._name = name
        self._addresses = addresses
        self._publish = publish

    async def run(self) -> None:
        """For ever: who was not connected when this machine got another network learns
        of it from the register."""
        while True:
            await trio.sleep(ANNOUNCE_EVERY_S)
            self.look()

    def look(self) -> None:
        """The register says our name and addresses."""
        addresses = self._addresses()
        known = self._membership.member(self._namespace.node_id)
        if known is not None and known.forgotten:
            return
        if known is None or (known.name, known.addresses) != (self._name, addresses):
            try:
                self._put(Member(self._name, addresses))
            except Corrupt as error:  # a peer brings it back
                log.error("our name and addresses are as they were: %s", error)

    def _put(self, member: Member) -> None:
        tx = self._namespace.put_member(self._namespace.node_id, member)
        if tx is not None:
            self._publish((tx,))
