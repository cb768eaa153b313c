"""Says when deletes may be forgotten (core/horizon.py): the member of the lowest id."""

from __future__ import annotations

from collections.abc import Callable

import trio

from fusefs.model.ids import NodeId, Seq
from fusefs.model.tx import Tx
from fusefs.model.vector import dominates
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
    last = namespace.horizon()
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
        if not found or not horizons.worth_writing(last, found.upto, since_s):
            continue
        while all(node == me or node in peers for node in members):
            last = await _step(namespace, environment, found, publish)
            written = environment.now()
            if dominates(last, found.upto) or not dominates(namespace.horizon(), last):
                break
            await trio.sleep(horizons.STEP_PAUSE_S)


async def _step(
    namespace: Namespace,
    environment: Environment,
    found: horizons.Horizon,
    publish: Callable[[Tx], None],
) -> dict[NodeId, Seq]:
    """A horizon that is not too much to forget at once; gives it."""
    upto = await environment.offload(
        lambda: namespace.horizon_towards(found.upto, horizons.STEP_REGISTERS)
    )
    tx = namespace.put_horizon(upto, found.after)
    if tx is not None:
        publish(tx)
    return upto
