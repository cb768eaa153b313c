"""Whether a member whose disk was full takes copies again. It says so itself: others
would find out by offering one, in longer and longer intervals (pushes.py)."""

from __future__ import annotations

ENOUGH_BYTES = 16 << 20
"""More than there was when a copy was refused: else the next ones are, too."""


class SpaceAgain:
    """Of this node. `room`: bytes that copies may take, negative when the disk has
    less than what is kept from them."""

    def __init__(self) -> None:
        self.times = 0
        """That there was room again."""
        self._then: int | None = None
        """How much there was, when copies were refused since."""

    def refused(self, room: int) -> None:
        if self._then is None or room < self._then:
            self._then = room

    def look(self, room: int) -> bool:
        """Now and then. True: there is some again."""
        if self._then is None or room < max(self._then, 0) + ENOUGH_BYTES:
            return False
        self._then = None
        self.times += 1
        return True
