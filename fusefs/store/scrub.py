"""Re-hashing what is on the disk: slowly all of it, at once what a power cut hit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from fusefs.model.ids import ChunkId
from fusefs.store import check

if TYPE_CHECKING:
    from fusefs.store.store import Store

log = logging.getLogger(__name__)

START = ChunkId(b"")
_PAGE = 64


class ScrubStep(msgspec.Struct, frozen=True):
    """What one step did. `next` continues, None: the store is through."""

    next: ChunkId | None
    checked: int
    checked_bytes: int
    damaged: list[ChunkId]
    """Deleted here, to be fetched again from peers."""


def scrub(
    store: Store, after: ChunkId = START, budget_bytes: int = 64 << 20
) -> ScrubStep:
    """Hash objects in the order of their ids until the budget is spent."""
    checked = spent = 0
    damaged = []
    while spent < budget_bytes:
        page = store.index.after(after, _PAGE)
        for cid, size in page:
            if store.delete_if_damaged(cid):
                damaged.append(cid)
            checked += 1
            spent += size
            after = cid
            if spent >= budget_bytes:
                break
        if len(page) < _PAGE and spent < budget_bytes:
            return ScrubStep(None, checked, spent, damaged)
    return ScrubStep(after, checked, spent, damaged)


def check_suspects(store: Store) -> list[ChunkId]:
    """Hash every object the power cut may have damaged, delete the bad ones (they
    are returned), and end the suspicion for good. Files and rows, of which the disk
    may have one without the other, agree again."""
    bad: list[ChunkId] = []
    since_s = store.suspects.since_s
    if since_s is None:
        return bad
    for found in store.files.walk():
        cid = found.cid
        if cid is None or found.mtime_s < since_s:
            continue
        is_suspect = (cid, found.mtime_s) in store.suspects
        if is_suspect and store.delete_if_damaged(cid):
            bad.append(cid)
            continue
        for problem in check.unindexed(store, cid, True):
            log.info("%s: %s; it has one now", problem.subject, problem.detail)
    for row in store.index.larges():
        rows = check.row_problems(store, row, True)
        for problem in check.readable(row.cid.hex(), rows):
            done = "repaired" if problem.repaired else problem.detail
            log.info("%s: %s; %s", problem.subject, problem.kind, done)
    with store.lock:
        store.index.set_state("suspect_s", None)
    store.suspects.end()
    return bad
