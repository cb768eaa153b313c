"""Two nodes, with an eye on what the kernel of the second would be told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from fusefs.model.ids import Ino
from tests.lib.local import Local
from tests.lib.pair import Pair, pair_of


class Kernel:
    """What a binding would be told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def entry(self, parent: Ino, name: bytes) -> None:
        self.told.append(("entry", parent, name))

    def knows(self, ino: Ino) -> bool:
        return True

    def returned(self, directory: Ino) -> None:
        self.told.append(("returned", directory))

    def deleted(self, parent: Ino, child: Ino, name: bytes) -> None:
        self.told.append(("deleted", parent, child, name))

    def attributes(self, ino: Ino) -> None:
        self.told.append(("attributes", ino))

    def data(self, ino: Ino, offset: int, length: int) -> None:
        self.told.append(("data", ino, offset, length))

    def everything(self) -> None:
        self.told.append(("everything",))

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def take(self) -> list[tuple[object, ...]]:
        told, self.told = self.told, []
        return told


class Watched(Pair):
    """With an eye on what the kernel of `b` would be told."""

    def __init__(self, a: Local, b: Local) -> None:
        super().__init__(a, b)
        self.kernel = Kernel()
        b.vfs.set_invalidator(self.kernel)


@contextmanager
def watched_pair(path: Path) -> Iterator[Watched]:
    with pair_of(path) as made:
        watched = Watched(made.a, made.b)
        watched.sent = made.sent
        yield watched
