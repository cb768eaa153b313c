"""What is in a store of a node that cannot go on as what it was: on disk, before the
node starts.
"""

from __future__ import annotations

import datetime
import logging
import sqlite3
from pathlib import Path

from fusefs.errors import FsError
from fusefs.housekeeping import ASIDE, HELD
from fusefs.namespace.namespace import Namespace
from netnode.identity import write_private

log = logging.getLogger(__name__)

REFUSED = "refused"


def note_refused(store: Path, reason: str) -> None:
    """A peer says that this node does not belong to the cluster any more."""
    write_private(store / "identity" / REFUSED, reason.encode())


def refused(store: Path) -> bool:
    return (store / "identity" / REFUSED).exists()


def set_aside(store: Path, name: str, now: datetime.datetime) -> None:
    """Move the namespace out of the way. Doing it again is harmless."""
    if not (store / "meta.db").exists():
        return
    folder = store / ASIDE / f"{name}-{now:%Y%m%dT%H%M%SZ}"
    folder.mkdir(parents=True, mode=0o700)
    for file in (HELD, "meta.db-wal", "meta.db-shm", "meta.db"):
        path = store / file
        if path.exists():
            path.rename(folder / path.name)
    log.warning("the old namespace is set aside in %s", folder)


def is_untouched(store: Path) -> bool:
    """Nothing was ever put into the tree of this store, and no other node was met."""
    if not (store / "meta.db").exists():
        return True
    try:
        namespace = Namespace.open(store)
    except (FsError, sqlite3.Error):  # who knows
        return False
    try:
        return namespace.is_untouched()
    finally:
        namespace.close()


def give_up_untouched(store: Path) -> None:
    """Its identity, and the namespace with nothing in it: a new one can be made."""
    for file in ("meta.db-wal", "meta.db-shm", "meta.db"):
        (store / file).unlink(missing_ok=True)
    # Last: an identity without a namespace is one with nothing in it.
    (store / "identity" / "node.json").unlink()
    log.info("a cluster of this node alone, with nothing in it, is given up")


def rejoined(store: Path) -> None:
    """The new identity and namespace are there."""
    (store / "identity" / REFUSED).unlink(missing_ok=True)
