"""A new store: identity and namespace, or another identity for one that joins anew.

In a process of its own (`python -m netnode init`), where most of the time goes into
imports: so nothing of the network's is imported here.
"""

from __future__ import annotations

import datetime
import os
import shutil
import sqlite3
from pathlib import Path

import msgspec

from fusefs.config import Config
from fusefs.errors import ConfigError, NoSpace
from fusefs.namespace.namespace import Namespace
from fusefs.store.database import translated
from netnode import aside
from netnode import identity as identities
from netnode.restoring import restored


def init(config: Config) -> None:
    """A new store: identity and namespace. Doing it again changes nothing.

    Raises ConfigError (a bad token), OSError.
    """
    store = Path(config.store)
    token = identities.decode_token(config.join) if config.join else None
    identity = identity_of(config, token)
    if token is not None and aside.refused(store):
        identity = join_anew(config, store, identity)
    if not (store / "meta.db").exists():
        make_namespace(config, identity)
        aside.rejoined(store)


def make_namespace(config: Config, identity: identities.Identity) -> None:
    """All of meta.db or nothing: of what is ended meanwhile, or fills the disk, the
    next mount would say that it is damaged. Raises OSError, FsError."""
    store, making = Path(config.store), config.run_dir / "new"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700, parents=True)
    founding = not identity.seeds
    try:
        namespace = Namespace.create(
            making,
            identity.node_id,
            uid=os.getuid(),
            gid=os.getgid(),
            root=founding,
        )
        if founding:
            namespace.put_setting(b"replicas", msgspec.msgpack.encode(config.replicas))
        namespace.close()
    except sqlite3.Error as error:
        raise translated(error, making / "meta.db") from error
    if (making / "meta.db-wal").exists():  # what is in it did not fit into meta.db
        raise NoSpace("meta.db: no space left on the disk")
    for left in ("meta.db-wal", "meta.db-shm"):
        (store / left).unlink(missing_ok=True)
    (making / "meta.db").rename(store / "meta.db")
    shutil.rmtree(making)


def identity_of(config: Config, token: identities.Token | None) -> identities.Identity:
    """The one there is, or a new one. Raises ConfigError, FsError, OSError."""
    store = Path(config.store)
    if identities.exists(store) or (store / "meta.db").exists():
        try:
            identity = identities.load(store)
        except identities.Damaged:
            if not (store / "meta.db").exists():
                raise
            identity = restored(store, config.name, token)
        if token is None or same_cluster(config, token, identity):
            return identity
        aside.give_up_untouched(store)
    return identities.create(store, config.name or os.uname().nodename, token)


def join_anew(
    config: Config, store: Path, old: identities.Identity
) -> identities.Identity:
    """The cluster went on without this node: another id, an empty namespace."""
    now = datetime.datetime.now(datetime.UTC)
    aside.set_aside(store, old.name, now)
    token = identities.decode_token(config.join)
    return identities.create(store, config.name or old.name, token)


def same_cluster(
    config: Config, token: identities.Token, identity: identities.Identity
) -> bool:
    """False when the token leads to another cluster than the store's, and nothing ever
    was in that: who mounts without the token first, or whose first mount fails, has
    founded it without meaning to. Raises ConfigError when something was."""
    if identities.cluster_id(token.secret) == identity.cluster:
        return True
    if not aside.is_untouched(Path(config.store)):
        raise ConfigError(
            f"the store {config.store} belongs to another cluster than the token; "
            "join with a new store: --store DIR"
        )
    return False
