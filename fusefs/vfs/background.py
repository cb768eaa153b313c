"""The vfs's own clock: publishes files that stay open, renews leases on objects
that no register names yet."""

from __future__ import annotations

import logging
import threading

from fusefs.store.store import Store
from fusefs.vfs.appending import Appends
from fusefs.vfs.files import Files
from fusefs.vfs.roots import leased
from fusefs.vfs.twins import Twins
from fusefs.vfs.writing import Writer

log = logging.getLogger(__name__)

TICK_S = 0.5
RETRY_TICKS = 10
"""From one attempt to the next at merging appends whose bytes were not to be had, and
at settling twins that were written to."""
KEEP_TICKS = 40
"""From one time to the next that files without a name are kept for the next worker:
20 s, below the minute after which their registers may be forgotten."""
LEASE_EVERY_S = 300.0
"""Well below the grace time of GC."""


class Background:
    """One thread, from `start` to `stop`."""

    def __init__(
        self,
        files: Files,
        writer: Writer,
        store: Store,
        appends: Appends,
        twins: Twins,
        writeback_s: float,
    ) -> None:
        self._files = files
        self._appends = appends
        self._twins = twins
        self._writer = writer
        self._store = store
        self._writeback_s = writeback_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="vfs-writeback", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        ticks, failing = 0, False
        while not self._stopped.wait(TICK_S):
            ticks += 1
            try:
                problems = self._writer.publish_older(self._writeback_s)
                if problems and not failing:
                    log.warning("unpublished writes wait: %s", problems[0])
                failing = bool(problems)
                if ticks % RETRY_TICKS == 0:
                    self._appends.retry()
                    self._twins.retry()
                if ticks % KEEP_TICKS == 0:
                    self._files.keep_orphans()
                if ticks * TICK_S >= LEASE_EVERY_S:
                    ticks = 0
                    self.renew_leases()
            except Exception:  # without this thread nothing is published any more
                log.exception("background work failed; trying again")

    def renew_leases(self) -> None:
        """Keep GC away from what only open files name."""
        if wanted := leased(self._files):
            self._store.touch(wanted)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._files.keep_orphans()
