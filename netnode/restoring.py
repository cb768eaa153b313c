"""An identity that is lost or damaged in part, made anew.

From what is left of it, the namespace beside it, which knows the node's id, and a join
token, which has the cluster's secret. The node's key is nothing that anybody remembers.
Called before the node starts, under the store's lock.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Collection
from pathlib import Path

from fusefs.errors import ConfigError
from fusefs.model.ids import NodeId
from fusefs.namespace.namespace import Namespace
from netnode import identity as identities
from netnode.identity import Identity, Parts, Token

log = logging.getLogger(__name__)


def restored(store: Path, name: str, token: Token | None) -> Identity:
    """The identity, whole again; `name` is the one given for this mount.

    Raises ConfigError (the secret is nowhere), FsError, OSError.
    """
    namespace = Namespace.open(store)
    try:
        me, members = namespace.node_id, namespace.members()
    finally:
        namespace.close()
    found = identities.parts(store)
    others = [n for n, m in members.items() if n != me and not m.forgotten]
    secret = _secret(store, found, token, others)
    if not name:
        name = members[me].name if me in members else os.uname().nodename
    seeds = token.addresses if token is not None else ()
    if found.described is not None:
        me, name = NodeId(found.described.node_id), found.described.name
        seeds = found.described.seeds
    identities.write(store, secret, found.key, me, name, seeds)
    log.warning("the identity of this node was lost or damaged, and is made anew")
    return identities.load(store)


def _secret(
    store: Path, found: Parts, token: Token | None, others: Collection[NodeId]
) -> bytes:
    """That of the cluster. Where there is no other member, nobody misses it."""
    if found.secret is not None:
        return found.secret
    if token is not None:
        if found.cluster in ("", identities.cluster_id(token.secret).hex()):
            return token.secret
        raise ConfigError(
            f"the store {store} belongs to another cluster than the token, and its own "
            "secret is lost: mount it with --join TOKEN of its cluster"
        )
    if not others:
        return secrets.token_bytes(identities.SECRET_BYTES)
    raise ConfigError(
        f"the cluster's secret in {store / 'identity'} is lost or damaged; mount once "
        "with --join TOKEN, as `dfs invite` on another member prints it"
    )
