"""The node process.

    python -m netnode --config STORE/run/config.json
    python -m netnode init --config STORE/run/config.json

`init` makes identity and namespace of a new store and ends. Otherwise it serves
until SIGTERM. Whoever started it hears through `fusefs.readiness` that it is ready
(with the port), or in one sentence why not.
"""

from __future__ import annotations

import argparse
import datetime
import errno
import faulthandler
import gc
import logging
import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path

import msgspec
import trio

from fusefs import config as configuration
from fusefs import logs, readiness
from fusefs.config import Config
from fusefs.errors import ConfigError, FsError, NoSpace
from fusefs.housekeeping import Housekeeping
from fusefs.namespace.namespace import Namespace
from fusefs.nodelink.fence import NodeFence, map_file
from fusefs.store.database import translated
from fusefs.store.store import Store
from netnode import identity as identities
from netnode import rejoining
from netnode.addresses import for_node
from netnode.commands import Commands
from netnode.console import Console
from netnode.discovery import Discovery
from netnode.environment import Environment
from netnode.link import LinkServer
from netnode.restoring import restored
from netnode.service import Node, Settings
from netnode.tcp import TcpNetwork, bind
from netnode.threadfetch import ThreadFetch
from netnode.tls import Contexts

log = logging.getLogger("dfs.node")


def main(argv: list[str]) -> int:
    """Exit code 0 after a stop, 1 with a sentence when it cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m netnode")
    parser.add_argument("action", nargs="?", choices=["run", "init"], default="run")
    parser.add_argument("--config", required=True, type=Path)
    arguments = parser.parse_args(argv)
    try:
        config = configuration.load(arguments.config)
    except (OSError, msgspec.DecodeError) as error:
        return fail(f"the settings in {arguments.config} cannot be read: {error}")
    logs.begin(config.log_level)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        if arguments.action == "init":
            init(config)
        else:
            run(config)
    except ConfigError as error:
        return fail(str(error))
    except (FsError, OSError) as error:
        log.exception("cannot serve")
        return fail(f"the node cannot serve {config.store}: {error.strerror or error}")
    return 0


def fail(sentence: str) -> int:
    readiness.failed(sentence, 1)
    print(f"dfs: {sentence}", file=sys.stderr)
    return 1


def init(config: Config) -> None:
    """A new store: identity and namespace. Doing it again changes nothing.

    Raises ConfigError (a bad token), OSError.
    """
    store = Path(config.store)
    token = identities.decode_token(config.join) if config.join else None
    identity = identity_of(config, token)
    if token is not None and rejoining.refused(store):
        identity = join_anew(config, store, identity)
    if not (store / "meta.db").exists():
        make_namespace(config, identity)
        rejoining.rejoined(store)


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
        rejoining.give_up_untouched(store)
    return identities.create(store, config.name or os.uname().nodename, token)


def join_anew(
    config: Config, store: Path, old: identities.Identity
) -> identities.Identity:
    """The cluster went on without this node: another id, an empty namespace."""
    now = datetime.datetime.now(datetime.UTC)
    rejoining.set_aside(store, old.name, now)
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
    if not rejoining.is_untouched(Path(config.store)):
        raise ConfigError(
            f"the store {config.store} belongs to another cluster than the token; "
            "join with a new store: --store DIR"
        )
    return False


def run(config: Config) -> None:
    """Serve until told to stop. Raises ConfigError, FsError, OSError."""
    init(config)
    store_dir = Path(config.store)
    config.run_dir.mkdir(mode=0o700, exist_ok=True)
    identity = identities.load(store_dir)
    namespace = Namespace.open(store_dir)
    store = Store.open(
        store_dir,
        power_cut=config.power_cut,
        min_free_bytes=config.min_free,
        cache_bytes=config.cache_size or None,
    )
    fetch = ThreadFetch()
    # With a mount the worker does this: it knows the open files.
    house = None if config.mountpoint else Housekeeping(store, namespace, fetch=fetch)
    try:
        trio.run(serve, config, identity, namespace, store, fetch)
    finally:
        if house is not None:
            house.stop()
        store.close()
        namespace.close()


async def serve(
    config: Config,
    identity: identities.Identity,
    namespace: Namespace,
    store: Store,
    fetch: ThreadFetch,
) -> None:
    """Build everything, run it, until SIGTERM or the command `shutdown`."""
    store_dir = Path(config.store)
    parts: dict[str, Commands] = {}
    network = TcpNetwork(
        Contexts(identity, store_dir / "identity"),
        config.listen,
        config.port or _last_port(config),
        Console(lambda: parts["commands"]),
    )
    settings = Settings(
        identity.cluster,
        config.name or identity.name,
        identity.seeds,
        for_node(config.listen, config.advertise),
        mounted=bool(config.mountpoint),
        on_refused=lambda reason: rejoining.note_refused(store_dir, reason),
        mass_delete=config.mass_delete / 100,
        mass_delete_age_s=config.mass_delete_age_s,
    )
    fence = None
    if config.mountpoint and config.binding == "kernel":
        memory = map_file(config.run_dir / "fence")
        fence = NodeFence(memory) if memory is not None else None
    node = Node(settings, namespace, store, network, Environment(), fence)
    fetch.begin(node)
    link = LinkServer(
        node,
        config.run_dir / "node.sock",
        lambda what, arguments: parts["commands"](what, arguments),
    )
    parts["commands"] = Commands(
        node, identity.secret, config.mountpoint, link.worker_statistics
    )
    gc.freeze()  # modules and tables live as long as the process
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, node)
        try:
            port = await nursery.start(_run_node, node, nursery.cancel_scope)
        except OSError as error:
            raise ConfigError(_cannot_listen(config, error)) from error
        await nursery.start(link.run)
        nursery.start_soon(rejoining.bring_when_level, node, store_dir)
        if config.discovery:
            nursery.start_soon(Discovery(node, identity.cluster).run)
        _write_facts(config, node, port)
        log.info("node %s (%x) listens on port %d", settings.name, node.me, port)
        readiness.ready(port=port, node_id=f"{node.me:016x}")


async def _run_node(
    node: Node, scope: trio.CancelScope, *, task_status: trio.TaskStatus[int]
) -> None:
    await node.run(task_status=task_status)
    scope.cancel()


async def _stop_on_signal(node: Node) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("stopping: %s", signal.Signals(number).name)
            node.stop()


def _last_port(config: Config) -> int:
    """With any port allowed: the one of last time if it is free, since peers know
    it; 0 otherwise."""
    try:
        facts = msgspec.json.decode((config.run_dir / "node.json").read_bytes())
        port = int(facts["port"])
        for sock in bind(config.listen, port):
            sock.close()
    except (OSError, ValueError, KeyError, TypeError, msgspec.DecodeError):
        return 0
    return port


def _cannot_listen(config: Config, error: OSError) -> str:
    where = f"{config.listen or 'all addresses'} port {config.port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {config.port} is in use by another program; "
            "choose another with --port, or 0 for any free one"
        )
    return f"cannot listen on {where}: {error.strerror or error}"


def _write_facts(config: Config, node: Node, port: int) -> None:
    """STORE/run/node.json: where the node is, for scripts."""
    facts = {"pid": os.getpid(), "port": port, "node_id": f"{node.me:016x}"}
    try:
        path = config.run_dir / "node.json"
        identities.write_private(path, msgspec.json.encode(facts))
    except OSError as error:  # a full disk must not keep the node from its peers
        log.warning("node.json could not be written: %s", error)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    # Everything of ours is closed; threads of libraries would only delay the end.
    os._exit(code)
