"""Two nodes append to one file through whole vfs, exchanging at random: every line
is there once on both, and no conflict file appears."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from fusefs.errors import Unreachable
from fusefs.model.ids import ROOT_INO, ChunkId, NodeId
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
        self.near: dict[Store, list[Store]] = {}
        """To a store, those that bytes can be had from."""

    def fetch(self, cids: Sequence[ChunkId], **options: object) -> None:
        for mine, others in self.near.items():
            for cid in cids:
                for other in others:
                    if other.has(cid):
                        mine.put_verified(cid, other.get(cid))
            if not mine.missing(cids):
                return
        raise Unreachable("who has it is away")

    def publish(self, tx: Tx, bodies=()) -> None:
        self.sent.append((tx, list(bodies)))


class Node:
    def __init__(self, path: Path, number: int) -> None:
        path.mkdir()
        self.namespace = Namespace.create(path, NodeId(number), root=number == 1)
        self.store = Store.open(path)
        self.mail = Mail()
        self.vfs = Vfs(self.namespace, self.store, self.mail)
        self.read_to: dict[Node, int] = {}

    def hear(self, other: Node, *, whole: bool = True) -> None:
        """`whole`: with the bytes."""
        read_to = self.read_to.get(other, 0)
        new, self.read_to[other] = other.mail.sent[read_to:], len(other.mail.sent)
        for _, bodies in new if whole else ():
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


@pytest.mark.parametrize("seed", range(12))
def test_what_others_append_waits_for_its_bytes(seed: int, tmp_path: Path) -> None:
    """Who has it is away. What is appended meanwhile is no conflict with it."""
    rng = random.Random(seed)
    nodes = [Node(tmp_path / name, n) for n, name in enumerate("abc", 1)]
    first = nodes[0]
    for other in nodes[1:]:
        for batch in first.namespace.delta({}):
            other.namespace.apply_states(batch.states, batch.advance, batch.target)
    opened = first.vfs.create(ROOT_INO, b"log", 0o644, os.O_WRONLY, ROOT)
    first.vfs.release(opened.handle)
    for other in nodes[1:]:
        other.hear(first)
    lines = []
    for number in range(40):
        who = rng.choice(nodes)
        line = b"%d at %d\n" % (number, who.namespace.node_id)
        lines.append(line)
        try:
            who.append(line)
        except Unreachable:  # the end of the file, too; published later
            pass
        hears = rng.choice([node for node in nodes if node is not who])
        hears.hear(who, whole=rng.random() < 0.5)
    for node in nodes:
        node.mail.near = {node.store: [other.store for other in nodes]}
    for _ in range(6):
        for node in nodes:
            node.vfs.sync()
            for other in nodes:
                if other is not node:
                    node.hear(other)
            node.vfs._appends.merge(node.vfs.lookup(ROOT_INO, b"log").ino)
    for node in nodes:
        assert [e.name for e in node.namespace.children(ROOT_INO)] == [b"log"]
        assert sorted(node.content().splitlines(True)) == sorted(lines)
        assert node.content() == first.content()
    for node in nodes:
        node.close()
