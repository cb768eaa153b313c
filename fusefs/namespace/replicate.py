"""What replication asks of the namespace: apply, delta, digests.

Applying runs inside one write transaction. A delta is read in bounded batches from
one snapshot of the database while writes go on; what changes meanwhile has a dot
above the snapshot's vector, and comes by the live stream or the next delta.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from xxhash import xxh3_128_digest

from fusefs.errors import Unacceptable
from fusefs.model.context import context_of
from fusefs.model.hlc import Hlc
from fusefs.model.ids import MAX_OWN_SEQ, NodeId, Seq
from fusefs.model.register import Register, Sibling, decode_register
from fusefs.model.tx import Effects, State, Tx
from fusefs.model.vector import MAX_NODES, Vector, dominates, merged
from fusefs.namespace.derive import Derivation
from fusefs.namespace.registers import Registers, bucket_of, sound_rows
from fusefs.namespace.tombstones import collect
from fusefs.namespace.warm import Warm

Row = tuple[object, ...]
Execute = Callable[..., list[Row]]


class Applied(msgspec.Struct, frozen=True):
    """What applying did. `gap`: a transaction was beyond what we have; ask for a
    delta. `count`: how many transactions or registers brought something new."""

    effects: Effects
    gap: bool
    vector: dict[NodeId, Seq]
    count: int


class DeltaBatch(msgspec.Struct, frozen=True):
    """Registers, and how far the receiver's vector may go once they are applied.

    `target` is the vector of the snapshot the whole delta shows. Until a receiver
    has reached it, a register may still lack the write that replaced what it has.
    """

    states: list[State]
    advance: dict[NodeId, Seq]
    done: bool
    target: dict[NodeId, Seq]


def read_vector(db: sqlite3.Connection) -> dict[NodeId, Seq]:
    return {NodeId(n): Seq(s) for n, s in db.execute("SELECT node, seq FROM vector")}


def read_pending(db: sqlite3.Connection) -> dict[NodeId, Seq]:
    """The targets of deltas begun and not yet reached (meta.pending)."""
    row = db.execute("SELECT value FROM meta WHERE key = 'pending'").fetchone()
    pairs = msgspec.msgpack.decode(row[0], type=list[tuple[int, int]]) if row else []
    return {NodeId(node): Seq(seq) for node, seq in pairs}


def write_pending(db: sqlite3.Connection, pending: Vector) -> None:
    if pending:
        value = msgspec.msgpack.encode(sorted(pending.items()))
        db.execute("INSERT OR REPLACE INTO meta VALUES('pending', ?)", (value,))
    else:
        db.execute("DELETE FROM meta WHERE key = 'pending'")


class Apply:
    """One batch from a peer; lives inside a write transaction."""

    def __init__(self, db: sqlite3.Connection, warm: Warm, me: NodeId) -> None:
        self._db = db
        self._warm = warm
        self._me = me
        self._registers = Registers(db, warm.registers, repairs=True)
        self._vector = read_vector(db)
        self._hlc: dict[NodeId, Hlc] = {}
        self._moved: dict[NodeId, Seq] = {}
        self._count = 0
        self._pending = read_pending(db)
        self._was_pending = self._pending

    def txs(self, txs: Sequence[Tx]) -> bool:
        """Apply live transactions in order; True when one was beyond a gap."""
        gap = False
        for tx in txs:
            have = self._vector.get(tx.node, 0)
            if tx.seq <= have:
                continue
            if tx.prev > have:
                gap = True
                continue
            for write in tx.writes:
                seen = zip(write.context[::2], write.context[1::2])
                sibling = Sibling(tx.node, tx.seq, tx.hlc, write.value)
                state = Register(context_of([*seen, tx.dot]), (sibling,))
                self._registers.merge(write.key, state)
            self._advance(tx.node, tx.seq)
            self._see(tx.node, tx.hlc)
            self._count += 1
        return gap

    def states(self, states: Sequence[State], advance: Vector, target: Vector) -> None:
        """Merge whole registers, then raise the vector; `target`: see DeltaBatch."""
        for state in states:
            register = decode_register(state.state)
            if self._registers.merge(state.key, register):
                self._count += 1
            for sibling in register.siblings:
                self._see(sibling.node, sibling.hlc)
        for node, seq in advance.items():
            self._advance(node, seq)
        self._pending = merged(self._pending, target)

    def _advance(self, node: NodeId, seq: Seq) -> None:
        if node == self._me and seq > MAX_OWN_SEQ:
            raise Unacceptable("it says that this node made what no node makes")
        if self._vector.get(node, 0) < seq:
            self._vector[node] = seq
            self._moved[node] = seq

    def _see(self, node: NodeId, stamp: Hlc) -> None:
        if self._hlc.get(node, 0) < stamp:
            self._hlc[node] = stamp

    def finish(self, gap: bool) -> Applied:
        """Raises Unacceptable for what would not fit into a message of ours."""
        if (
            len(self._vector.keys() | self._hlc.keys() | self._pending.keys())
            > MAX_NODES
        ):
            raise Unacceptable(f"it knows of more than {MAX_NODES} nodes")
        derivation = Derivation(self._db, self._registers, self._warm, remote=True)
        effects = derivation.run()
        self._warm.position = None
        if dominates(self._vector, self._pending):
            self._pending = {}
            collect(self._db, self._registers, self._vector)
        if self._pending != self._was_pending:
            write_pending(self._db, self._pending)
        self._registers.flush()
        for node in {*self._moved, *self._hlc}:
            self._db.execute(
                "INSERT INTO vector VALUES(?1, ?2, ?3) ON CONFLICT(node) DO UPDATE"
                " SET seq = max(seq, ?2), hlc = max(hlc, ?3)",
                (node, self._moved.get(node, 0), self._hlc.get(node, 0)),
            )
        return Applied(effects, gap, self._vector, self._count)


_DELTA_SQL = (
    "SELECT r.key, CAST(r.state AS BLOB), r.sum, r.seq FROM register r"
    " WHERE r.node = ?1 AND r.seq > ?2 AND r.seq <= ?3"
    " UNION ALL "
    "SELECT x.key, CAST(r.state AS BLOB), r.sum, x.seq"
    " FROM extra_dot x JOIN register r ON r.key = x.key"
    " WHERE x.node = ?1 AND x.seq > ?2 AND x.seq <= ?3"
    " ORDER BY 4 LIMIT ?4"
)
_PAGE = 500


def delta(
    snapshot: sqlite3.Connection, since: Vector, limit_bytes: int
) -> Iterator[DeltaBatch]:
    """Every register with a sibling dot above `since`, in batches that end with a
    whole transaction. `snapshot` is inside a read transaction of its own: were the
    batches of different moments, a write might be missing whose predecessor was
    replaced meanwhile."""

    def execute(sql: str, args: tuple[object, ...]) -> list[Row]:
        return snapshot.execute(sql, args).fetchall()

    upto = read_vector(snapshot)
    states: list[State] = []
    size = 0
    advance: dict[NodeId, Seq] = {}
    for node in sorted(upto):
        at = since.get(node, 0)
        while at < upto[node]:
            rows = execute(_DELTA_SQL, (node, at, upto[node], _PAGE))
            rows = _whole_transactions(execute, rows, node, at)
            if not rows:
                break
            for key, state, _ in sound_rows(row[:3] for row in rows):
                states.append(State(key, state))
                size += len(key) + len(state) + 8
            at = Seq(rows[-1][3])  # type: ignore[arg-type]
            advance[node] = at
            if size >= limit_bytes:
                yield DeltaBatch(states, advance, False, upto)
                states, size, advance = [], 0, {}
        advance[node] = upto[node]
    yield DeltaBatch(states, dict(upto) | advance, True, upto)


def _whole_transactions(
    execute: Execute, rows: list[Row], node: NodeId, after: int
) -> list[Row]:
    """A full page may end inside a transaction: drop or complete that one."""
    if len(rows) < _PAGE:
        return rows
    last = rows[-1][3]
    whole = [row for row in rows if row[3] != last]
    if whole:
        return whole
    return execute(_DELTA_SQL, (node, after, last, 1 << 30))


def tree_digest(buckets: Sequence[bytes]) -> bytes:
    """One digest of all registers, from the digests of the buckets."""
    return xxh3_128_digest(b"".join(buckets))


def bucket_hashes(
    rows: Iterable[tuple[bytes, bytes, int]], bucket: int
) -> list[tuple[bytes, bytes]]:
    """(key, hash) of each sound register of a bucket; rows of (key, state, sum)."""
    chosen = (row for row in rows if bucket_of(row[0]) == bucket)
    return [(key, found.to_bytes(16, "big")) for key, _, found in sound_rows(chosen)]
