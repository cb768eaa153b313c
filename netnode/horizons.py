"""Says when deletes may be forgotten (core/horizon.py): the member of the lowest id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from fusefs.model.ids import NodeId, Seq
from fusefs.model.tx import Tx
from fusefs.model.vector import Vector, dominates
from fusefs.namespace.namespace import Namespace
from netnode.core import horizon as horizons
from netnode.core.horizon import Horizon
from netnode.core.membership import Membership
from netnode.core.timetable import Row, TimeTable
from netnode.environment import Environment
from netnode.peers import Peer
from netnode.wire.messages import OnDisk, Ping


class Horizons:
    """Every node says of itself what it had a round ago and still has: that is on its
    disk since."""

    def __init__(
        self,
        namespace: Namespace,
        membership: Membership,
        environment: Environment,
        surely_here: Callable[[], Vector],
        publish: Callable[[Tx], None],
        give_up_deltas: Callable[[], Awaitable[None]],
    ) -> None:
        """`surely_here`: the vector, without what a power cut took (`Losses.told`);
        `give_up_deltas`: nothing is forgotten in the middle of one."""
        self._me = namespace.node_id
        self._namespace = namespace
        self._membership = membership
        self._environment = environment
        self._surely_here = surely_here
        self._publish = publish
        self._give_up_deltas = give_up_deltas
        self._table = TimeTable()
        self._last = namespace.horizon()
        self._written = environment.now()

    async def run(self) -> None:
        """For ever. What the last run had, a power cut or a restored copy may have
        taken: the others hear at once that nothing is sure yet."""
        here: Vector = {}
        own = Seq(0)
        while True:
            self._say(own, here)
            await self._give_up_deltas()
            members = self._membership.members()
            self._table.keep(members)
            if self._me == members[0]:
                await self._forget()
            here = self._surely_here()
            # Behind it: who does more from here on knows what is in the vector.
            own = self._namespace.vector().get(self._me, Seq(0))
            await trio.sleep(horizons.EVERY_S)

    # -- what is on the disks ------------------------------------------------------

    def _say(self, own: Seq, on_disk: Vector) -> None:
        row = self._table.rows.get(self._me)
        if row is None or (row.own, row.vector) != (own, on_disk):
            at_ms = self._environment.wall_ms()
            if row is not None:
                at_ms = max(at_ms, row.at + 1)  # the clock may have been set back
            self._table.learn(self._me, Row(at_ms, own, on_disk))

    def rows_for(self, peer: Peer) -> tuple[OnDisk, ...]:
        """What the next heartbeat tells it: of this disk, and of those of members that
        it is not connected to."""
        without = (peer.id, *(n for n in peer.outgoing.links if n != self._me))
        news = self._table.news(peer.rows, without)
        return tuple(
            OnDisk(node, row.at, row.own, dict(row.vector)) for node, row in news
        )

    def told(self, peer: Peer, ping: Ping) -> None:
        """A heartbeat told this."""
        for row in ping.on_disk:
            if row.node != self._me:
                self._table.learn(row.node, Row(row.at, row.own, row.vector))
        self.admits(peer, ping.vector)

    def admits(self, peer: Peer, vector: Vector) -> bool:
        """False, and the connection is over: deletes were forgotten that it does not
        know. Its store was restored from a copy, and its Hello came just before."""
        older = horizons.is_older(vector, self._namespace.horizon(), peer.id)
        if older:
            peer.close("deletes were forgotten that it does not know")
        return not older

    # -- what all have -------------------------------------------------------------

    async def _forget(self) -> None:
        found = self._all_have()
        since_s = self._environment.now() - self._written
        if not found or not horizons.worth_writing(self._last, found.upto, since_s):
            return
        while found and not dominates(self._last, found.upto):
            self._last = await self._step(found)
            self._written = self._environment.now()
            if not dominates(self._namespace.horizon(), self._last):
                return
            await trio.sleep(horizons.STEP_PAUSE_S)
            found = self._all_have()  # many steps later one may say that it has less

    def _all_have(self) -> Horizon | None:
        """None, too, in the middle of a delta: it may bring a member whose earlier
        register its part of the vector covers already."""
        if self._namespace.in_delta():
            return None
        members = self._membership.members()
        return horizons.horizon(members, self._table.rows, self._namespace.vector())

    async def _step(self, found: Horizon) -> dict[NodeId, Seq]:
        """A horizon that is not too much to forget at once; gives it."""
        upto = await self._environment.offload(
            lambda: self._namespace.horizon_towards(found.upto, horizons.STEP_REGISTERS)
        )
        tx = self._namespace.put_horizon(upto, found.after)
        if tx is not None:
            self._publish(tx)
        return upto
