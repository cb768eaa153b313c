"""Which objects a power cut may have damaged.

An object whose file was written after the last background sync began may hold
anything after a power cut: it is hashed before its first use. The window is kept
in small.db until a scrub has seen every such object, so that a crash between the
power cut and the scrub does not forget it.
"""

from __future__ import annotations

from fusefs.model.ids import ChunkId

MARGIN_S = 2.0
"""File times lag the clock by a tick, and clocks are set."""


class Suspects:
    """The window, and what this process has cleared of it. `since_s` None: none."""

    def __init__(self, since_s: float | None) -> None:
        self.since_s = since_s
        self._cleared: set[ChunkId] = set()

    def __contains__(self, item: tuple[ChunkId, float]) -> bool:
        """(id, mtime_s): must this object be hashed before it is used?"""
        cid, mtime_s = item
        since_s = self.since_s
        return since_s is not None and mtime_s >= since_s and cid not in self._cleared

    def clear(self, cid: ChunkId) -> None:
        """This process wrote the object, or has found it whole."""
        if self.since_s is not None:
            self._cleared.add(cid)

    def end(self) -> None:
        """Every suspect has been looked at."""
        self.since_s = None
        self._cleared.clear()


def window_start(synced_s: float | None, earlier: float | None) -> float:
    """Where the window begins after a power cut.

    Args: synced_s: when the last background sync began, None: there was none;
    earlier: the window of an earlier power cut that was not scrubbed to its end.
    """
    start = 0.0 if synced_s is None else synced_s - MARGIN_S
    return start if earlier is None else min(start, earlier)
