"""Counts that do not depend on the machine: SQL statements, bytes and records of one
operation each. One that grows without being changed on purpose is a regression.

To change the table on purpose, edit counts.json in the same commit and say why.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fusefs.errors import FsError
from fusefs.model.ids import ROOT_INO, NodeId
from fusefs.model.tx import Body, Tx
from fusefs.namespace import Namespace
from fusefs.store.store import Store
from fusefs.vfs import Vfs
from fusefs.vfs.ports import Alone
from fusefs.vfs.types import Caller, SetAttr

TABLE = Path(__file__).with_name("counts.json")
ME = Caller()
DATA = bytes(range(256)) * 16


class Mail(Alone):
    """Counts what would travel to the peers."""

    def __init__(self) -> None:
        self.txs: list[Tx] = []
        self.bytes = 0

    def publish(self, tx: Tx, bodies: tuple[Body, ...] = ()) -> None:
        self.txs.append(tx)
        self.bytes += len(msgspec.msgpack.encode(tx))
        self.bytes += sum(len(body.data) for body in bodies)


class Counter:
    """A vfs over a real store, and what one call of it costs."""

    def __init__(self, path: Path) -> None:
        (path / "a").mkdir()
        (path / "b").mkdir()
        self.namespace = Namespace.create(path / "a", NodeId(1))
        self.peer = Namespace.create(path / "b", NodeId(2), root=False)
        self.store = Store.open(path / "a")
        self.mail = Mail()
        self.vfs = Vfs(self.namespace, self.store, self.mail)
        self.statements = 0
        for db in (self.namespace._writer, self.namespace._reader):
            db.set_trace_callback(self._count)
        self.applied = 0
        self.peer._writer.set_trace_callback(self._count_applied)
        self.hear()

    def _count(self, statement: str) -> None:
        self.statements += 1

    def _count_applied(self, statement: str) -> None:
        self.applied += 1

    def hear(self) -> None:
        for batch in self.namespace.delta(self.peer.vector()):
            self.peer.apply_states(batch.states, batch.advance, batch.target)
        self.mail.txs.clear()

    def cost(self, operation: Callable[[], object]) -> dict[str, int]:
        """Of one operation: SQL here, transactions, bytes sent, SQL at a peer."""
        self.statements = self.mail.bytes = self.applied = 0
        self.mail.txs.clear()
        operation()
        statements, sent = self.statements, len(self.mail.txs)
        if self.mail.txs:
            assert not self.peer.apply(self.mail.txs).gap
        return {
            "sql": statements,
            "transactions": sent,
            "bytes": self.mail.bytes,
            "peer_sql": self.applied,
        }

    def close(self) -> None:
        self.vfs.close()
        assert self.namespace.problems() == []
        assert self.peer.problems() == []
        self.store.close()
        self.namespace.close()
        self.peer.close()


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    counter = Counter(tmp_path)
    yield counter
    counter.close()


def operations(c: Counter) -> dict[str, Callable[[], object]]:
    """A fixed workload; each step counts on those before it."""
    vfs = c.vfs
    directory = vfs.mkdir(ROOT_INO, b"dir", 0o755, ME).ino
    vfs.mkdir(directory, b"sub", 0o755, ME)

    def write(name: bytes, data: bytes, flags: int = os.O_WRONLY) -> None:
        handle = vfs.create(directory, name, 0o644, flags, ME).handle
        vfs.write(handle, 0, data, ME)
        vfs.flush(handle, 0)
        vfs.release(handle)

    def read(name: bytes) -> None:
        attr = vfs.lookup(directory, name)
        handle = vfs.open(attr.ino, os.O_RDONLY, ME).handle
        vfs.read_into(handle, 0, memoryview(bytearray(attr.size)), ME)
        vfs.flush(handle, 0)
        vfs.release(handle)

    def append() -> None:
        attr = vfs.lookup(directory, b"file")
        handle = vfs.open(attr.ino, os.O_WRONLY | os.O_APPEND, ME).handle
        vfs.write(handle, attr.size, b"one line\n", ME)
        vfs.flush(handle, 0)
        vfs.release(handle)

    def missing() -> None:
        with pytest.raises(FsError):
            vfs.lookup(directory, b"nothing here")

    def chmod() -> None:
        ino = vfs.lookup(directory, b"file").ino
        vfs.setattr(ino, SetAttr(mode=0o100600), ME)

    write(b"warm-up", DATA)
    return {
        "create and write 4 KiB": lambda: write(b"file", DATA),
        "stat again": lambda: vfs.lookup(directory, b"file"),
        "open, read, close again": lambda: read(b"file"),
        "look up a missing name": missing,
        "look it up again": missing,
        "append a line": append,
        "chmod": chmod,
        "mkdir": lambda: vfs.mkdir(directory, b"made", 0o755, ME),
        "write a new version": lambda: write(b"new", DATA[:100]),
        "rename over": lambda: vfs.rename(directory, b"new", directory, b"file", 0),
        "link": lambda: vfs.link(
            vfs.lookup(directory, b"file").ino, directory, b"linked"
        ),
        "unlink a link": lambda: vfs.unlink(directory, b"linked"),
        "unlink": lambda: vfs.unlink(directory, b"file"),
        "rmdir": lambda: vfs.rmdir(directory, b"made"),
    }


def test_no_operation_costs_more_than_the_table_says(counter: Counter) -> None:
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    steps = operations(counter)
    counter.hear()
    found = {name: counter.cost(step) for name, step in steps.items()}
    if os.environ.get("DFS_WRITE_COUNTS"):
        TABLE.write_text(json.dumps(found, indent=2) + "\n")
        return
    assert set(found) == set(table)
    grown = [
        f"{name}: {what} {count}, was {table[name][what]}"
        for name, costs in found.items()
        for what, count in costs.items()
        if count > table[name][what] + (16 if what == "bytes" else 0)
    ]
    assert not grown, "\n".join(grown)


def test_metadata_of_small_files_stays_small(tmp_path: Path) -> None:
    """Bytes of the metadata database per 4 KiB file (limit: 1,200)."""
    counter = Counter(tmp_path)
    number = 600
    for i in range(number):
        handle = counter.vfs.create(
            ROOT_INO, b"file-%06d.txt" % i, 0o644, os.O_WRONLY, ME
        ).handle
        counter.vfs.write(handle, 0, i.to_bytes(4, "big") + DATA[4:], ME)
        counter.vfs.flush(handle, 0)
        counter.vfs.release(handle)
    counter.namespace.buckets()
    db = counter.namespace._writer
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (unused,) = db.execute("PRAGMA freelist_count").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    each = (pages - unused) * size / number
    print(f"metadata per file: {each:.0f} bytes")
    assert each <= 1200
    counter.close()
