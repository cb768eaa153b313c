"""Finds out whether a mount still answers, without ever waiting for it.

Probing is an end to end question: statvfs of the mountpoint goes through the kernel,
a reader of the binding, the vfs and back, and is never answered from a cache. It
is asked in a thread that a stuck mount may hold for ever.
"""

from __future__ import annotations

import os
import threading
import time

from fusefs.mountpoint import unmounting

PROBE_EVERY_S = 5.0


class Watchdog:
    """Asked by the supervisor's loop every few seconds; answers at once."""

    def __init__(self, where: str, connection: str, limit_s: float) -> None:
        self._where = where
        self._connection = connection
        self._limit_s = limit_s
        self._asked_s = 0.0
        self._probe: threading.Thread | None = None

    def stuck(self) -> bool:
        """True when a probe has been waiting for longer than the limit.

        A new probe starts when the last one came back and the kernel has requests
        waiting, or does not tell.
        """
        now_s = time.monotonic()
        if self._probe is not None and self._probe.is_alive():
            return now_s - self._asked_s > self._limit_s
        self._probe = None
        if unmounting.waiting(self._connection) != 0:
            self._asked_s = now_s
            probe = threading.Thread(target=self._ask, daemon=True)
            try:
                probe.start()
            except RuntimeError:  # no thread to be had: says nothing about the mount
                return False
            self._probe = probe
        return False

    def _ask(self) -> None:
        try:
            os.statvfs(self._where)
        except OSError:
            pass
