"""Removing on a disk that is full to its last block.

A transaction that removes needs room in the logs of the databases. The logs start again
at their beginning first; if that is not enough the reserve goes (`store/reserve.py`).
Used by the vfs, by the node, for what peers removed, and for collecting garbage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from fusefs.errors import FsError, NoSpace
from fusefs.namespace.namespace import Namespace
from fusefs.store.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")
LOGGED = 16
"""Removals take some 50 KiB each in the log of the namespace."""


class Relief:
    """Of one store. Thread-safe; no lock may be held."""

    def __init__(self, namespace: Namespace, store: Store) -> None:
        self._namespace = namespace
        self._store = store
        self._on_reserve = 0
        """Removals since the logs began anew, with the reserve given up."""

    def removing(self, act: Callable[[], T]) -> T:
        """`act`, which leaves everything as it was when it raises NoSpace: then it is
        done again with what room can be made for it."""
        if self._store.reserve.is_in_use():
            self._keep_logs_short()
        try:
            return act()
        except NoSpace:
            self._restart_logs()
        try:
            return act()
        except NoSpace:
            if not self._store.reserve.give_up():
                raise
        log.warning("the store's disk is full: its reserve is given up for a removal")
        self._restart_logs()
        return act()

    def _keep_logs_short(self) -> None:
        """Else they take all of what was given up, and nothing is left for what the
        databases grow by when they are moved."""
        self._on_reserve += 1
        if self._on_reserve >= LOGGED:
            self._restart_logs()

    def _restart_logs(self) -> None:
        self._on_reserve = 0
        for checkpoint in (self._namespace.checkpoint, self._store.database.checkpoint):
            try:
                checkpoint(0)
            except FsError as error:
                log.debug("a log stays as long as it is: %s", error)
