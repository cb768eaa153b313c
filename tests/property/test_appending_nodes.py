"""Two nodes append to one file through whole vfs, exchanging at random: every line
is there once on both, and no conflict file appears."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO, NodeId
from fusefs.model.tx import Body, Tx
from fusefs.namespace import Namespace
from fusefs.store.store import Store
from fusefs.vfs import Vfs
from fusefs.vfs.ports import Alone
from fusefs.vfs.types import Caller
from netnode.bodies import keep_bodies
from tests.lib.local import hear

ROOT = Caller()


class Mail(Alone):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Tx, list[Body]]] = []

    def publish(self, tx: Tx, bodies=()) -> None:
        self.sent.append((tx, list(bodies)))


class Node:
    def __init__(self, path: Path, number: int) -> None:
        path.mkdir()
        self.namespace = Namespace.create(path, NodeId(number), root=number == 1)
        self.store = Store.open(path)
        self.mail = Mail()
        self.vfs = Vfs(self.namespace, self.store, self.mail)
        self.read_to = 0

    def hear(self, other: Node) -> None:
        new, self.read_to = other.mail.sent[self.read_to :], len(other.mail.sent)
        for _, bodies in new:
            keep_bodies(self.store, bodies)
        applied = self.namespace.apply([tx for tx, _ in new])
        assert not applied.gap
        hear(self.vfs, applied.effects)

    def append(self, line: bytes) -> None:
        attr = self.vfs.lookup(ROOT_INO, b"log")
        handle = self.vfs.open(attr.ino, os.O_WRONLY | os.O_APPEND, ROOT).handle
        # as the kernel says it; what it takes for the end may have moved since
        self.vfs.write(handle, attr.size, line, ROOT, appends=True)
        self.vfs.flush(handle, 0)
        self.vfs.release(handle)

    def content(self) -> bytes:
        attr = self.vfs.lookup(ROOT_INO, b"log")
        handle = self.vfs.open(attr.ino, os.O_RDONLY, ROOT).handle
        out = bytearray(attr.size)
        self.vfs.read_into(handle, 0, memoryview(out), ROOT)
        self.vfs.release(handle)
        return bytes(out)

    def close(self) -> None:
        self.vfs.close()
        assert self.namespace.problems() == []
        self.store.close()
        self.namespace.close()


@pytest.mark.parametrize("seed", range(8))
def test_every_line_is_there_once(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    a, b = Node(tmp_path / "a", 1), Node(tmp_path / "b", 2)
    for batch in a.namespace.delta({}):
        b.namespace.apply_states(batch.states, batch.advance, batch.target)
    opened = a.vfs.create(ROOT_INO, b"log", 0o644, os.O_WRONLY, ROOT)
    a.vfs.release(opened.handle)
    b.hear(a)
    lines = []
    for number in range(150):
        who = rng.choice((a, b))
        line = b"%d at %d\n" % (number, who.namespace.node_id)
        lines.append(line)
        who.append(line)
        if rng.random() < 0.3:
            a.hear(b)
        if rng.random() < 0.3:
            b.hear(a)
    for _ in range(6):
        a.hear(b)
        b.hear(a)
        for node in (a, b):
            node.vfs._appends.merge(node.vfs.lookup(ROOT_INO, b"log").ino)
    for node in (a, b):
        assert [e.name for e in node.namespace.children(ROOT_INO)] == [b"log"]
        assert sorted(node.content().splitlines(True)) == sorted(lines)
    assert a.content() == b.content()
    a.close()
    b.close()
