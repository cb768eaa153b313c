"""Under which names the kernel has directories, as far as it was told.

When rmdir(2), or a rename upon a name, succeeds, the kernel takes the directory it has
there for dead, and finds nothing in it any more. Its request only says the name: where
a peer has moved that directory a moment ago, and the kernel was not told yet, another
one was removed here, or none. The one that lives on has to come back to the kernel as
another generation (`Connection.took`).

Called by serving and notifying threads; each step is one of a dict.
"""

from __future__ import annotations

from fusefs.model.ids import Ino

Place = tuple[Ino, bytes]
"""A directory and a name in it."""


class Places:
    """Thread-safe, in that what is found may be a moment old."""

    def __init__(self) -> None:
        self._of: dict[Ino, Place] = {}
        self._at: dict[Place, Ino] = {}
        self.get = self._of.get

    def put(self, ino: Ino, place: Place) -> None:
        """The kernel is told that the directory is there."""
        before = self._of.get(ino)
        if before is not None and before != place and self._at.get(before) == ino:
            self._at.pop(before, None)
        self._of[ino] = place
        self._at[place] = ino

    def offer(self, ino: Ino, place: Place) -> None:
        """The same, of one that it may have elsewhere, and moves when it looks."""
        if ino not in self._of:
            self.put(ino, place)

    def moved(self, ino: Ino, place: Place) -> None:
        """The kernel moved what it knows."""
        if ino in self._of:
            self.put(ino, place)

    def forget(self, ino: Ino) -> None:
        place = self._of.pop(ino, None)
        if place is not None and self._at.get(place) == ino:
            self._at.pop(place, None)

    def at(self, place: Place) -> Ino | None:
        return self._at.get(place)

    def left(self, place: Place, ino: Ino | None) -> None:
        """The kernel has forgotten the name, under which it had this one."""
        if ino is not None and self._at.get(place) == ino:
            self._at.pop(place, None)

    def clear(self) -> None:
        self._of.clear()
        self._at.clear()
