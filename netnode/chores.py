"""What a node does now and then for its database: syncing it, looking for damage, and
saying when deletes may be forgotten. Each is a task that never ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from fusefs.model.ids import NodeId, Seq
from fusefs.model.tx import Tx
from fusefs.namespace.namespace import Namespace
from fusefs.store.store import Store
from netnode.core import horizon as horizons
from netnode.core.membership import Membership
from netnode.environment import Environment
from netnode.peers import Peers

log = logging.getLogger(__name__)

SYNC_S = 5.0
VERIFY_S = 5.0
VERIFY_PAUSE = 300
"""Times as long as it took: of a million registers, once in half an hour."""


async def sync_disk(
    namespace: Namespace,
    store: Store,
    environment: Environment,
    progress: Callable[[], int],
) -> None:
    """What this process stored is on disk after a while. `progress` differs when
    something was stored."""
    done = -1
    while True:
        await trio.sleep(SYNC_S)
        state = progress()
        if state != done:
            await environment.offload(store.sync_all)
            await environment.offload(namespace.sync)
            done = state


async def verify_registers(
    namespace: Namespace, environment: Environment, corrected: Callable[[], None]
) -> None:
    """Damage on this disk shows in the digest, so that a heartbeat finds it. Costs
    little of a core, however many registers there are."""
    while True:
        began = environment.now()
        damaged = await environment.offload(namespace.verify)
        if damaged:
            log.error("registers in %d of 256 buckets are damaged", damaged)
            corrected()
        spent = environment.now() - began
        await trio.sleep(max(VERIFY_S, VERIFY_PAUSE * spent))


async def keep_horizon(
    namespace: Namespace,
    membership: Membership,
    peers: Peers,
    boot: int,
    environment: Environment,
    publish: Callable[[Tx], None],
) -> None:
    """The member with the lowest id says when deletes may be forgotten."""
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
