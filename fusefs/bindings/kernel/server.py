"""Serving one mount with a few threads; the binding's front door.

    fd = mounting.mount(...)            # in the supervisor
    server.run(vfs, fd, ...)            # in the worker, until unmounted or told to stop

`Settings.readers` threads read requests. A request that is about to wait (a fetch,
a lock, a barrier) sees to it that somebody else reads meanwhile; a request that
turns out to take long without saying so is found by the watch, every few ten
milliseconds. Threads beyond `readers` end when they are no longer needed.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from fusefs.bindings.kernel import control, files, inodes, names, recovery, session
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.channel import Channel, Handler
from fusefs.bindings.kernel.connection import Connection, Settings
from fusefs.bindings.kernel.notify import Notifier
from fusefs.bindings.kernel.ports import FileSystem
from fusefs.bindings.kernel.protocol import Op
from fusefs.bindings.kernel.session import Session
from fusefs.nodelink.fence import Gate
from fusefs.vfs.types import Invalidator

log = logging.getLogger("dfs.kernel")

_TICK_S: Final = 0.025
"""How long a silent wait of all readers can hold up others."""
_IDLE_TICK_S: Final = 0.1
"""The same while nothing is asked: ten wake-ups a second cost nothing."""
_SPARE_TICKS: Final = 40
"""Ticks of too many idle threads before some are sent home: one, and an eighth."""
_STOP_S: Final = 30.0
"""Longest wait for requests in flight when told to stop."""


def handlers(*, noted_lookups: bool = False, adopted: bool = False) -> list[Handler]:
    """The table of handlers by opcode."""
    table: list[Handler] = [control.unknown] * p.OPCODES
    for group in (names, inodes, files, control):
        for opcode, handler in group.HANDLERS.items():
            table[opcode] = handler
    if noted_lookups:
        table[Op.LOOKUP] = names.lookup_noted
    return recovery.wrapped(table) if adopted else table


class Server:
    """The threads of one connection. `run` in one thread, `stop` in any."""

    def __init__(
        self,
        fs: FileSystem,
        fd: int,
        settings: Settings | None = None,
        adopted: Session | None = None,
        gate: Gate | None = None,
    ) -> None:
        """`adopted`: the agreement of the worker that served this mount before."""
        self.connection = Connection(fs, fd, settings or Settings(), adopted, gate)
        self.notifier = Notifier(self.connection)
        self._handlers = handlers(
            noted_lookups=not self.connection.settings.directory_lock_fences,
            adopted=adopted is not None,
        )
        self._lock = threading.Lock()
        """Protects the set of channels; a thread may be started under it."""
        self._threads: dict[Channel, threading.Thread] = {}
        self._served = [0] * p.OPCODES
        """Requests of channels that ended."""
        self._refused = ""
        """Why the last thread could not be started; said once."""
        self._stopping = threading.Event()
        self._ended = threading.Event()

    # -- life ------------------------------------------------------------------------

    def start(self) -> None:
        """Starts serving. On a live mount: asks again for what was left unanswered,
        before anything is read, for the kernel repeats all that was."""
        adopted = self.connection.session
        if self.connection.adopted and adopted is not None:
            if adopted.has(p.HAS_RESEND):
                self._notify(p.OUT_HEADER.pack(16, p.NOTIFY_RESEND, 0))
            self.notifier.everything_later()
        for _ in range(self.connection.settings.readers):
            self._add_channel(resident=True)

    def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Serves until the mount is gone or `stop` is called.

        Raises:
            session.Incompatible: the kernel is too old.
        """
        self.start()
        self._watch(on_ready)
        if self._stopping.is_set():
            self._drain()
        if self.connection.failure is not None:
            raise self.connection.failure

    def stop(self) -> None:
        """Makes `run` return after the requests in flight; later ones stay in the
        kernel for the next worker. Safe in a signal handler."""
        self._stopping.set()

    @property
    def makes_way(self) -> bool:
        """It ends for another worker; the mount stays, as far as is known here."""
        return self._stopping.is_set()

    def _watch(self, on_ready: Callable[[], None] | None) -> None:
        """Until all threads ended or we are told to stop."""
        before: set[int] = set()
        spare = 0
        while not self._ended.is_set() and not self._stopping.is_set():
            if on_ready is not None and self.connection.agreed.is_set():
                if self.connection.failure is not None:
                    return
                on_ready()
                on_ready = None
            channels = self.connection.channels
            busy = {ch.unique for ch in channels} - {0}
            if len(busy) == len(channels) and busy <= before:
                self._add_channel()
            idle = len(channels) - len(busy)
            spare = spare + 1 if idle > self.connection.settings.readers else 0
            if spare > _SPARE_TICKS:
                spare = 0
                for channel in channels[-1 - (idle >> 3) :]:
                    channel.leave(unanswered=False)
            before = busy
            self.connection.tick()
            self.notifier.tick()
            self._ended.wait(_TICK_S if busy or on_ready else _IDLE_TICK_S)

    def _drain(self) -> None:
        """Waits for the requests in flight.

        A thread that sleeps in read(2) cannot be woken from here. It leaves what it
        gets unanswered and the next worker asks for it again (HAS_RESEND); on older
        kernels it has to be served still, so we wait until each has got something
        (the supervisor sees to it).
        """
        agreed = self.connection.session
        resends = agreed is not None and agreed.has(p.HAS_RESEND)
        for channel in self.connection.channels:
            channel.leave(unanswered=resends)
        deadline = time.monotonic() + _STOP_S
        while time.monotonic() < deadline:
            channels = self.connection.channels
            if not channels or (resends and not any(ch.unique for ch in channels)):
                return
            self._ended.wait(0.002)
        log.warning("requests in flight did not end in %d s", _STOP_S)

    def _notify(self, message: bytes) -> None:
        try:
            os.write(self.connection.fd, message)
        except OSError as problem:
            log.debug("notification refused: %s", problem)

    # -- threads ---------------------------------------------------------------------

    def _add_channel(self, resident: bool = False) -> bool:
        """Whether there is one more thread that reads."""
        settings = self.connection.settings
        with self._lock:
            if self._stopping.is_set():
                return False
            parked = sum(ch.parked for ch in self._threads)
            if len(self._threads) - parked >= settings.most_threads:
                return False
            if parked > settings.most_parked:
                return False
            try:
                self._start_channel(resident)
                self._refused = ""
            except (RuntimeError, OSError, MemoryError) as problem:
                if self._refused != (refused := str(problem)):
                    log.warning("no more threads to be had: %s", refused)
                self._refused = refused
            return not self._refused

    def _start_channel(self, resident: bool) -> None:
        """The lock is held. Raises RuntimeError, OSError, MemoryError."""
        taken = {channel.number for channel in self._threads}
        channel = Channel(
            self.connection,
            self._handlers,
            self._make_room,
            number=min(set(range(len(taken) + 1)) - taken),
            resident=resident,
        )
        thread = threading.Thread(
            target=self._serve, args=(channel,), name="fuse", daemon=True
        )
        self._threads[channel] = thread
        try:
            thread.start()
        except BaseException:
            del self._threads[channel]
            raise
        self.connection.channels = tuple(self._threads)

    def _make_room(self) -> bool:
        """Called by a channel about to wait: somebody must read, now or as soon as a
        request that does not wait is answered. (More threads than that would only
        hand the interpreter around: each request wakes another one.)"""
        if not all(ch.waiting for ch in self.connection.channels):
            return True
        return self._add_channel()

    def _serve(self, channel: Channel) -> None:
        try:
            channel.run()
        except Exception:
            log.exception("a serving thread failed")
        finally:
            with self._lock:
                del self._threads[channel]
                self.connection.channels = tuple(self._threads)
                for opcode, count in enumerate(channel.counts):
                    self._served[opcode] += count
                if not self._threads:
                    self._ended.set()

    # -- what is known ---------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Requests served by name, and how notifications went."""
        sums = list(self._served)
        for channel in self.connection.channels:
            sums = [a + b for a, b in zip(sums, channel.counts)]
        shown = {op.name.lower(): sums[op] for op in Op if sums[op]}
        shown["requests"] = sum(sums)
        shown["threads"] = len(self.connection.channels)
        shown["known_inodes"] = len(self.connection.lookups)
        shown["notifications"] = self.notifier.sent
        shown["notifications_queued"] = self.notifier.queued_behind
        shown["notifications_repeated"] = self.notifier.repeated
        shown["fence_waits"] = self.connection.gate.waits
        return shown


def run(
    fs: FileSystem,
    fd: int,
    *,
    on_ready: Callable[[], None] | None = None,
    on_server: Callable[[Server], None] | None = None,
    set_invalidator: Callable[[Invalidator], None] | None = None,
    settings: Settings | None = None,
    state: Path | None = None,
    gate: Gate | None = None,
) -> None:
    """Serves the mount behind `fd` until it is gone or SIGTERM asks to make way.

    Args:
        on_ready: called once when requests are answered.
        on_server: called before serving, for statistics and `stop`.
        set_invalidator: the vfs's; called before serving.
        state: file of the agreement with the kernel (STORE/run/fuse.json), written
            after INIT; if it is there, a live mount is taken over. Who mounts anew
            removes it.
        gate: what the node acknowledges early waits there (nodelink/fence.py).

    Raises:
        session.Incompatible: the kernel is too old.
    """
    settings = settings or Settings()
    server = Server(fs, fd, settings, _kept(state, acl=settings.acl), gate)
    server.connection.gate.tell()
    if set_invalidator is not None:
        set_invalidator(server.notifier)
    if on_server is not None:
        on_server(server)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: server.stop())

    def ready() -> None:
        agreed = server.connection.session
        if state is not None and agreed is not None and not server.connection.adopted:
            # In one step: a worker killed meanwhile must not leave half of it.
            fresh = state.with_suffix(".new")
            fresh.write_bytes(agreed.state())
            fresh.replace(state)
        if on_ready is not None:
            on_ready()

    server.run(ready)


def _kept(state: Path | None, *, acl: bool) -> Session | None:
    if state is None:
        return None
    try:
        return session.adopt(state.read_bytes())
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        log.warning("%s is not readable; taken for what this kernel offers", state)
        return session.presumed(acl=acl)
