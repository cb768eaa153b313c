"""Keeps a node and its mount alive; see the package for the whole picture.

Invariants: at most one worker and one node process of a store exist; the lock on
the store outlives both; nothing here ever touches the mountpoint except in threads
that may be lost.
"""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import time
from functools import partial
from pathlib import Path

from fusefs import readiness
from fusefs.config import Config
from fusefs.mountpoint import table, unmounting
from fusefs.mountpoint.exits import (
    FAILED,
    INTERRUPTED,
    MOUNT_FAILURE,
    MOUNT_INTERRUPTED,
)
from fusefs.store.sidefiles import SideFiles
from fusefs.supervisor import preparing, state
from fusefs.supervisor.child import Child, delay_s
from fusefs.supervisor.loop import Loop
from fusefs.supervisor.mounting import MountedDevice
from fusefs.supervisor.state import State
from fusefs.supervisor.watchdog import PROBE_EVERY_S, Watchdog

log = logging.getLogger("dfs.supervisor")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
UPGRADE_SIGNAL = signal.SIGHUP
START_LIMIT_S = 60.0
"""A mount that is not up by then has failed (a large store after a power cut)."""
TRY_AGAIN_S = 1.0
STOP_WORKER_S = 60.0
"""For writing what is dirty to a slow disk; then the worker is killed."""
STOP_NODE_S = 5.0
HANDOVER_S = 40.0
"""A worker asked to make way finishes what it is doing, a fetch included. Then it is
killed: its successor takes over all but what it had not stored yet."""
LOOK_EVERY_S = 0.2
"""A killed worker that cannot end has a successor after twice this."""
ROTATE_EVERY_S = 60.0
NUDGE_EVERY_S = 0.2
MOST_NUDGES = 100
BUSY_S = 1.0
"""For answers on their way when a busy mount is taken from its users."""
MOST_QUICK_DEATHS = 12
"""A worker that dies so often in a row will not come up: the mount is given up."""
DUMP_S = 1.0
"""Time for the stacks of a stuck worker to reach its log."""


class Supervisor:
    """Runs until the mount is gone or it is told to stop."""

    def __init__(
        self, config: Config, device: MountedDevice | None, lock: int, loop: Loop
    ) -> None:
        """`device`: None for a node without a mount, or one whose worker mounts."""
        self._config = config
        self._device = device
        self._lock = lock
        self._loop = loop
        self._started_s = time.time()
        self._announced = False
        self._stopping = False
        self._exit_code = 0
        self._half_dead = 0
        self._connection = ""
        self._watchdog: Watchdog | None = None
        self._side_files = SideFiles(Path(config.store))
        self._node = self._make_child("node", "netnode", ())
        self._worker: Child | None = None
        if config.mountpoint:
            keep = (device.descriptor,) if device else ()
            self._worker = self._make_child("worker", "fusefs.worker", keep)

    def _make_child(self, name: str, module: str, keep: tuple[int, ...]) -> Child:
        settings = str(self._config.run_dir / "config.json")
        command = ["-m", module, "--config", settings]
        if keep:
            command += ["--fuse-fd", str(keep[0])]
        return Child(name, command, self._log_file(name), (self._lock, *keep))

    def _log_file(self, name: str) -> Path | None:
        if self._config.foreground:
            return None
        return self._config.run_dir / f"{name}.log"

    def run(self) -> int:
        """Starts everything; returns the exit code when everything has ended."""
        loop = self._loop
        loop.on_signals(STOP_SIGNALS, self._stop_on_signal)
        loop.on_signals((UPGRADE_SIGNAL,), self._upgrade)
        for child in self._children():
            self._start(child)
        loop.after(START_LIMIT_S, self._give_up_starting)
        loop.after(LOOK_EVERY_S, self._look_for_half_dead)
        if not self._config.foreground:
            loop.after(ROTATE_EVERY_S, self._rotate_logs)
        loop.run()
        self._side_files.let_go()
        self._forget_state()
        return self._exit_code

    @property
    def ended_cleanly(self) -> bool:
        """Whether the last worker and node wrote everything before they ended."""
        return self._announced and all(c.last_status == 0 for c in self._children())

    def _children(self) -> list[Child]:
        return [c for c in (self._node, self._worker) if c is not None]

    # -- starting ---------------------------------------------------------------

    def _start(self, child: Child) -> None:
        if self._stopping:
            return
        try:
            child.start()
        except OSError as error:
            self._not_started(child, error)
            return
        self._loop.watch(child.pidfd, lambda: self._ended(child))
        self._loop.watch(child.reports, lambda: self._reported(child))
        self._write_state()

    def _not_started(self, child: Child, error: OSError) -> None:
        """Memory, processes and descriptors are scarce for a while only; requests of
        programs wait in the kernel meanwhile."""
        log.error("%s cannot be started: %s", child.name, error)
        if self._announced:
            self._loop.after(TRY_AGAIN_S, lambda: self._start(child))
        else:
            self._fail(f"the {child.name} cannot be started: {error}")

    def _reported(self, child: Child) -> None:
        was_ready = child.is_ready
        if not child.read_reports():
            self._loop.forget(child.reports)
            return
        if child.is_ready and not was_ready:
            log.info("%s ready pid=%d", child.name, child.pid)
            self._write_state()
            self._announce_when_complete()
            if not self._connection:
                self._find_connection()

    def _announce_when_complete(self) -> None:
        if self._announced or not all(c.is_ready for c in self._children()):
            return
        self._announced = True
        self._keep_side_files()
        self._find_connection()
        facts = {k: v for c in self._children() for k, v in c.facts.items()}
        readiness.ready(**facts)
        readiness.notify_systemd("READY=1")
        if self._config.watchdog_s and self._worker:
            self._loop.after(PROBE_EVERY_S, self._look_after_mount)

    def _keep_side_files(self) -> None:
        """So that both can be started again on a disk that is full by then."""
        try:
            self._side_files.keep()
        except sqlite3.Error as problem:
            log.warning("the databases could not be opened: %s", problem)

    def _find_connection(self) -> None:
        mount = table.find(self._config.mountpoint) if self._worker else None
        if mount is None:
            return
        self._connection = mount.connection
        self._watchdog = Watchdog(
            self._config.mountpoint, mount.connection, self._config.watchdog_s
        )
        self._write_state()

    def _give_up_starting(self) -> None:
        if not self._announced and not self._stopping:
            late = next(c for c in self._children() if not c.is_ready)
            self._fail(f"the {late.name} was not ready after {START_LIMIT_S:.0f} s")

    # -- ends ---------------------------------------------------------------------

    def _ended(self, child: Child) -> None:
        child.read_reports()
        self._loop.forget(child.pidfd)
        self._loop.forget(child.reports)
        self._go_on_without(child, child.ended())

    def _look_for_half_dead(self) -> None:
        self._loop.after(LOOK_EVERY_S, self._look_for_half_dead)
        worker, before = self._worker, self._half_dead
        self._half_dead = worker.pid if worker and worker.is_half_dead else 0
        # Whoever ends is it for a moment: all threads but the first.
        if worker is None or not self._half_dead or self._half_dead != before:
            return
        self._loop.forget(worker.pidfd)
        self._loop.forget(worker.reports)
        pidfd, process = worker.abandon()

        def reap() -> None:
            self._loop.forget(pidfd)
            os.close(pidfd)
            process.wait()

        self._loop.watch(pidfd, reap)
        self._go_on_without(worker, worker.last_status)

    def _go_on_without(self, child: Child, status: int) -> None:
        log.log(
            logging.INFO if status == 0 else logging.WARNING,
            "%s ended status=%d%s",
            child.name,
            status,
            f": {child.trouble}" if child.trouble else "",
        )
        self._write_state()
        if self._stopping:
            self._stop_when_all_ended()
        elif not self._announced:
            taken = self._device is not None and not self._mount_is_there()
            why = "it was unmounted while it started" if taken else child.why()
            self._fail(why, child.code)
        elif child is self._worker and not self._mount_is_there():
            log.info("the mount is gone")
            self._clear_away()
            self._stop()
        elif child is self._worker and child.quick_deaths > MOST_QUICK_DEATHS:
            self._fail(f"the worker dies again and again: {child.why()}")
        else:
            self._restart(child)

    def _restart(self, child: Child) -> None:
        wait_s = delay_s(child.quick_deaths)
        if child is self._worker and self._device is None:
            unmounting.detach(self._where())
            self._connection = ""
        self._loop.after(wait_s, lambda: self._start(child))

    def _mount_is_there(self) -> bool:
        """Here, or in another mount namespace (a container's)."""
        if self._device is not None:
            return self._device.is_connected()
        if self._connection:
            return bool(self._mounts())
        return unmounting.is_mounted(self._config.mountpoint)

    def _mounts(self) -> list[table.Mount]:
        """Ours as they are now, bind mounts included. The number of a connection that
        has ended is soon that of another one."""
        mounts = table.of_connection(self._connection) if self._connection else []
        if self._device is not None:
            return mounts if self._device.is_connected() else []
        return [m for m in mounts if m.source == self._config.fsname]

    def _where(self) -> str:
        """The mountpoint as it is called now."""
        mounts = self._mounts()
        return os.fsdecode(mounts[0].where) if mounts else self._config.mountpoint

    def _clear_away(self) -> None:
        """An aborted connection leaves a mount that nobody serves any more."""
        where = self._config.mountpoint
        mount = table.find(where)
        if mount is None or not mount.is_ours or mount.connection != self._connection:
            return
        if unmounting.is_dead(where):
            unmounting.detach(where)

    # -- stopping -----------------------------------------------------------------

    def _fail(self, sentence: str, code: int = FAILED) -> None:
        log.error("giving up: %s", sentence)
        self._exit_code = code or FAILED
        if not self._announced:
            readiness.failed(sentence, MOUNT_FAILURE if self._worker else code)
        self._unmount()
        self._stop()

    def _stop_on_signal(self) -> None:
        if self._stopping:
            return
        readiness.notify_systemd("STOPPING=1")
        log.info("asked to stop")
        if not self._announced:
            code = MOUNT_INTERRUPTED if self._worker else INTERRUPTED
            readiness.failed("it was told to stop while it started", code)
        self._unmount()
        self._stop()

    def _unmount(self) -> None:
        """Wherever it is mounted, in other mount namespaces, too."""
        if not self._worker or not self._mount_is_there():
            return
        places = [os.fsdecode(mount.where) for mount in self._mounts()]
        if not self._connection:
            places = [self._config.mountpoint]
        busy = False
        for where in reversed(places):
            try:
                unmounting.unmount(where)
            except OSError as error:
                busy = True
                users = unmounting.users(where)
                names = ", ".join(f"{name}({pid})" for pid, name in users)
                log.warning(
                    "%s: %s; detaching it from %s", where, error.strerror, names
                )
                unmounting.detach(where)
        if busy or self._mount_is_there():
            self._worker.kill(signal.SIGTERM)
            self._loop.after(BUSY_S, self._abort_if_running)

    def _abort_if_running(self) -> None:
        """Readers that wait for requests of a detached mount end with it."""
        connected = self._device is None or self._device.is_connected()
        if self._worker and self._worker.running and connected:
            unmounting.abort(self._connection)

    def _stop(self) -> None:
        """The worker ends first: the node serves what it still publishes."""
        self._stopping = True
        if self._worker and self._worker.running:
            worker = self._worker
            if not self._announced:
                worker.kill(signal.SIGTERM)
            self._loop.after(STOP_WORKER_S, lambda: worker.kill(signal.SIGKILL))
        self._stop_when_all_ended()

    def _stop_when_all_ended(self) -> None:
        if self._worker and self._worker.running:
            return
        if self._node.running:
            self._node.kill(signal.SIGTERM)
            self._loop.after(STOP_NODE_S, lambda: self._node.kill(signal.SIGKILL))
            return
        self._end_requests()
        self._loop.stop()

    def _end_requests(self) -> None:
        """Nobody will answer what a killed worker was asked, and threads of it that
        told the kernel of a change hold the device as long as they wait for that."""
        if self._device is not None and self._device.is_connected():
            unmounting.abort(self._connection)

    # -- a new version, and a stuck mount ---------------------------------------------

    def _upgrade(self) -> None:
        """Both children make way for the code on disk; the mount stays."""
        if not self._announced:
            self._loop.after(LOOK_EVERY_S, self._upgrade)
            return
        log.info("restarting node and worker")
        for child in self._children():
            child.quick_deaths = 0
            child.kill(signal.SIGTERM)
            self._loop.after(HANDOVER_S, partial(self._push, child, child.pid))
        if self._worker:
            self._nudge(self._worker.pid, MOST_NUDGES)

    def _nudge(self, pid: int, left: int) -> None:
        """A reader asleep in the kernel of a worker that should end may only see that
        with its next request; so there is one, now and then."""
        if left and self._worker and self._worker.pid == pid:
            self._loop.after(NUDGE_EVERY_S, partial(self._nudge, pid, left - 1))
            if left < MOST_NUDGES:
                unmounting.nudge(self._where())

    def _push(self, child: Child, pid: int) -> None:
        if child.pid == pid:
            child.kill(signal.SIGKILL)

    def _look_after_mount(self) -> None:
        self._loop.after(PROBE_EVERY_S, self._look_after_mount)
        if self._stopping or self._watchdog is None or not self._watchdog.stuck():
            return
        self._watchdog = None
        limit = self._config.watchdog_s
        log.error("the mount answered nothing for %.0f s; see worker.log", limit)
        if self._worker:
            self._worker.kill(signal.SIGUSR1)
        self._loop.after(DUMP_S, self._replace_mount)

    def _replace_mount(self) -> None:
        """Ends the stuck connection with an error for its users, and mounts anew."""
        if self._stopping or self._worker is None:
            return
        where = self._where()
        unmounting.abort(self._connection)
        self._worker.kill(signal.SIGKILL)
        if self._device is not None:
            unmounting.detach(where)
            self._connection = ""
            self._device.renew()
        self._loop.after(PROBE_EVERY_S, self._find_connection)

    # -- what others may read --------------------------------------------------------

    def _write_state(self) -> None:
        """For others; whoever reads it looks whether the pids are there."""
        try:
            self._written_state()
        except OSError as problem:  # a full disk must not take the mount along
            log.warning("the state could not be written: %s", problem)

    def _written_state(self) -> None:
        worker, node = self._worker, self._node
        state.write(
            State(
                pid=os.getpid(),
                store=self._config.store,
                mountpoint=self._config.mountpoint,
                connection=self._connection,
                started_s=self._started_s,
                worker=worker.pid if worker else 0,
                node=node.pid,
                worker_starts=worker.starts if worker else 0,
                node_starts=node.starts,
                worker_ready=bool(worker and worker.is_ready),
                node_ready=node.is_ready,
                node_trouble=node.trouble,
            )
        )

    def _rotate_logs(self) -> None:
        """Strangers can make the node write a line for each of their connections."""
        self._loop.after(ROTATE_EVERY_S, self._rotate_logs)
        try:
            preparing.rotate_logs(self._config.run_dir)
        except OSError as problem:
            log.warning("the logs could not be set aside: %s", problem)

    def _forget_state(self) -> None:
        for name in ("supervisor.json", "config.json"):
            (self._config.run_dir / name).unlink(missing_ok=True)
