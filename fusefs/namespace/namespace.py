"""The namespace of one node: registers, the derived tree, transactions.

Both processes of a node open it. Reads come from any thread, from a cache of rows
or one indexed query on a read connection. Writes go through one connection under
the cross-process write lock.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from fusefs.model.ids import Ino, NodeId, Seq
from fusefs.model.records import (
    CONTENT,
    MEMBER,
    SETTING,
    XATTR,
    Member,
    attrs_key,
    decode_content,
    decode_member,
    key_ino,
    key_name,
    place_key,
    unlinked_key,
    xattr_key,
)
from fusefs.model.register import Register, decode_register
from fusefs.model.tx import Effects, State, Tx
from fusefs.model.vector import Vector
from fusefs.namespace import check, conflicts, schema
from fusefs.namespace.cache import RowCache
from fusefs.namespace.lock import WriteLock
from fusefs.namespace.registers import (
    actual_buckets,
    correct_digests,
    fold_digests,
    read_buckets,
    read_horizon,
)
from fusefs.namespace.replicate import (
    Applied,
    Apply,
    DeltaBatch,
    bucket_hashes,
    delta,
    read_vector,
    tree_digest,
)
from fusefs.namespace.rows import unnamed_row
from fusefs.namespace.tombstones import HORIZON, encode_horizon
from fusefs.namespace.transaction import Transaction
from fusefs.namespace.types import Entry, Inode
from fusefs.namespace.warm import Warm
from fusefs.store.checkpoint import Checkpoint

CACHED_ROWS = 32_768
"""Of each kind; an inode takes ~0.7 KiB."""
MOST_AHEAD = 128
"""Names read for one that is looked up: ~0.5 ms."""

Row = tuple[object, ...]
_ABSENT = Entry(Ino(0), b"", Ino(0), 0, 0)


class Totals(msgspec.Struct, frozen=True):
    inodes: int
    bytes: int


def boot_id() -> str:
    """Changes with every boot of the kernel (proc(5))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Namespace:
    """See the module. `clock` gives nanoseconds since the epoch."""

    def __init__(
        self, directory: Path, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        path = directory / "meta.db"
        self.path = path
        self._clock = clock
        self._writer = schema.connect(path)
        schema.check_version(self._writer, path)
        self._reader = schema.connect(path)
        self._reader.execute("PRAGMA query_only = 1")
        self._reader_lock = threading.Lock()  # one statement at a time; SQLite only
        self._write_lock = WriteLock(directory / "write.lock")
        self._warm = Warm()
        self._inodes: RowCache[Ino, Inode] = RowCache(CACHED_ROWS)
        self._entries: RowCache[tuple[Ino, bytes], Entry] = RowCache(CACHED_ROWS)
        self._bare: RowCache[Ino, bool] = RowCache(CACHED_ROWS)
        """Inodes without extended attributes: the kernel asks before a first write."""
        self.node_id = NodeId(int(self._meta("node_id")))
        self._ahead: tuple[Ino, bytes, int] = (Ino(0), b"", 1)
        """Where the last missing entry was, the name after what was read then, and
        how many were read."""
        self._wal_fd: int | None = None
        self._checkpoint = Checkpoint(
            lambda wait_s: schema.connect(path, timeout_s=wait_s),
            path.with_name("meta.db-wal"),
            self._write_lock,
        )

    @classmethod
    def create(
        cls,
        directory: Path,
        node_id: NodeId,
        *,
        uid: int = 0,
        gid: int = 0,
        root: bool = True,
        mode: int = 0o755,
        clock: Callable[[], int] = time.time_ns,
    ) -> Namespace:
        """Make meta.db. `root`: this node founds the cluster and writes the root's
        attributes; a joining node learns them. Raises FileExistsError."""
        db = schema.create(directory / "meta.db")
        db.execute("INSERT INTO meta VALUES('node_id', ?)", (node_id,))
        db.execute("INSERT INTO vector VALUES(?, 0, 0)", (node_id,))
        db.execute(
            "INSERT INTO inode VALUES(1,?,0,0,0,2,0,0,0,0,0,x'',20,0,0,x'',1,0)",
            (0o040755,),
        )
        db.close()
        namespace = cls(directory, clock=clock)
        if root:
            with namespace.transaction() as t:
                t.new_inode(Ino(1), 0o040000 | mode, uid, gid)
        return namespace

    @classmethod
    def open(
        cls, directory: Path, *, clock: Callable[[], int] = time.time_ns
    ) -> Namespace:
        """The namespace of an existing store. Raises Corrupt."""
        return cls(directory, clock=clock)

    # -- life of the store ----------------------------------------------------

    def mark_running(self) -> bool:
        """Called once by the owner of the store at start; what it notes is on disk
        when it returns. True: the machine went down without a clean stop, so the
        local seq jumps and objects are suspect."""
        with self._write_lock:
            self._write_lock.raise_counter()
            before, clean = self._meta("boot_id"), self._meta("clean")
            power_cut = bool(before) and not int(clean or 0) and before != boot_id()
            if power_cut:
                # those noted before are still there: what came after was lost, too
                self._set_meta("skip", int(self._meta("skip") or 0) + 1)
                if not self._meta("lost_after"):
                    self._set_meta("lost_after", self.vector().get(self.node_id, 0))
            self._set_meta("boot_id", boot_id())
            self._set_meta("clean", 0)
        self.sync()
        return power_cut

    def lost_after(self) -> Seq | None:
        """After a power cut: own transactions above this may be lost here and known
        to peers, until `found_again`. None: nothing is missing."""
        text = self._meta("lost_after")
        return Seq(int(text)) if text else None

    def found_again(self) -> None:
        """Every member was asked for what was lost here."""
        with self._write_lock:
            self._writer.execute("DELETE FROM meta WHERE key = 'lost_after'")

    def mark_clean(self) -> None:
        """Called by the owner after everything is synced and closed by others."""
        with self._write_lock:
            self._set_meta("clean", 1)
        self.sync()

    def _meta(self, key: str) -> str:
        row = self._writer.execute(
            "SELECT value FROM meta WHERE key = ?", (key,)
        ).fetchone()
        return str(row[0]) if row else ""

    def _set_meta(self, key: str, value: object) -> None:
        self._writer.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))

    def sync(self) -> None:
        """Everything committed before is durable when this returns."""
        if self._wal_fd is None:
            try:
                self._wal_fd = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return
        os.fdatasync(self._wal_fd)

    def checkpoint(self) -> None:
        """Now and then: keeps the WAL short, so that no commit has to."""
        self._checkpoint.run()

    def close(self) -> None:
        self._checkpoint.close()
        self._reader.close()
        self._writer.close()
        self._write_lock.close()
        if self._wal_fd is not None:
            os.close(self._wal_fd)
            self._wal_fd = None

    # -- reads ----------------------------------------------------------------

    def _read(
        self, sql: str, args: tuple[object, ...] = ()
    ) -> list[tuple[object, ...]]:
        with self._reader_lock:
            return self._reader.execute(sql, args).fetchall()

    def _rows(self, sql: str, args: tuple[object, ...]) -> list[Row]:
        """A few rows. Read through the writer's connection where it is free: our own
        commits void all that the reader's has in memory."""
        lock = self._write_lock
        if lock.try_here():
            try:
                return self._writer.execute(sql, args).fetchall()
            finally:
                lock.leave_here()
        return self._read(sql, args)

    def _row(self, sql: str, args: tuple[object, ...]) -> Row | None:
        rows = self._rows(sql, args)
        return rows[0] if rows else None

    def inode(self, ino: Ino) -> Inode | None:
        row = self._inodes.get(ino)
        if row is not None:
            return row
        generation = self._inodes.generation
        found = self._row("SELECT * FROM inode WHERE ino = ?", (ino,))
        if found is None:
            return None
        row = Inode(*found)  # type: ignore[arg-type]
        self._inodes.offer(ino, row, generation)
        return row

    def entry(self, parent: Ino, name: bytes) -> Entry | None:
        """What the name shows, or None; absence is cached too. Who looks up one name
        after the other, in their order, finds the next ones (and their inodes)
        cached."""
        row = self._entries.get((parent, name))
        if row is None:
            row = self._look_ahead(parent, name)
        return row if row.ino else None

    def _look_ahead(self, parent: Ino, name: bytes) -> Entry:
        at, expected, window = self._ahead
        in_order = at == parent and expected == name
        window = min(window * 2, MOST_AHEAD) if in_order else 1
        entries, inodes = self._entries, self._inodes
        of_entries, of_inodes = entries.generation, inodes.generation
        rows = self._rows(
            "SELECT e.*, i.* FROM entry e LEFT JOIN inode i ON i.ino = e.ino"
            " WHERE e.parent = ? AND e.name >= ? ORDER BY e.name LIMIT ?",
            (parent, name, window + 1),
        )
        found = _ABSENT
        for row in rows[:window]:
            entry = Entry(*row[:5])  # type: ignore[arg-type]
            if entry.name == name:
                found = entry
            entries.offer((parent, entry.name), entry, of_entries)
            if row[5] is not None:
                inodes.offer(entry.ino, Inode(*row[5:]), of_inodes)  # type: ignore[arg-type]
        if found is _ABSENT:
            entries.offer((parent, name), _ABSENT, of_entries)
        last = rows[-1][1] if len(rows) > window else b""
        self._ahead = (parent, last, window)  # type: ignore[assignment]
        return found

    def children(
        self, parent: Ino, after: bytes = b"", limit: int = 1000
    ) -> list[Entry]:
        """Entries in byte order of their names, those after `after`."""
        rows = self._read(
            "SELECT e.* FROM entry e JOIN inode i ON i.ino = e.ino"
            " WHERE e.parent = ? AND e.name > ? ORDER BY e.name LIMIT ?",
            (parent, after, limit),
        )
        return [Entry(*row) for row in rows]  # type: ignore[arg-type]

    def children_full(
        self, parent: Ino, after: bytes = b"", limit: int = 1000
    ) -> list[tuple[Entry, Inode]]:
        """The same with their inodes, in one query."""
        rows = self._read(
            "SELECT e.*, i.* FROM entry e JOIN inode i ON i.ino = e.ino"
            " WHERE e.parent = ? AND e.name > ? ORDER BY e.name LIMIT ?",
            (parent, after, limit),
        )
        return [(Entry(*row[:5]), Inode(*row[5:])) for row in rows]  # type: ignore[arg-type]

    def parents(self, ino: Ino) -> list[Entry]:
        """Every name of the inode."""
        rows = self._read("SELECT * FROM entry WHERE ino = ?", (ino,))
        return [Entry(*row) for row in rows]  # type: ignore[arg-type]

    def shown(self, parent: Ino, name: bytes) -> Ino:
        """The inode under a name, 0 for none; as the database says, not the cache."""
        row = self._row(
            "SELECT ino FROM entry WHERE parent = ? AND name = ?", (parent, name)
        )
        return Ino(row[0] if row else 0)  # type: ignore[arg-type]

    def has_children(self, ino: Ino) -> bool:
        return bool(self._read("SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (ino,)))

    def _register(self, key: bytes) -> Register | None:
        row = self._row("SELECT state FROM register WHERE key = ?", (key,))
        return decode_register(row[0]) if row else None  # type: ignore[arg-type]

    def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        return self._xattrs(ino).get(name) if not self._bare.get(ino) else None

    def xattrs(self, ino: Ino) -> list[bytes]:
        """Names of the inode's extended attributes."""
        return list(self._xattrs(ino)) if not self._bare.get(ino) else []

    def _xattrs(self, ino: Ino) -> dict[bytes, bytes]:
        generation = self._bare.generation
        rows = self._read(
            "SELECT key, state FROM register WHERE key >= ? AND key < ?",
            (xattr_key(ino, b""), XATTR + (ino + 1).to_bytes(8, "big")),
        )
        if not rows:
            self._bare.offer(ino, True, generation)
        out: dict[bytes, bytes] = {}
        for key, state in rows:
            latest = decode_register(state).latest  # type: ignore[arg-type]
            if latest and latest.value:
                out[key_name(key)] = latest.value[1:]  # type: ignore[arg-type]
        return out

    def content_versions(self, ino: Ino) -> Register:
        """The content register itself (conflicts, append merging)."""
        register = self._register(CONTENT + ino.to_bytes(8, "big"))
        return register or Register({}, ())

    def unlinked(self, ino: Ino) -> Inode | None:
        """A file that lost its last name, for who had it open across a restart: as
        long as its registers are kept (formats.md, 3.5)."""
        if self._register(unlinked_key(ino)) is None:
            return None
        attrs = self._register(attrs_key(ino))
        return unnamed_row(ino, attrs, self.content_versions(ino)) if attrs else None

    def totals(self) -> Totals:
        rows = self._read("SELECT count(*), coalesce(sum(size), 0) FROM inode")
        return Totals(rows[0][0], rows[0][1])  # type: ignore[arg-type]

    def live_roots(self) -> Iterator[tuple[bytes, int, int]]:
        """(root, size, chunk_log2) of every content version any register holds,
        shown or not: what GC must keep. All of one snapshot: data that is cloned
        while somebody looks must not be missed at both places."""
        snapshot = schema.connect(self.path, read_only=True)
        try:
            snapshot.execute("BEGIN")
            for (state,) in snapshot.execute(
                "SELECT state FROM register WHERE key >= ? AND key < ?",
                (CONTENT, bytes((CONTENT[0] + 1,))),
            ):
                for sibling in decode_register(state).live:
                    content = decode_content(sibling.value)
                    if content.root:
                        yield content.root, content.size, content.chunk_log2
        finally:
            snapshot.close()

    def members(self) -> dict[NodeId, Member]:
        return {
            NodeId(key_ino(key)): decode_member(value)
            for key, value in self._latest_of(MEMBER)
        }

    def settings(self) -> dict[bytes, bytes]:
        return {key_name(key): value for key, value in self._latest_of(SETTING)}

    def _latest_of(self, kind: bytes) -> Iterator[tuple[bytes, bytes]]:
        rows = self._read(
            "SELECT key, state FROM register WHERE key >= ? AND key < ?",
            (kind, bytes((kind[0] + 1,))),
        )
        for key, state in rows:
            latest = decode_register(state).latest  # type: ignore[arg-type]
            if latest is not None and latest.value:
                yield key, latest.value  # type: ignore[misc]

    # -- writes ---------------------------------------------------------------

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock, self._begun() as db:
            yield db

    @contextmanager
    def _begun(self) -> Iterator[sqlite3.Connection]:
        """One SQLite transaction; the write lock is held."""
        db, lock, warm = self._writer, self._write_lock, self._warm
        warm.enter(lock.counter)
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            warm.commit(lock.raise_counter())
            db.execute("COMMIT")
        except BaseException:
            warm.clear()
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """One local transaction: commits on a normal exit, rolls back on an
        exception. After it, `.tx` and `.effects` say what was done."""
        with self._write_lock:
            with self._begun() as db:
                transaction = Transaction(db, self.node_id, self._clock(), self._warm)
                yield transaction
                transaction.finish()
            self._remember(transaction.effects, transaction.bare)

    # -- exclusive creation between nodes ---------------------------------------

    def placed_by(self, ino: Ino) -> NodeId | None:
        """The node that made the directory, or moved it last."""
        register = self._register(place_key(ino))
        latest = register.latest if register else None
        return latest.dot[0] if latest is not None else None

    def reserve(self, parent: Ino, name: bytes, until_ns: int) -> bool:
        """Another node may create this name, unless it is there. Until then, or until
        `nothing_reserved`, `reserved_until_ns` says so to both processes."""
        with self._write_lock:
            if self.shown(parent, name):
                return False
            lock = self._write_lock
            lock.reserved_until_ns = max(lock.reserved_until_ns, until_ns)
            return True

    def nothing_reserved(self) -> None:
        """The counterpart of `reserve`, when all such names were made."""
        with self._write_lock:
            self._write_lock.reserved_until_ns = 0

    def reserved_until_ns(self) -> int:
        """To be read within a transaction."""
        return self._write_lock.reserved_until_ns

    def _remember(self, effects: Effects, bare: Iterable[Ino]) -> None:
        """Put the rows just written where readers look first. The write lock is
        held: nobody can have changed them since."""
        self.forget(effects)
        for ino in bare:
            self._bare.offer(ino, True, self._bare.generation)
        rows, plain = self._warm.rows, self._warm.plain
        inodes, entries = self._inodes, self._entries
        for ino in effects.inodes:
            row = rows.get(ino)
            if row is not None:
                inodes.offer(ino, row, inodes.generation)
        for change in effects.entries if plain else ():
            row = rows.get(Ino(change.new))
            if row is not None:
                parent, name = change.parent, change.name
                entry = Entry(parent, name, row.ino, stat.S_IFMT(row.mode) >> 12, 0)
                entries.offer((parent, name), entry, entries.generation)

    def put_member(self, node: NodeId, member: Member) -> Tx | None:
        with self.transaction() as t:
            t.put_member(node, member)
        return t.tx

    def put_setting(self, name: bytes, value: bytes) -> Tx | None:
        with self.transaction() as t:
            t.put_setting(name, value)
        return t.tx

    def put_horizon(self, upto: Vector, after: Vector) -> Tx | None:
        """All members acknowledged `upto`; see tombstones.py for `after`."""
        return self.put_setting(HORIZON, encode_horizon(upto, after))

    def registers_count(self) -> int:
        return self._read("SELECT count(*) FROM register")[0][0]  # type: ignore[return-value]

    # -- replication ----------------------------------------------------------

    def vector(self) -> dict[NodeId, Seq]:
        with self._reader_lock:
            return read_vector(self._reader)

    def apply(self, txs: Sequence[Tx]) -> Applied:
        """Apply live transactions of peers in one commit."""
        with self._write() as db:
            batch = Apply(db, self._warm)
            applied = batch.finish(batch.txs(txs))
        self.forget(applied.effects)
        return applied

    def apply_states(
        self, states: Sequence[State], advance: Vector, target: Vector | None = None
    ) -> Applied:
        """Merge a delta batch in one commit, then the vector covers `advance`.
        `target` is the batch's own (DeltaBatch)."""
        with self._write() as db:
            batch = Apply(db, self._warm)
            batch.states(states, advance, target or {})
            applied = batch.finish(False)
        self.forget(applied.effects)
        return applied

    def delta(
        self, since: Vector, limit_bytes: int = 256 * 1024
    ) -> Iterator[DeltaBatch]:
        """What a peer with vector `since` lacks, in batches of about limit_bytes,
        all of one snapshot. Close the generator when it is not read to its end."""
        snapshot = schema.connect(self.path, read_only=True)
        try:
            snapshot.execute("BEGIN")
            yield from delta(snapshot, since, limit_bytes)
        finally:
            snapshot.close()

    def horizon(self) -> dict[NodeId, Seq]:
        """The deletes this node has forgotten (tombstones.py)."""
        return read_horizon(self._read("SELECT value FROM meta WHERE key = 'horizon'"))

    def buckets(self) -> list[bytes]:
        """The digest of each of the 256 buckets."""
        with self._write() as db:
            fold_digests(db)
            return read_buckets(db)

    def verify(self) -> int:
        """Compare every register on this disk with the digests; how many of the 256
        buckets were off. They then tell of the damage, so that a heartbeat finds it.
        Reads a snapshot: writers are not held up."""
        snapshot = schema.connect(self.path, read_only=True)
        try:
            snapshot.execute("BEGIN")
            recorded, actual = read_buckets(snapshot), actual_buckets(snapshot)
        finally:
            snapshot.close()
        if recorded == actual:
            return 0
        with self._write() as db:
            self._warm.clear()
            return correct_digests(db, recorded, actual)

    def digest(self) -> bytes:
        """16 bytes: equal on two nodes exactly when their registers are."""
        return tree_digest(self.buckets())

    def bucket_keys(self, bucket: int) -> list[tuple[bytes, bytes]]:
        """(key, hash) of each register of the bucket."""
        return bucket_hashes(self._all_states(), bucket)

    def _all_states(self) -> Iterator[tuple[bytes, bytes]]:
        after = b""
        while True:
            rows = self._read(
                "SELECT key, CAST(state AS BLOB) FROM register WHERE key > ?"
                " ORDER BY key LIMIT 2000",
                (after,),
            )
            if not rows:
                return
            yield from rows  # type: ignore[misc]
            after = rows[-1][0]  # type: ignore[assignment]

    def states(self, keys: Sequence[bytes]) -> list[State]:
        """The whole registers of these keys, those that exist."""
        out = []
        for key in keys:
            rows = self._read("SELECT state FROM register WHERE key = ?", (key,))
            if rows:
                out.append(State(key, rows[0][0]))  # type: ignore[arg-type]
        return out

    # -- conflicts --------------------------------------------------------------

    def conflicts(self) -> list[tuple[bytes, conflicts.Conflict]]:
        """(path below the root, conflict) of every open one."""
        with self._reader_lock:
            db = self._reader
            return [
                (conflicts.path_of(db, c.directory, c.name), c)
                for c in conflicts.find(db)
            ]

    # -- checks -----------------------------------------------------------------

    def problems(self) -> list[str]:
        """Everything that is wrong: registers, digests, derived tables, the tree."""
        with self._write() as db:
            fold_digests(db)
            return [
                *check.register_problems(db),
                *check.derived_differences(db),
                *check.tree_problems(db),
            ]

    def rebuild(self) -> None:
        """Derive the tree anew from the registers (fsck's repair)."""
        with self._write() as db:
            check.rebuild(db)
            self._warm.clear()
        self.drop_caches()

    def snapshot(self) -> check.Snapshot:
        """Every derived row: equal on nodes with equal registers."""
        with self._reader_lock:
            return check.snapshot(self._reader)

    # -- caches ---------------------------------------------------------------

    def forget(self, effects: Effects) -> None:
        """Drop the cached rows that these changes touched."""
        if effects.entries:
            self._entries.forget([(e.parent, e.name) for e in effects.entries])
        if effects.inodes:
            self._inodes.forget(effects.inodes)
            self._bare.forget(effects.inodes)

    def drop_caches(self) -> None:
        self._entries.clear()
        self._inodes.clear()
        self._bare.clear()
