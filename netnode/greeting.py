"""What a Hello decides: whether its sender may be a peer, and where others are."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fusefs.model.hlc import MAX_AHEAD_MS, physical_ms
from fusefs.model.ids import NodeId
from fusefs.model.vector import Vector
from netnode.core.clones import Clones
from netnode.core.horizon import is_older
from netnode.core.membership import Membership
from netnode.environment import Environment
from netnode.tcp import join_address
from netnode.wire.messages import Hello

log = logging.getLogger(__name__)

REJOIN = "it can come back as a new node: dfs mount --join TOKEN"
"""Ends the reasons after which a node cannot go on with its namespace."""


SAID_S = 3600.0
"""It dials again every half a minute, and is refused each time: said once an hour."""


class Unwanted(Exception):
    """The other node must not be a peer; the message is told to both sides."""


class Greeter:
    """Judges and learns from the Hellos of others."""

    def __init__(
        self,
        me: NodeId,
        name: str,
        membership: Membership,
        environment: Environment,
        horizon: Callable[[], Vector],
    ) -> None:
        self._me = me
        self._horizon = horizon
        self._name = name
        self._membership = membership
        self._environment = environment
        self._said: dict[NodeId, float] = {}
        self._clones = Clones()

    def check(self, theirs: Hello) -> None:
        """Raises Unwanted when its sender cannot be a peer."""
        reason = self._objection(theirs)
        if not reason:
            self._said.pop(theirs.node, None)
            return
        now = self._environment.now()
        if now - self._said.get(theirs.node, float("-inf")) >= SAID_S:
            self._said[theirs.node] = now
            log.warning("refused %s (%x): %s", theirs.name, theirs.node, reason)
        raise Unwanted(reason)

    def _objection(self, theirs: Hello) -> str:
        """Why not, for a person to read."""
        if theirs.node == self._me:
            return "it has the node id of this node: was a store copied?"
        if self._membership.forgotten(theirs.node):
            return f"it was removed from the cluster (dfs forget); {REJOIN}"
        if theirs.channel == "control":
            self._clones.meet(theirs.node, theirs.boot)
        if self._clones.is_copy(theirs.node, theirs.boot):
            return f"its store is a copy of one that is in use; {REJOIN}"
        if theirs.channel == "control" and is_older(
            theirs.vector, self._horizon(), theirs.node
        ):
            return f"its store is older than what all members agreed on; {REJOIN}"
        now_ms, most_s = self._environment.wall_ms(), MAX_AHEAD_MS // 1000
        ahead_s = round((theirs.now_ms - now_ms) / 1000)
        if ahead_s > most_s:
            return (
                f"the clock of {theirs.name} is {ahead_s} s ahead of that of "
                f"{self._name}; at most {most_s} s are accepted"
            )
        written_s = round((physical_ms(theirs.hlc) - now_ms) / 1000)
        if written_s > most_s:
            return (
                f"something was written at {theirs.name} {written_s} s from now, when "
                f"its clock was wrong: it is left out until then, or {REJOIN}"
            )
        return ""

    def learn(self, theirs: Hello, remote: str, dialled: str | None) -> None:
        """Where it and those it knows can be dialled. `remote`: whence it dialled
        us, `dialled`: where we reached it."""
        node, membership = theirs.node, self._membership
        if dialled is not None:
            membership.seed_is(dialled, node)
            membership.learn_addresses(node, (dialled,), confirmed=True)
        elif theirs.port and remote:
            membership.learn_addresses(node, (join_address(remote, theirs.port),))
        membership.learn_addresses(node, theirs.addresses)
        for other, addresses in theirs.members.items():
            membership.learn_addresses(other, addresses)
