"""Sorted, disjoint, non-touching byte ranges: what of a chunk was written.

Nearly always there is one range that grows at its end, so that case is first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator


class Extents:
    """Half-open ranges [start, end). Not thread-safe: the file's lock covers it."""

    __slots__ = ("ranges",)

    def __init__(self, *ranges: tuple[int, int]) -> None:
        self.ranges: list[tuple[int, int]] = list(ranges)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    @property
    def end(self) -> int:
        """One past the last byte; 0 when empty."""
        return self.ranges[-1][1] if self.ranges else 0

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        ranges = self.ranges
        if not ranges or start > ranges[-1][1]:
            ranges.append((start, end))
            return
        last_start, last_end = ranges[-1]
        if start >= last_start:
            if end > last_end:
                ranges[-1] = (last_start, end)
            return
        self._merge(start, end)

    def _merge(self, start: int, end: int) -> None:
        ranges = self.ranges
        first = bisect_left(ranges, start, key=lambda r: r[1])
        last = first
        while last < len(ranges) and ranges[last][0] <= end:
            start, end = min(start, ranges[last][0]), max(end, ranges[last][1])
            last += 1
        ranges[first:last] = [(start, end)]

    def extend(self, other: Extents) -> None:
        for start, end in other.ranges:
            self.add(start, end)

    def cut(self, limit: int) -> None:
        """Forget everything from `limit` on."""
        ranges = self.ranges
        while ranges and ranges[-1][0] >= limit:
            ranges.pop()
        if ranges and ranges[-1][1] > limit:
            ranges[-1] = (ranges[-1][0], limit)

    def covers(self, start: int, end: int) -> bool:
        """Whether one range holds all of [start, end)."""
        for low, high in self.ranges:
            if low <= start:
                if high >= end:
                    return True
            else:
                break
        return start >= end

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of the ranges inside [start, end)."""
        for low, high in self.ranges:
            if low >= end:
                return
            if high > start:
                yield max(low, start), min(high, end)
