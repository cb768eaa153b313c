"""The vfs's own clock: publishes files that stay open, renews leases on objects
that no register names yet, keeps what the next worker needs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from fusefs.store.store import Store
from fusefs.vfs.appending import Appends
from fusefs.vfs.files import Files
from fusefs.vfs.roots import leased
from fusefs.vfs.twins import Twins
from fusefs.vfs.writing import Writer

log = logging.getLogger(__name__)

TICK_S = 0.5
"""From one look at what is unpublished to the next."""
LOOK_S = 5.0
"""From one attempt to the next at merging appends whose bytes were not to be had, and
at settling twins that were written to."""
KEEP_LOOKS = 4
"""From one time to the next that files without a name are kept for the next worker:
20 s, below the minute after which their registers may be forgotten."""
LEASE_LOOKS = 60
"""300 s, well below the grace time of GC."""


class Background:
    """Two threads, from `start` to `stop`: who publishes may wait for peers."""

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
        self._failing = False
        self._threads = [
            threading.Thread(target=self._every, name=name, args=work, daemon=True)
            for name, work in (
                ("vfs-writeback", (TICK_S, self._publish)),
                ("vfs-looks", (LOOK_S, self._look)),
            )
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _every(self, pause_s: float, work: Callable[[int], None]) -> None:
        number = 0
        while not self._stopped.wait(pause_s):
            number += 1
            try:
                work(number)
            except Exception:  # without this thread nothing is published any more
                log.exception("background work failed; trying again")

    def _publish(self, _: int) -> None:
        problems = self._writer.publish_older(self._writeback_s)
        if problems and not self._failing:
            log.warning("unpublished writes wait: %s", problems[0])
        self._failing = bool(problems)

    def _look(self, number: int) -> None:
        self._appends.retry()
        self._twins.retry()
        if number % KEEP_LOOKS == 0:
            self._files.keep_orphans()
        if number % LEASE_LOOKS == 0:
            self.renew_leases()

    def renew_leases(self) -> None:
        """Keep GC away from what only open files name."""
        if wanted := leased(self._files):
            self._store.touch(wanted)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._files.keep_orphans()
