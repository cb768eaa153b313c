"""Who belongs to the cluster, under which addresses, and whom to dial.

Nodes are known from member registers, from what peers tell in their Hello, and as
bare addresses (seeds: the join token, discovery) until a Hello says whose they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from fusefs.model.ids import NodeId
from fusefs.model.records import Member
from fusefs.model.vector import MAX_NODES

MAX_ADDRESSES = 16
"""Remembered per node; the most recently confirmed first."""
MAX_SEEDS = 64
RACE_S = 5.0
"""Two connections of one pair older than this apart were no simultaneous dial."""


class Target(NamedTuple):
    """Someone to dial: a node, or a seed address whose node is unknown."""

    node: NodeId | None
    addresses: tuple[str, ...]

    @property
    def key(self) -> str:
        return str(self.node) if self.node is not None else self.addresses[0]


class Link(NamedTuple):
    """What decides between two connections with the same peer."""

    dialled_by: NodeId
    boot: int
    since: float


def keep_new(old: Link, new: Link, me: NodeId, peer: NodeId) -> bool:
    """Whether the second connection replaces the first: both ends decide alike.

    A new process of the peer, or the same side dialling again, means the first
    is dead. Of a simultaneous dial the one from the lower node id stays.
    """
    if new.boot != old.boot or new.dialled_by == old.dialled_by:
        return True
    if new.since - old.since > RACE_S:
        return True
    return new.dialled_by == min(me, peer)


class Membership:
    """See the module. Addresses are "host:port"."""

    def __init__(self, me: NodeId, seeds: Iterable[str] = ()) -> None:
        self.me = me
        self._members: dict[NodeId, Member] = {}
        self._addresses: dict[NodeId, list[str]] = {}
        self._seeds: dict[str, NodeId | None] = {}
        for address in seeds:
            self.add_seed(address)

    # -- learning --------------------------------------------------------------

    def learn_members(self, members: Mapping[NodeId, Member]) -> None:
        """The member registers as they are now."""
        self._members = dict(members)

    def learn_addresses(
        self, node: NodeId, addresses: Collection[str], confirmed: bool = False
    ) -> bool:
        """More addresses of a node; True when one is new: then it is tried before those
        heard of earlier. `confirmed`: it answered there just now, so it is tried
        first."""
        if node == self.me:
            return False
        if node not in self._addresses and len(self._addresses) >= MAX_NODES:
            return False
        known = self._addresses.setdefault(node, [])
        new = [a for a in dict.fromkeys(addresses) if a not in known]
        if confirmed:
            known[:] = [*addresses, *(a for a in known if a not in addresses)]
        else:
            known[1:1] = new
        del known[MAX_ADDRESSES:]
        return bool(new)

    def add_seed(self, address: str) -> bool:
        """An address that may be a node's; True when it is new."""
        if address in self._seeds:
            return False
        if len(self._seeds) >= MAX_SEEDS:
            known = next((a for a, n in self._seeds.items() if n is not None), None)
            if known is None:
                return False
            del self._seeds[known]  # dialled as that node since
        self._seeds[address] = None
        return True

    def seed_is(self, address: str, node: NodeId) -> None:
        """A Hello came from the seed: from now on it is dialled as that node."""
        if address in self._seeds:
            self._seeds[address] = node

    # -- answers ---------------------------------------------------------------

    def members(self) -> list[NodeId]:
        """Everyone who counts for placement: not forgotten, ourselves included."""
        nodes = {n for n, m in self._members.items() if not m.forgotten}
        nodes.add(self.me)
        return sorted(nodes)

    def others(self) -> list[NodeId]:
        return [n for n in self.members() if n != self.me]

    def member(self, node: NodeId) -> Member | None:
        return self._members.get(node)

    def forgotten(self, node: NodeId) -> bool:
        member = self._members.get(node)
        return member is not None and member.forgotten

    def name(self, node: NodeId) -> str:
        member = self._members.get(node)
        return member.name if member else f"{node:x}"

    def addresses(self, node: NodeId) -> tuple[str, ...]:
        """Where to dial a node: what worked last, then what it announced."""
        out = list(self._addresses.get(node, ()))
        member = self._members.get(node)
        if member is not None:
            out += [a for a in member.addresses if a not in out]
        return tuple(out)

    def told(self, connected: Collection[NodeId]) -> dict[NodeId, tuple[str, ...]]:
        """Addresses to tell a new peer: of those we are connected to."""
        return {n: self.addresses(n)[:4] for n in connected}

    def targets(self, connected: Collection[NodeId]) -> list[Target]:
        """Everyone to dial now."""
        out: list[Target] = []
        for node in sorted({*self._members, *self._addresses}):
            if node == self.me or node in connected or self.forgotten(node):
                continue
            addresses = self.addresses(node)
            if addresses:
                out.append(Target(node, addresses))
        reached = {a for node in connected for a in self.addresses(node)}
        for address, owner in self._seeds.items():
            if owner is None and address not in reached:
                out.append(Target(None, (address,)))
        return out
