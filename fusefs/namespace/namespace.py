"""The namespace of one node: registers, the derived tree, transactions.

Both processes of a node open it. Reads (reads.py) come from any thread, writes go
through one connection under the cross-process write lock.
"""

from __future__ import annotations

import logging
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fusefs.errors import Corrupt, NoSpace
from fusefs.model.ids import ROOT_INO, Ino, NodeId, Seq
from fusefs.model.records import (
    SETTING,
    Member,
    attrs_key,
    content_key,
    member_key,
)
from fusefs.model.tx import Effects, State, Tx
from fusefs.model.vector import Vector
from fusefs.namespace import check, damage, rules, schema, totals
from fusefs.namespace.life import Life, own_id
from fusefs.namespace.lock import WriteLock
from fusefs.namespace.reads import Reads
from fusefs.namespace.registers import (
    actual,
    correct,
    fold_digests,
    read_buckets,
)
from fusefs.namespace.replicate import Applied, Apply, tree_digest, write_pending
from fusefs.namespace.tombstones import HORIZON, encode_horizon
from fusefs.namespace.transaction import Transaction
from fusefs.namespace.types import Entry
from fusefs.namespace.warm import Warm
from fusefs.store.database import translated
from fusefs.store.files import failed
from fusefs.store.wal import CHECKPOINT_BYTES, Wal

log = logging.getLogger(__name__)

FOLD_FROM = 200
"""Notes that are worth a transaction: reading the totals adds up fewer in 20 us."""


class Namespace(Reads):
    """See the module. `clock` gives nanoseconds since the epoch."""

    def __init__(
        self, directory: Path, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        path = directory / "meta.db"
        writer = schema.connect(path)
        lock = WriteLock(directory / "write.lock")
        schema.check_version(writer, path)
        if schema.lacks_totals(writer):
            with lock:
                schema.add_totals(writer)
        super().__init__(path, writer, lock)
        self._clock = clock
        self._warm = Warm()
        self.node_id = own_id(writer)
        self.life = Life(writer, path, self._write_lock, self.node_id, self.sync, clock)
        self.before_sync: Callable[[], None] = lambda: None
        """What has to be durable before a commit is."""
        self._wal = Wal(
            lambda wait_s: schema.connect(path, timeout_s=wait_s),
            path.with_name("meta.db-wal"),
            self._write_lock,
        )
        if rules.are_old(writer):
            self._follow_rules()

    def _follow_rules(self) -> None:
        """A program with earlier rules had the store. Where it cannot be done yet the
        tree is what it was."""
        try:
            with self._write() as db:
                if rules.are_old(db):  # the other process may have done it
                    rules.follow(db)
                    self._warm.clear()
        except (NoSpace, Corrupt) as problem:
            log.warning("the tree is as an earlier dfs derived it: %s", problem)

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
        rules.note(db)
        db.execute(
            "INSERT INTO inode VALUES(1,?,0,0,0,2,0,0,0,0,0,x'',20,0,0,x'',1,0)",
            (0o040755,),
        )
        totals.recount(db)
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
        """The namespace of an existing store. Raises Corrupt, NoSpace; sqlite3.Error
        when it cannot be opened for another reason."""
        try:
            return cls(directory, clock=clock)
        except sqlite3.Error as error:
            problem = translated(error, directory / "meta.db")
            if isinstance(problem, NoSpace):
                raise problem from error
            raise

    # -- life of the store ----------------------------------------------------

    def sync(self) -> None:
        """Everything committed before is durable when this returns. Raises NoSpace,
        Corrupt."""
        self.before_sync()
        try:
            self._wal.sync()
        except OSError as error:
            doing = f"syncing {self.path.name}"
            raise failed(self.path.parent, doing, error) from error

    def checkpoint(self, at_least_bytes: int = CHECKPOINT_BYTES) -> None:
        """Now and then: keeps the WAL short, so that no commit has to. It syncs. Raises
        NoSpace, Corrupt."""
        self.before_sync()
        try:
            self._wal.checkpoint(at_least_bytes)
        except sqlite3.Error as error:
            raise translated(error, self.path) from error

    def close(self) -> None:
        self._wal.close()
        self._reader.close()
        self._writer.close()
        self._write_lock.close()

    # -- writes ---------------------------------------------------------------

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock, self._begun() as db:
            yield db

    @contextmanager
    def _begun(self) -> Iterator[sqlite3.Connection]:
        """One SQLite transaction; the write lock is held. Raises NoSpace, Corrupt."""
        db, lock, warm = self._writer, self._write_lock, self._warm
        warm.enter(lock.counter)
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            warm.commit(lock.raise_counter())
            db.execute("COMMIT")
        except BaseException as error:
            warm.clear()
            if db.in_transaction:
                db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise translated(error, self.path) from error
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
        changed = effects.entries if plain else ()
        # A name may come and go within a transaction: what it shows last.
        for (parent, name), new in {(c.parent, c.name): c.new for c in changed}.items():
            row = rows.get(Ino(new))
            if row is not None:
                entry = Entry(parent, name, row.ino, stat.S_IFMT(row.mode) >> 12, 0)
                entries.offer((parent, name), entry, entries.generation)

    def is_untouched(self) -> bool:
        """Nothing was ever put into the tree, and no other node was ever heard of."""
        own = (attrs_key(ROOT_INO), content_key(ROOT_INO), member_key(self.node_id))
        if self.vector().keys() != {self.node_id}:
            return False
        others = "SELECT key FROM register WHERE key < ? OR key >= ?"
        after = bytes((SETTING[0] + 1,))
        return all(key in own for (key,) in self._read(others, (SETTING, after)))

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

    # -- replication ----------------------------------------------------------

    def last_seq(self) -> Seq:
        """The last transaction of this node, by either process: the node may not have
        been told of it yet."""
        return self.vector().get(self.node_id, Seq(0))

    def apply(self, txs: Sequence[Tx]) -> Applied:
        """Apply live transactions of peers in one commit. Raises Unacceptable."""
        with self._write() as db:
            batch = Apply(db, self._warm, self.node_id)
            applied = batch.finish(batch.txs(txs))
        self.forget(applied.effects)
        return applied

    def apply_states(
        self, states: Sequence[State], advance: Vector, target: Vector | None = None
    ) -> Applied:
        """Merge a delta batch in one commit, then the vector covers `advance`.
        `target` is the batch's own (DeltaBatch). Raises Unacceptable."""
        with self._write() as db:
            batch = Apply(db, self._warm, self.node_id)
            batch.states(states, advance, target or {})
            applied = batch.finish(False)
        self.forget(applied.effects)
        return applied

    def await_no_more(self) -> Applied:
        """Nobody has what deltas were to bring: forgets what waited for that, too."""
        with self._write() as db:
            write_pending(db, {})
            applied = Apply(db, self._warm, self.node_id).finish(False)
        self.forget(applied.effects)
        return applied

    def fold(self) -> None:
        """Now and then: what transactions noted for digests and totals is added up,
        so that it does not pile up where nobody asks for them."""
        if self.notes() >= FOLD_FROM:
            self.buckets()

    def buckets(self) -> list[bytes]:
        """The digest of each of the 256 buckets."""
        found: list[bytes] = []
        try:
            with self._write() as db:
                fold_digests(db)
                found = read_buckets(db)
        except NoSpace:  # another time: they are the same
            if not found:
                raise
        return found

    def verify(self) -> int:
        """Compare every register on this disk with the digests; how many of the 256
        buckets were off. They then tell of the damage, so that a heartbeat finds it;
        sums of what is as it was written are set right.
        The totals are set right. Reads a snapshot: writers are not held up."""
        with schema.snapshot(self.path) as snapshot:
            recorded, found = read_buckets(snapshot), actual(snapshot)
            kept, counted = totals.read(snapshot), totals.counted(snapshot)
        if kept != counted:  # an earlier program wrote, too
            with self._write() as db:
                totals.moved(db, *totals.difference(kept, counted))
        if recorded == found.buckets:
            return 0
        with self._write() as db:
            self._warm.clear()
            return correct(db, recorded, found)

    def digest(self) -> bytes:
        """16 bytes: equal on two nodes exactly when their registers are."""
        return tree_digest(self.buckets())

    # -- checks -----------------------------------------------------------------

    def check_database(self, *, quick: bool) -> None:
        """Raises Corrupt where SQLite finds its own structure damaged, also where
        nothing here reads. `quick`: without comparing tables and indices."""
        check = "quick_check" if quick else "integrity_check"
        with self._write() as db:
            ((found,),) = db.execute(f"PRAGMA {check}(1)")
            if found != "ok":
                raise sqlite3.DatabaseError(found.splitlines()[-1])

    def problems(self) -> list[str]:
        """Everything that is wrong: registers, digests, derived tables, the tree. Of
        damaged registers no tree can be derived to compare with."""
        with self._write() as db:
            fold_digests(db)
            registers = damage.check_registers(db)
            found = registers.problems
            found += damage.vector_problems(db, self.node_id)
            if registers.readable:
                found += check.derived_differences(db)
                found += check.tree_problems(db)
            found += check.totals_problems(db)
            return found

    def repair(self) -> None:
        """Derive anew from the registers what can be (fsck's repair).

        The tree is kept as it is where a register is damaged or, as the digests say,
        lost: it still shows what that one said, until a peer has brought it back.
        """
        with self._write() as db:
            if damage.mend(db):
                check.rebuild(db)
                rules.note(db)
            totals.recount(db)
            self._warm.clear()
        self.drop_caches()
