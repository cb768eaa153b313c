"""Which inodes the kernel holds, and how often we told it: exact lookup counts.

Every reply with an entry adds one to its inode, every FORGET takes away what the
kernel counted. At zero the kernel does not know the inode: nothing needs to be
invalidated there. After a worker took over a live mount the counts of its
predecessor are unknown, so nothing is ever certain to be unknown to the kernel
(`exact` is False) and counts below zero are taken for zero.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from fusefs.bindings.kernel.protocol import ROOT_ID
from fusefs.model.ids import Ino
from fusefs.nodelink.fence import INO_MASK, SLOTS


class Lookups:
    """Thread-safe. `table` and `lock` are used directly by the lookup handler."""

    def __init__(
        self, *, exact: bool = True, marks: memoryview | bytearray | None = None
    ) -> None:
        """`marks`: where the node looks for what the kernel may hold (Gate.inodes)."""
        self.exact = exact
        self.marks = marks if marks is not None else bytearray(SLOTS)
        self.table: dict[Ino, int] = {}
        self.lock = threading.Lock()
        """Protects `table`; nothing is called under it."""

    def add(self, ino: Ino) -> None:
        """One more reply with this entry. Call before the reply is written."""
        self.marks[ino & INO_MASK] = 1
        with self.lock:
            self.table[ino] = self.table.get(ino, 0) + 1

    def add_all(self, inos: Iterable[Ino]) -> None:
        table, marks = self.table, self.marks
        with self.lock:
            for ino in inos:
                marks[ino & INO_MASK] = 1
                table[ino] = table.get(ino, 0) + 1

    def forget(self, ino: Ino, count: int) -> bool:
        """Takes `count` away; True when the kernel no longer holds the inode."""
        with self.lock:
            left = self.table.get(ino, 0) - count
            if left > 0:
                self.table[ino] = left
                return False
            self.table.pop(ino, None)
            return True

    def knows(self, ino: Ino) -> bool:
        """False only when the kernel certainly does not hold the inode."""
        return ino in self.table or ino == ROOT_ID or not self.exact

    def all(self) -> list[Ino]:
        """Every inode the kernel is known to hold, the root first."""
        with self.lock:
            return [Ino(ROOT_ID), *self.table]

    def __len__(self) -> int:
        return len(self.table)
