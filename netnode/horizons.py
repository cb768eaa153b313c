"""Says when deletes may be forgotten (core/horizon.py): the member of the lowest id."""

from __future__ import annotations

from collections.abc import Callable

import trio

from fusefs.model.ids import NodeId, Seq
from fusefs.model.tx import Tx
from fusefs.namespace.namespace import Namespace
from netnode.core import horizon as horizons
from netnode.core.membership import Membership
from netnode.environment import Environment
from netnode.peers import Peers


async def keep_horizon(
    namespace: Namespace,
    membership: Membership,
    peers: Peers,
    boot: int,
    environment: Environment,
    publish: Callable[[Tx], None],
) -> None:
    """For ever; does nothing as long as another has a lower id."""
    me = namespace.node_id
    last: dict[NodeId, Seq] = {}
    before: dict[NodeId, horizons.Told] = {}
    written = environment.now()
    while True:
        await trio.sleep(horizons.EVERY_S)
        members = membership.members()
        if me != members[0]:
            continue
        told = {
            p.id: horizons.Told(p.hello.boot, p.told)
            for p in peers
            if p.told is not None
        }
        told[me] = horizons.Told(boot, namespace.vector())
        found = horizons.horizon(members, horizons.durable(before, told))
        before = told
        since_s = environment.now() - written
        if found and horizons.worth_writing(last, found.upto, since_s):
            tx = namespace.put_horizon(found.upto, found.after)
            last, written = found.upto, environment.now()
            if tx is not None:
                publish(tx)
