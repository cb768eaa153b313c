"""Small chunks that travel with the transactions that name them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fusefs.errors import FsError
from fusefs.model.ids import chunk_id
from fusefs.model.tx import Body
from fusefs.store.store import Store
from netnode.wire.frames import ProtocolError

log = logging.getLogger(__name__)


def check_bodies(bodies: Sequence[Body]) -> None:
    """Raises ProtocolError when one is not what it claims to be."""
    for body in bodies:
        if chunk_id(body.data) != body.id:
            raise ProtocolError("an attached chunk is not the one it claims to be")


def keep_bodies(store: Store, bodies: Sequence[Body]) -> None:
    """Before the transactions are applied: what they name is here then."""
    if not bodies:
        return
    try:
        store.put_many([(b.id, b.data) for b in bodies], pushed=False)
    except FsError as error:
        # They can be fetched when they are read; the transactions still count.
        log.warning("attached chunks were not stored: %s", error)
