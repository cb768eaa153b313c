"""What every local transaction is made of: its place in this node's order, reads that
see its own writes, the registers it writes, and its end.

Lives between BEGIN and COMMIT under the write lock. `transaction` builds the POSIX
operations on it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from fusefs.model.context import after_power_cut
from fusefs.model.hlc import Hlc, tick
from fusefs.model.ids import FIRST_FREE_INO, Dot, Ino, NodeId, Seq, derive_ino
from fusefs.model.records import (
    S_DIR,
    Content,
    attrs_key,
    content_key,
    decode_dirent,
    dirent_key,
    key_name,
    place_key,
    xattr_key,
)
from fusefs.model.register import Sibling
from fusefs.model.tx import Effects, Tx, Write
from fusefs.namespace.derive import Derivation
from fusefs.namespace.registers import Registers
from fusefs.namespace.tombstones import HORIZON_KEY, collect
from fusefs.namespace.twins import Twin, alike
from fusefs.namespace.types import Entry, Inode
from fusefs.namespace.warm import Position, Warm

STAMPS_PER_POWER_CUT = 1 << 20
"""More than were given to lost transactions while the clock stood behind them."""
_VECTOR = "SELECT node, seq FROM vector"
_KEYS = "SELECT key FROM register WHERE key >= ? AND key < ?"
_POSITION = (
    "SELECT max(CASE WHEN node = ? THEN seq END), max(hlc),"
    " (SELECT value FROM meta WHERE key = 'skip') FROM vector"
)
_OTHER_NAME = (
    "SELECT 1 FROM entry WHERE ino = ? AND NOT (parent = ? AND name = ?) LIMIT 1"
)
_TRACES = (
    "SELECT EXISTS(SELECT 1 FROM retired WHERE ino = ?1),"
    " EXISTS(SELECT 1 FROM register WHERE key = ?2),"
    " EXISTS(SELECT 1 FROM entry WHERE ino = ?1)"
    " OR EXISTS(SELECT 1 FROM entry WHERE parent = ?1)"
)


class Writing:
    """Base of `Transaction`; `tx` and `effects` are set by `finish`."""

    tx: Tx | None = None
    effects: Effects

    def __init__(
        self, db: sqlite3.Connection, node: NodeId, clock_ns: int, warm: Warm
    ) -> None:
        self._db = db
        self._warm = warm
        self._registers = Registers(db, warm.registers)
        self._rows = warm.rows
        self._derivation = Derivation(db, self._registers, warm)
        self._writes: dict[bytes, Write] = {}
        self.effects = Effects([], [], [], [])
        self.bare: set[Ino] = set()
        """Inodes made here that have no extended attribute."""
        self._node = node
        if warm.position is None:
            prev, last_hlc, cuts = db.execute(_POSITION, (node,)).fetchone()
            warm.position = Position(Seq(prev or 0), Hlc(last_hlc or 0), cuts or 0)
        self._prev, last, skip = warm.position
        self.seq = Seq(self._prev + 1)
        if skip:
            self.seq = after_power_cut(self._prev, skip)
            last = Hlc(last + STAMPS_PER_POWER_CUT)
        self._hlc: Hlc = tick(last, clock_ns // 1_000_000)
        self.now_ns: int = clock_ns
        """Of times: what happens here is dated by the clock of this machine, though a
        peer's may be ahead (the stamp goes on counting from that one then)."""

    # -- reads ------------------------------------------------------------------

    def inode(self, ino: Ino) -> Inode | None:
        self._settle()
        if ino in self._rows:
            return self._rows[ino]
        row = self._rows[ino] = self._derivation.row_of(ino)
        return row

    def entry(self, parent: Ino, name: bytes) -> Entry | None:
        self._settle()
        if self._derivation.plain():
            live = self._registers.load(dirent_key(parent, name)).live
            if not live:
                return None
            dirent = decode_dirent(live[0].value)
            if len(live) == 1 and dirent.kind != S_DIR:
                return Entry(parent, name, dirent.ino, dirent.kind, 0)
        row = self._db.execute(
            "SELECT * FROM entry WHERE parent = ? AND name = ?", (parent, name)
        ).fetchone()
        return Entry(*row) if row else None

    def has_children(self, ino: Ino) -> bool:
        self._settle()
        return self._derivation.has_children(ino)

    def links(self, ino: Ino) -> list[Entry]:
        self._settle()
        rows = self._db.execute("SELECT * FROM entry WHERE ino = ?", (ino,))
        return [Entry(*row) for row in rows]

    def has_other_name(self, entry: Entry) -> bool:
        """Whether the inode has a name besides this one, however many there are."""
        self._settle()
        row = self._db.execute(_OTHER_NAME, (entry.ino, entry.parent, entry.name))
        return row.fetchone() is not None

    def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        latest = self._registers.load(xattr_key(ino, name)).latest
        return latest.value[1:] if latest and latest.value else None

    def xattrs(self, ino: Ino) -> dict[bytes, bytes]:
        first, last = xattr_key(ino, b""), xattr_key(Ino(ino + 1), b"")
        rows = self._db.execute(_KEYS, (first, last)).fetchall()
        keys = {key for (key,) in rows} | {k for k in self._writes if first <= k < last}
        values = {key_name(key): self.xattr(ino, key_name(key)) for key in keys}
        return {name: value for name, value in values.items() if value is not None}

    def alike_twins(self, only: Twin | None = None) -> list[Twin]:
        """See `twins.alike`; those whose extended attributes differ are none."""
        self._settle()
        return [
            twin
            for twin in alike(self._db, self._node, only)
            if self.xattrs(twin.ino) == self.xattrs(twin.winner)
        ]

    def placed_by(self, ino: Ino) -> NodeId | None:
        """The node that made the directory, or moved it last."""
        latest = self._registers.load(place_key(ino)).latest
        return latest.dot[0] if latest is not None else None

    def versions(self, ino: Ino) -> list[tuple[Sibling, Content]]:
        """Every concurrent version of the inode's content."""
        return self._derivation.versions(ino)

    def _ctime(self, ino: Ino) -> int:
        """Now, but never before the ctime shown (it must not go back)."""
        row = self._rows.get(ino)
        if row is None:
            row = self.inode(ino)
        return max(self.now_ns, row.ctime_ns) if row else self.now_ns

    # -- numbers ----------------------------------------------------------------

    def new_ino(self, parent: Ino, name: bytes, kind: int) -> Ino:
        """The number for a new inode here; never one that was used before.

        A name that came and went for years (a lock file) has used thousands, one after
        the other: the first free one is searched for, not counted up to."""
        latest = self._registers.load(dirent_key(parent, name)).latest
        dot: Dot = latest.dot if latest else (NodeId(0), Seq(0))

        def free(bump: int) -> Ino | None:
            ino = derive_ino(parent, name, kind, dot, bump)
            return ino if ino >= FIRST_FREE_INO and not self._used(ino, kind) else None

        used, bump = -1, 0
        while (found := free(bump)) is None:
            used, bump = bump, 2 * bump + 1
        while bump - used > 1:
            middle = (used + bump) // 2
            ino = free(middle)
            if ino is None:
                used = middle
            else:
                found, bump = ino, middle
        return found

    def _used(self, ino: Ino, kind: int) -> bool:
        """Whether the number was given, or holds data that nobody here has seen: a
        peer made it, too, and its name did not come yet. What is absent is noted."""
        attrs, content = attrs_key(ino), content_key(ino)
        if self._registers.load(attrs).siblings:
            return True
        retired, data, placed = self._db.execute(_TRACES, (ino, content)).fetchone()
        if placed:  # a peer made it, too, and its attributes did not come yet
            self._derivation.go_the_general_way()
        if not data:
            self._registers.absent(content)
            self._rows.setdefault(ino, None)
        return bool(retired or (data and kind != S_DIR))

    # -- writes, and the end ----------------------------------------------------

    def _write(self, key: bytes, value: bytes, beside: Collection[Dot] = ()) -> None:
        """`beside`: siblings of others that stay; not of what was written before."""
        sibling = Sibling(self._node, self.seq, self._hlc, value)
        write = self._registers.write(key, sibling, beside)
        first = self._writes.get(key)
        if first is not None:  # written twice: broadcast what was seen before both
            write = Write(key, first.context, value)
        self._writes[key] = write

    def _settle(self) -> None:
        if self._registers.changed:
            self.effects.extend(self._derivation.run())

    def finish(self) -> None:
        """Write the vector and the digests; sets `tx`. Called before COMMIT."""
        if not self._writes:
            return
        self._settle()
        if HORIZON_KEY in self._writes:
            vector = {NodeId(n): Seq(s) for n, s in self._db.execute(_VECTOR)}
            collect(self._db, self._registers, vector | {self._node: self.seq})
        self._registers.flush()
        self._db.execute(
            "INSERT OR REPLACE INTO vector VALUES(?, ?, ?)",
            (self._node, self.seq, self._hlc),
        )
        self._warm.position = Position(self.seq, self._hlc, 0)
        if self.seq != self._prev + 1:
            self._db.execute("DELETE FROM meta WHERE key = 'skip'")
        self.tx = Tx(
            self._node, self.seq, self._prev, self._hlc, tuple(self._writes.values())
        )
