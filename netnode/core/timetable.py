"""What the members have on their disks, as far as it has come here.

Each says it of itself, and those between pass it on to whom is not connected to it.
What is on a disk stays there, so the age of a row does not matter.

Source: the time-table of Wuu and Bernstein, "Efficient Solutions to the Replicated Log
and Dictionary Problems" (1984), section 3.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import NamedTuple

from fusefs.model.ids import NodeId, Seq
from fusefs.model.vector import Vector

MOST = 32
"""Rows in one message ..."""
MOST_ENTRIES = 10_000
"""... and, after the first one, entries of their vectors: about 200 KB."""


class Row(NamedTuple):
    """`at`: when the member said so, ms by its own clock; `own`: its last transaction
    then, which after a power cut may be above what `vector` says of it: of those
    before not all are here (netnode/losses.py)."""

    at: int
    own: Seq
    vector: Vector


class TimeTable:
    """A row for each member that said what it has."""

    def __init__(self) -> None:
        self._rows: dict[NodeId, Row] = {}

    @property
    def rows(self) -> Mapping[NodeId, Row]:
        return self._rows

    def learn(self, node: NodeId, row: Row) -> None:
        """It counts instead of an earlier one, which may have come by a longer way. (A
        later one says less after a start.)"""
        known = self._rows.get(node)
        if known is None or known.at < row.at:
            self._rows[node] = row

    def keep(self, members: Collection[NodeId]) -> None:
        """Forget who is none any more."""
        self._rows = {node: row for node, row in self._rows.items() if node in members}

    def news(
        self, told: MutableMapping[NodeId, Row], without: Collection[NodeId]
    ) -> list[tuple[NodeId, Row]]:
        """Rows for a peer that was told `told`, and is told these, too, then: not of
        whom it hears itself."""
        news: list[tuple[NodeId, Row]] = []
        entries = 0
        for node, row in self._rows.items():
            if node in without or told.get(node) == row:
                continue
            entries += len(row.vector)
            if news and (len(news) == MOST or entries > MOST_ENTRIES):
                break
            news.append((node, row))
        told.update(news)
        return news
