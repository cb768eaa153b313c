"""The node of a store, from its parts to its end."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
from pathlib import Path

import msgspec
import trio

from fusefs import readiness
from fusefs.config import Config
from fusefs.errors import ConfigError, FsError
from fusefs.housekeeping import Housekeeping
from fusefs.namespace.namespace import Namespace
from fusefs.nodelink.fence import NodeFence, map_file
from fusefs.store.store import Store
from netnode import aside, rejoining
from netnode import identity as identities
from netnode.addresses import for_node
from netnode.commands import Commands
from netnode.console import Console
from netnode.discovery import Discovery
from netnode.environment import Environment
from netnode.founding import init
from netnode.link import LinkServer
from netnode.service import Node, Settings
from netnode.tcp import TcpNetwork, bind
from netnode.threadfetch import ThreadFetch
from netnode.tls import Contexts

log = logging.getLogger("dfs.node")


def run(config: Config) -> None:
    """Serve until told to stop. Raises ConfigError, FsError, OSError."""
    init(config)
    store_dir = Path(config.store)
    config.run_dir.mkdir(mode=0o700, exist_ok=True)
    identity = identities.load(store_dir)
    namespace = Namespace.open(store_dir)
    if namespace.node_id != identity.node_id:
        namespace.close()
        raise ConfigError(
            f"identity and meta.db in {store_dir} are of different nodes: put back what"
            " belongs together, or move the store away and join again with --join TOKEN"
        )
    store = Store.open(
        store_dir,
        power_cut=config.power_cut,
        min_free_bytes=config.min_free,
        cache_bytes=config.cache_size or None,
        compress=config.compress == "zstd",
    )
    fetch = ThreadFetch()
    # With a mount the worker does this: it knows the open files.
    house = None if config.mountpoint else Housekeeping(store, namespace, fetch=fetch)
    try:
        trio.run(serve, config, identity, namespace, store, fetch)
    except ExceptionGroup as group:
        raise _the_one_of(group) from group
    finally:
        if house is not None:
            house.stop()
        store.close()
        namespace.close()


def _the_one_of(error: Exception) -> Exception:
    """What the one failed task of nurseries raised."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        (error,) = error.exceptions
    return error


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
        on_refused=lambda reason: aside.note_refused(store_dir, reason),
        locks_alone=config.lock_failure == "local",
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
        except FsError:  # of the store
            raise
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
    try:
        await node.run(task_status=task_status)
    except ExceptionGroup as group:
        raise _the_one_of(group) from group
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
