"""Chunks that others keep from now on instead of this node, which gives its copy up.

Views of who the members are may differ, so two nodes may each take the other for a
keeper and give up at once. Hence a node that says yes when it is asked to keep a chunk
does not give it up for answers to questions it asked before that. Then one always keeps
it: who gives up last was told yes after it asked; who said so gave up since, and asked
after that; so did who told it yes, and so on, each later than the one before, and none
of them can be the last one, which promised nothing since it asked.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusefs.model.ids import ChunkId


class Leaving:
    """Forgotten with the process, as are the questions."""

    def __init__(self) -> None:
        self._asked: set[ChunkId] = set()
        self._kept: set[ChunkId] | None = None
        """Promised since it is being found out what is to be given up, which takes a
        while: of these that may be outdated. None: nobody is at it."""

    def looks(self) -> None:
        """From now on it is found out what is to be given up, up to `looked`."""
        if self._kept is None:
            self._kept = set()

    def looked(self) -> None:
        self._kept = None

    def begin(self, cid: ChunkId) -> None:
        """All who should keep it are about to be asked; nobody was yet."""
        if self._kept is None or cid not in self._kept:
            self._asked.add(cid)

    def end(self, cid: ChunkId) -> None:
        """They are not asked after all."""
        self._asked.discard(cid)

    def promised(self, cids: Iterable[ChunkId]) -> None:
        """Somebody is told, or counts on it without, that these are kept here."""
        if self._kept is not None:
            cids = tuple(cids)
            self._kept.update(cids)
        self._asked.difference_update(cids)

    def clear(self) -> None:
        """Others should keep them."""
        self._asked.clear()

    def taken(self, confirmed: Iterable[ChunkId]) -> list[ChunkId]:
        """Which of these, that all who were asked keep, are given up now."""
        gone = self._asked.intersection(confirmed)
        self._asked -= gone
        return list(gone)
