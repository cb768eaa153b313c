"""What a process still knows of the database from its last write transaction.

The lock file holds a counter that every writer raises before it commits. A process
that takes the lock and finds the counter where it left it knows that nobody else
wrote: the registers and rows it read or wrote last time are still true, and it need
not ask for them again. A crash between raising and committing only costs the others
their memory.
"""

from __future__ import annotations

from typing import NamedTuple

from fusefs.model.hlc import Hlc
from fusefs.model.ids import Ino, Seq
from fusefs.model.register import Register
from fusefs.namespace.types import Inode

MAX_REGISTERS = 4096
"""~0.5 KiB each; mostly the directories and files being worked on."""


class Position(NamedTuple):
    """Where the next local transaction goes on."""

    seq: Seq
    """Our own last one."""
    hlc: Hlc
    """The highest of all."""
    cuts: int
    """Power cuts since that last one (docs/formats.md, 3.4)."""


class Warm:
    """Belongs to one Namespace; used under the write lock only."""

    def __init__(self) -> None:
        self.registers: dict[bytes, tuple[Register, bytes]] = {}
        self.rows: dict[Ino, Inode | None] = {}
        self.plain: bool | None = None
        """No entry is shown by a merge rule (quick.is_plain)."""
        self.position: Position | None = None
        self._seen = -1

    def enter(self, counter: int) -> None:
        """The lock is ours and the counter stands here: forget what may be wrong."""
        if counter != self._seen:
            self.clear()
        elif len(self.registers) > MAX_REGISTERS or len(self.rows) > MAX_REGISTERS:
            self.registers.clear()
            self.rows.clear()

    def commit(self, counter: int) -> None:
        """We raised the counter to this; what we know is true when it committed."""
        self._seen = counter

    def clear(self) -> None:
        self.registers.clear()
        self.rows.clear()
        self.plain = self.position = None
        self._seen = -1
