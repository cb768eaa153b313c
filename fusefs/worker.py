"""The worker: answers the kernel. The composition root of everything below it.

    python -m fusefs.worker --config STORE/run/config.json [--fuse-fd N]

Started by the supervisor, which keeps the mount and starts another worker when this
one ends. SIGTERM: make way for another (or for the end). SIGUSR1: every thread's
stack goes to the log. Ends with 0 when everything is stored, whatever the reason.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fusefs import config as configuration
from fusefs import logs, memory, readiness
from fusefs.config import Config
from fusefs.errors import FsError
from fusefs.housekeeping import FETCH_LIMIT_S, Housekeeping
from fusefs.model.tx import Effects
from fusefs.mountpoint.exits import MOUNT_BUG, MOUNT_FAILURE
from fusefs.namespace.namespace import Namespace
from fusefs.nodelink.client import NodeLink
from fusefs.nodelink.fence import Gate, map_file
from fusefs.store import trouble
from fusefs.store.store import Store
from fusefs.vfs.lockjournal import LockJournal
from fusefs.vfs.options import VfsOptions
from fusefs.vfs.vfs import Vfs

log = logging.getLogger("dfs.worker")

NOTIFY_WAIT_S = 0.25
"""Longest a peer's change waits for the kernel to forget the old, unless barriers
last longer: more than a crowded machine needs to run a thread."""
LINK_WAIT_S = 2.0
"""The node starts beside us; without it the mount serves what is here."""


class Server(Protocol):
    """A binding at work."""

    @property
    def makes_way(self) -> bool: ...

    def statistics(self) -> dict[str, int]: ...


class Parts:
    """Everything a worker is made of; closed in the reverse order of making."""

    def __init__(self, config: Config) -> None:
        store_dir = Path(config.store)
        self._server: Server | None = None
        self._built = threading.Event()
        self.namespace = Namespace.open(store_dir)
        self.store = Store.open(
            store_dir,
            power_cut=config.power_cut,
            min_free_bytes=config.min_free,
            cache_bytes=config.cache_size or None,
            compress=config.compress == "zstd",
        )
        self.store.inherit()
        kernel = config.binding == "kernel"
        self.gate = Gate(map_file(config.run_dir / "fence") if kernel else None)
        self.locks = LockJournal(
            config.run_dir / "locks" if kernel else None,
            same_mount=_is_taken_over(config),
        )
        self.link = NodeLink(
            config.run_dir / "node.sock",
            forget=self._forget,
            tell=self._tell,
            statistics=self.statistics,
            gate=self.gate,
            held=self.locks.all_held(),
        )
        _forget_unsynced(config)
        self.vfs = Vfs(
            self.namespace,
            self.store,
            self.link,
            vfs_options(config),
            lock_journal=self.locks,
        )
        self._built.set()

    def _forget(self, effects: Effects | None) -> None:
        self._built.wait()  # the link's thread may be faster than this constructor
        self.vfs.forget_effects(effects)

    def _tell(self, effects: Effects | None) -> None:
        self.vfs.tell_kernel(effects)

    def serve_with(self, server: Server) -> None:
        """The binding's server, once there is one: its counts are shown too."""
        self._server = server

    def statistics(self) -> dict[str, object]:
        """What `dfs status` shows of the worker."""
        self._built.wait()
        shown: dict[str, object] = {"pid": os.getpid(), "vfs": self.vfs.statistics()}
        if self._server is not None:
            shown["requests"] = self._server.statistics()
        shown["failing"] = trouble.report(self.namespace.path.parent)
        return shown

    def close(self) -> None:
        """Stores what is dirty, publishes it, and lets go of everything."""
        makes_way = self._server is not None and self._server.makes_way
        self.vfs.close(makes_way=makes_way)
        self.store.sync_all()
        self.namespace.sync()
        self.link.close(locks_stay=makes_way)
        self.store.close()
        self.namespace.close()
        self.locks.close()


def _forget_unsynced(config: Config) -> None:
    """After a power cut the drafts of the worker before are not whole, as they were
    never synced. Not so those of this mount, which began after it."""
    if config.power_cut and not _is_taken_over(config):
        for name in ("unfinished", "drafts"):
            (config.run_dir / name).unlink(missing_ok=True)


def _is_taken_over(config: Config) -> bool:
    """Whether this mount had a worker before."""
    return (config.run_dir / "fuse.json").exists()


def vfs_options(config: Config) -> VfsOptions:
    """The settings that the vfs cares about."""
    return VfsOptions(
        sync=config.sync,
        barrier_s=config.barrier_ms / 1000,
        locks=config.locks,
        lock_failure=config.lock_failure,
        exclusive=config.exclusive,
        fetch_timeout_s=config.fetch_timeout_s,
        unfinished=config.run_dir / "unfinished",
        journal=config.run_dir / "drafts",
        unnamed=config.run_dir / "orphans",
        dirty_bytes=config.dirty_size,
        acl=config.acl,
        read_only=config.read_only,
        same_mount=_is_taken_over(config),
        kernel_refs=config.binding == "kernel",
    )


def main(argv: list[str]) -> int:
    """Serves until the mount is gone or SIGTERM asks to make way."""
    parser = argparse.ArgumentParser(prog="python -m fusefs.worker")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--fuse-fd", type=int, default=-1)
    arguments = parser.parse_args(argv)
    memory.use_one_arena()
    config = configuration.load(arguments.config)
    logs.begin(config.log_level)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        parts = Parts(config)
    except (FsError, OSError) as error:
        reason = error.strerror or error
        readiness.failed(f"the store cannot be opened: {reason}", MOUNT_FAILURE)
        log.exception("start failed")
        return MOUNT_FAILURE
    house = Housekeeping(
        parts.store,
        parts.namespace,
        parts.vfs.live_roots,
        parts.vfs.renew_leases,
        parts.vfs.late_roots,
        lambda cid, cancelled: parts.link.fetch(
            (cid,), timeout_s=FETCH_LIMIT_S, cancelled=cancelled
        ),
    )
    try:
        serve(config, parts, arguments.fuse_fd, readiness.ready)
    except Exception as error:
        readiness.failed(f"the mount failed: {error}", MOUNT_FAILURE)
        log.exception("serving failed")
        return MOUNT_BUG
    finally:
        house.stop()
        parts.close()
    return 0


def serve(
    config: Config, parts: Parts, fuse_fd: int, on_ready: Callable[[], None]
) -> None:
    """Runs the binding; returns when the mount is gone or we make way."""

    def once_linked() -> None:
        """A mount is ready when its node tells it what peers change: until then it
        could show something old."""
        parts.link.wait_connected(LINK_WAIT_S)
        on_ready()

    def soon() -> None:
        threading.Thread(target=once_linked, name="ready", daemon=True).start()

    if config.binding == "kernel":
        from fusefs.bindings.kernel import server
        from fusefs.bindings.kernel.connection import Settings

        server.run(
            parts.vfs,
            fuse_fd,
            on_ready=soon,
            on_server=parts.serve_with,
            set_invalidator=parts.vfs.set_invalidator,
            settings=Settings(
                locks=config.locks == "cluster",
                acl=config.acl,
                changes_wait=config.sync == "all",
                notify_wait_s=max(config.barrier_ms / 1000, NOTIFY_WAIT_S),
            ),
            state=config.run_dir / "fuse.json",
            gate=parts.gate,
        )
    else:
        from fusefs.bindings import fusepy_ops

        fusepy_ops.run(parts.vfs, config.mountpoint, config, on_ready=soon)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
