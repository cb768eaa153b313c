"""Reads of the namespace: from any thread, from a cache of rows or one indexed query,
on the writer's connection where that is free, else on one of their own.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Container, Generator, Iterator, Sequence
from pathlib import Path

from fusefs.model.hlc import Hlc
from fusefs.model.ids import ROOT_INO, Ino, NodeId, Seq
from fusefs.model.records import (
    CONTENT,
    DIRENT,
    MEMBER,
    REPLICAS,
    SETTING,
    XATTR,
    Member,
    attrs_key,
    decode_content,
    decode_member,
    key_ino,
    key_name,
    place_key,
    replicas_of,
    unlinked_key,
    xattr_key,
)
from fusefs.model.register import Register, decode_register
from fusefs.model.tx import Effects, State
from fusefs.model.vector import Vector
from fusefs.namespace import check, conflicts, schema, totals, twins
from fusefs.namespace.cache import RowCache
from fusefs.namespace.lock import WriteLock
from fusefs.namespace.registers import ROWS, read_horizon, sound_rows
from fusefs.namespace.replicate import (
    DeltaBatch,
    bucket_hashes,
    delta,
    read_pending,
    read_vector,
)
from fusefs.namespace.rows import unnamed_row
from fusefs.namespace.totals import Totals
from fusefs.namespace.types import Entry, Inode
from fusefs.store.database import translated

CACHED_ROWS = 32_768
"""Of each kind; an inode takes ~0.7 KiB."""
MOST_AHEAD = 128
"""Names read for one that is looked up: ~0.5 ms."""

_WRITTEN = (
    "SELECT seq FROM register WHERE node = ? AND seq > ? AND seq <= ?"
    " ORDER BY seq LIMIT ?"
)
_KEYS = "SELECT key FROM register WHERE key > ? AND key < ? ORDER BY key LIMIT 10000"
Row = tuple[object, ...]
_ABSENT = Entry(Ino(0), b"", Ino(0), 0, 0)


class Reads:
    """`Namespace` is this and the writes."""

    def __init__(
        self, path: Path, writer: sqlite3.Connection, write_lock: WriteLock
    ) -> None:
        """`writer` is read from where it is free; `write_lock` says when it is."""
        self.path = path
        self._writer = writer
        self._reader = schema.connect(path)
        self._reader.execute("PRAGMA query_only = 1")
        self._reader_lock = threading.Lock()  # one statement at a time; SQLite only
        self._write_lock = write_lock
        self._inodes: RowCache[Ino, Inode] = RowCache(CACHED_ROWS)
        self._entries: RowCache[tuple[Ino, bytes], Entry] = RowCache(CACHED_ROWS)
        self._bare: RowCache[Ino, bool] = RowCache(CACHED_ROWS)
        """Inodes without extended attributes: the kernel asks before a first write."""
        self._ahead: tuple[Ino, bytes, int] = (Ino(0), b"", 1)
        """Where the last missing entry was, the name after what was read then, and
        how many were read."""

    # -- statements -----------------------------------------------------------

    def _read(
        self, sql: str, args: tuple[object, ...] = ()
    ) -> list[tuple[object, ...]]:
        with self._reader_lock:
            try:
                return self._reader.execute(sql, args).fetchall()
            except sqlite3.Error as error:
                raise translated(error, self.path) from error

    def _rows(self, sql: str, args: tuple[object, ...]) -> list[Row]:
        """A few rows. Read through the writer's connection where it is free: our own
        commits void all that the reader's has in memory."""
        lock = self._write_lock
        if lock.try_here():
            try:
                return self._writer.execute(sql, args).fetchall()
            except sqlite3.Error as error:
                raise translated(error, self.path) from error
            finally:
                lock.leave_here()
        return self._read(sql, args)

    def _row(self, sql: str, args: tuple[object, ...]) -> Row | None:
        rows = self._rows(sql, args)
        return rows[0] if rows else None

    def _register(self, key: bytes) -> Register | None:
        """None where there is none, or it is damaged on this disk."""
        rows = self._rows(ROWS + "key = ?", (key,))
        return next((decode_register(s) for _, s, _ in sound_rows(rows)), None)

    # -- names and inodes -----------------------------------------------------

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

    def path_to(self, ino: Ino) -> bytes | None:
        """One of its paths, without the first slash; None when it has none."""
        if ino == ROOT_INO:
            return b""
        names = self.parents(ino)
        if not names:
            return None
        with self._reader_lock:
            return conflicts.path_of(self._reader, names[0].parent, names[0].name)

    def shown(self, parent: Ino, name: bytes) -> Ino:
        """The inode under a name, 0 for none; as the database says, not the cache."""
        row = self._row(
            "SELECT ino FROM entry WHERE parent = ? AND name = ?", (parent, name)
        )
        return Ino(row[0] if row else 0)  # type: ignore[arg-type]

    def placed_by(self, ino: Ino) -> NodeId | None:
        """The node that made the directory, or moved it last."""
        register = self._register(place_key(ino))
        latest = register.latest if register else None
        return latest.dot[0] if latest is not None else None

    # -- attributes and contents ----------------------------------------------

    def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        return self._xattrs(ino).get(name) if not self._bare.get(ino) else None

    def xattrs(self, ino: Ino) -> list[bytes]:
        """Names of the inode's extended attributes."""
        return list(self._xattrs(ino)) if not self._bare.get(ino) else []

    def _xattrs(self, ino: Ino) -> dict[bytes, bytes]:
        generation = self._bare.generation
        rows = self._read(
            ROWS + "key >= ? AND key < ?",
            (xattr_key(ino, b""), XATTR + (ino + 1).to_bytes(8, "big")),
        )
        if not rows:
            self._bare.offer(ino, True, generation)
        out: dict[bytes, bytes] = {}
        for key, state, _ in sound_rows(rows):
            latest = decode_register(state).latest
            if latest and latest.value:
                out[key_name(key)] = latest.value[1:]
        return out

    def replicas(self, ino: Ino) -> int | None:
        """What the directory's own attribute says (records.REPLICAS)."""
        register = self._register(xattr_key(ino, REPLICAS))
        latest = register.latest if register else None
        return replicas_of(latest.value[1:]) if latest else None

    def with_replicas(self) -> dict[Ino, int]:
        """Every directory that says so, removed ones included until they are
        forgotten. Looks at every extended attribute."""
        said = self._latest_of(XATTR, " AND substr(key, 10) = ?", REPLICAS)
        counts = ((key_ino(key), replicas_of(value[1:])) for key, value in said)
        return {ino: count for ino, count in counts if count is not None}

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

    def live_roots(
        self, but: Container[Ino] = ()
    ) -> Iterator[tuple[bytes, int, int] | None]:
        """(root, size, chunk_log2) of every content version any register holds,
        shown or not: what GC must keep. None: one is damaged, and nobody knows what it
        names besides what its inode shows, which follows. All of one snapshot: data
        that is cloned while somebody looks must not be missed at both places. `but`:
        not of these inodes."""
        with schema.snapshot(self.path) as snapshot:
            for row in snapshot.execute(
                ROWS + "key >= ? AND key < ?",
                (CONTENT, bytes((CONTENT[0] + 1,))),
            ):
                if key_ino(row[0]) in but:
                    continue
                sound = next(sound_rows((row,)), None)
                if sound is None:
                    yield None
                    yield from snapshot.execute(
                        "SELECT root, size, chunk_log2 FROM inode"
                        " WHERE ino = ? AND root <> x''",
                        (key_ino(row[0]),),
                    )
                    continue
                for sibling in decode_register(sound[1]).live:
                    content = decode_content(sibling.value)
                    if content.root:
                        yield content.root, content.size, content.chunk_log2

    def contents(
        self, after: bytes, limit: int
    ) -> tuple[bytes | None, list[tuple[NodeId, bytes, bytes]]]:
        """The next content registers behind a key (at first b""): the key of the last
        one, None when there is none, and (writer, key, value) of each version."""
        rows = self._read(
            ROWS + "key > ? AND key < ? ORDER BY key LIMIT ?",
            (max(after, CONTENT), bytes((CONTENT[0] + 1,)), limit),
        )
        versions = [
            (sibling.node, key, sibling.value)
            for key, state, _ in sound_rows(rows)
            for sibling in decode_register(state).live
        ]
        return (rows[-1][0] if rows else None), versions  # type: ignore[return-value]

    def shown_as(self, roots: Collection[bytes]) -> dict[bytes, list[bytes]]:
        """The paths under which these versions of files are shown, without the first
        slash. Looks at every inode."""
        found: dict[bytes, list[bytes]] = {}
        if not roots:
            return found
        with schema.snapshot(self.path) as snapshot:
            for ino, root in snapshot.execute("SELECT ino, root FROM inode"):
                if root in roots:
                    found[root] = found.get(root, []) + [
                        conflicts.path_of(snapshot, *name)
                        for name in snapshot.execute(
                            "SELECT parent, name FROM entry WHERE ino = ?"
                            " ORDER BY parent, name",
                            (ino,),
                        ).fetchall()
                    ]
        return found

    # -- the whole ------------------------------------------------------------

    def names_given(self) -> Iterator[tuple[Ino, bytes]]:
        """Of every register of a name, removed ones included until they are
        forgotten."""
        after, end = DIRENT, bytes((DIRENT[0] + 1,))
        while rows := self._read(_KEYS, (after, end)):
            for (key,) in rows:
                after = key  # type: ignore[assignment]
                yield key_ino(after), key_name(after)

    def notes(self) -> int:
        """Of transactions for digests and totals, not added up yet."""
        return self._read("SELECT count(*) FROM digest_delta")[0][0]  # type: ignore[return-value]

    def totals(self) -> Totals:
        """Inodes and bytes shown, from what was kept of them."""
        with self._reader_lock:
            try:
                return totals.read(self._reader)
            except sqlite3.Error as error:
                raise translated(error, self.path) from error

    def made_before(self, btime_ns: int) -> int:
        """How many of the inodes."""
        rows = self._read("SELECT count(*) FROM inode WHERE btime_ns < ?", (btime_ns,))
        return int(rows[0][0])  # type: ignore[call-overload, no-any-return]

    def written(self, node: NodeId, after: Seq) -> list[bytes]:
        """Keys of the registers that a node wrote last since one of its
        transactions."""
        sql = "SELECT key FROM register WHERE node = ? AND seq > ?"
        return [key for (key,) in self._read(sql, (node, after))]  # type: ignore[misc]

    def registers_count(self) -> int:
        return self._read("SELECT count(*) FROM register")[0][0]  # type: ignore[return-value]

    def members(self) -> dict[NodeId, Member]:
        return {
            NodeId(key_ino(key)): decode_member(value)
            for key, value in self._latest_of(MEMBER)
        }

    def settings(self) -> dict[bytes, bytes]:
        return {key_name(key): value for key, value in self._latest_of(SETTING)}

    def _latest_of(
        self, kind: bytes, where: str = "", *args: object
    ) -> Iterator[tuple[bytes, bytes]]:
        rows = self._read(
            ROWS + "key >= ? AND key < ?" + where,
            (kind, bytes((kind[0] + 1,)), *args),
        )
        for key, state, _ in sound_rows(rows):
            latest = decode_register(state).latest
            if latest is not None and latest.value:
                yield key, latest.value

    # -- for peers ------------------------------------------------------------

    def latest_hlc(self) -> Hlc:
        """The latest stamp of all that was written here or came."""
        ((latest,),) = self._read("SELECT coalesce(max(hlc), 0) FROM vector")
        assert isinstance(latest, int)
        return Hlc(latest)

    def vector(self) -> dict[NodeId, Seq]:
        with self._reader_lock:
            return read_vector(self._reader)

    def in_delta(self) -> bool:
        """A delta was begun and not all of it is here (replicate.DeltaBatch)."""
        return bool(self._read("SELECT 1 FROM meta WHERE key = 'pending'"))

    def awaited(self) -> dict[NodeId, Seq]:
        """Up to where it was to bring transactions of whom, as far as they are not
        here."""
        with self._reader_lock:
            vector, pending = read_vector(self._reader), read_pending(self._reader)
        return {n: seq for n, seq in pending.items() if vector.get(n, 0) < seq}

    def horizon(self) -> dict[NodeId, Seq]:
        """The deletes this node has forgotten (tombstones.py)."""
        return read_horizon(self._read("SELECT value FROM meta WHERE key = 'horizon'"))

    def horizon_towards(self, upto: Vector, registers: int) -> dict[NodeId, Seq]:
        """The next horizon on the way to this one: beyond it lie about so many
        registers that were written since the present one."""
        step, done, left = {}, self.horizon(), registers
        for node in sorted(upto):
            at = done.get(node, Seq(0))
            rows = self._read(_WRITTEN, (node, at, upto[node], left + 1))
            if len(rows) <= left:
                step[node] = upto[node]
                left -= len(rows)
            elif left or at:
                step[node] = Seq(rows[left - 1][0]) if left else at  # type: ignore[arg-type]
                left = 0
        return step

    def delta(
        self, since: Vector, limit_bytes: int = 256 * 1024
    ) -> Generator[DeltaBatch, None, None]:
        """What a peer with vector `since` lacks, in batches of about limit_bytes,
        all of one snapshot. Close the generator when it is not read to its end."""
        with schema.snapshot(self.path) as snapshot:
            yield from delta(snapshot, since, limit_bytes)

    def bucket_keys(self, bucket: int) -> list[tuple[bytes, bytes]]:
        """(key, hash) of each register of the bucket."""
        return bucket_hashes(self._all_states(), bucket)

    def _all_states(self) -> Iterator[tuple[bytes, bytes, int]]:
        after = b""
        while True:
            rows = self._read(
                ROWS + "key > ? ORDER BY key LIMIT 2000",
                (after,),
            )
            if not rows:
                return
            yield from rows  # type: ignore[misc]
            after = rows[-1][0]  # type: ignore[assignment]

    def states(self, keys: Sequence[bytes]) -> list[State]:
        """The whole registers of these keys, those that exist."""
        sql = ROWS + "key = ?"
        rows = (row for key in keys for row in self._read(sql, (key,)))
        return [State(key, state) for key, state, _ in sound_rows(rows)]

    # -- for people -----------------------------------------------------------

    def conflicts(self) -> list[tuple[bytes, conflicts.Conflict]]:
        """(path below the root, conflict) of every open one."""
        with self._reader_lock:
            db = self._reader
            return [
                (conflicts.path_of(db, c.directory, c.name), c)
                for c in conflicts.find(db)
            ]

    def alike_twins(self, node: NodeId) -> list[twins.Twin]:
        """See `twins.alike`."""
        with self._reader_lock:
            return twins.alike(self._reader, node)

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
