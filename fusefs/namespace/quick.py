"""The short way for changes of a tree without any odd entry.

Nearly every change meets no concurrency: each register has at most one sibling,
nothing came back, nothing is cut. Then the new rows follow from the old rows and the
new values, without the queries of the general derivation. The plan is None whenever
that is not certain; a test compares both ways after every step. Changes from peers
may come without what they build on, so for them more is asked (`remote`).
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Mapping
from typing import Any, NamedTuple

from fusefs.model.conflict import unseen_by_deleters
from fusefs.model.ids import Ino
from fusefs.model.records import (
    ATTRS,
    CONTENT,
    DIRENT,
    PLACE,
    S_DIR,
    UNLINKED,
    Attrs,
    Content,
    Dirent,
    attrs_key,
    content_key,
    decode_attrs,
    decode_content,
    decode_dirent,
    decode_place,
    decode_unlinked,
    key_ino,
    key_name,
    place_key,
    unlinked_key,
)
from fusefs.model.register import EMPTY, Register, Sibling
from fusefs.model.tx import Effects, EntryChange
from fusefs.namespace.registers import Registers
from fusefs.namespace.rows import content_change, inode_row
from fusefs.namespace.types import Inode

Changed = Mapping[bytes, tuple[Register, Register]]
Rows = dict[Ino, Inode | None]


class EntryPlan(NamedTuple):
    parent: Ino
    name: bytes
    old: Dirent | None
    new: Dirent | None


class Counts:
    """How names moved: links of files, subdirectories, directories born and gone."""

    __slots__ = ("born", "dead", "links", "subdirs")

    def __init__(self) -> None:
        self.links: dict[Ino, int] = {}
        self.subdirs: dict[Ino, int] = {}
        self.born: dict[Ino, Ino] = {}
        self.dead: set[Ino] = set()

    def add(self, parent: Ino, dirent: Dirent, step: int) -> None:
        where = self.subdirs if dirent.kind == S_DIR else self.links
        ino = parent if dirent.kind == S_DIR else dirent.ino
        where[ino] = where.get(ino, 0) + step
        if dirent.kind == S_DIR and step > 0:
            self.born[dirent.ino] = parent
        elif dirent.kind == S_DIR:
            self.dead.add(dirent.ino)

    def inos(self) -> list[Ino]:
        return [*self.links, *self.subdirs, *self.born, *self.dead]


Moves = dict[Ino, tuple[Inode | None, Inode | None]]


class Plan(NamedTuple):
    entries: list[EntryPlan]
    inodes: Moves


def is_plain(db: sqlite3.Connection) -> bool:
    """No entry is shown by a merge rule and no directory is cut."""
    row = db.execute(
        "SELECT EXISTS(SELECT 1 FROM odd) OR EXISTS(SELECT 1 FROM revived)"
        " OR EXISTS(SELECT 1 FROM cut)"
    ).fetchone()
    return not row[0]


class Quick:
    """Plans one settlement; `rows` are the inode rows read in this transaction."""

    def __init__(
        self,
        db: sqlite3.Connection,
        registers: Registers,
        rows: Rows,
        remote: bool = False,
    ) -> None:
        self._db = db
        self._registers = registers
        self._rows = rows
        self._remote = remote

    def run(self, changed: Changed) -> Effects | None:
        """Update the tables and say what moved, or None having done nothing."""
        plan = self._plan(changed)
        if plan is None:
            return None
        effects = Effects([], [], [])
        for parent, name, old, new in plan.entries:
            self._set_entry(parent, name, new)
            effects.entries.append(
                EntryChange(parent, name, old.ino if old else 0, new.ino if new else 0)
            )
        for ino, (before, after) in plan.inodes.items():
            if before == after:
                continue
            self._set_inode(ino, after)
            self._registers.reshaped(before, after)
            effects.inodes.append(ino)
            moved = content_change(before, after)
            if moved is not None:
                effects.contents.append(moved)
        return effects

    def _set_entry(self, parent: Ino, name: bytes, new: Dirent | None) -> None:
        if new is None:
            self._db.execute(
                "DELETE FROM entry WHERE parent = ? AND name = ?", (parent, name)
            )
        else:
            self._db.execute(
                "INSERT OR REPLACE INTO entry VALUES(?, ?, ?, ?, 0)",
                (parent, name, new.ino, new.kind),
            )

    def _set_inode(self, ino: Ino, after: Inode | None) -> None:
        self._rows[ino] = after
        if after is None:
            self._db.execute("DELETE FROM inode WHERE ino = ?", (ino,))
        else:
            write_inode(self._db, after)

    # -- planning -----------------------------------------------------------------

    def _plan(self, changed: Changed) -> Plan | None:
        entries: list[EntryPlan] = []
        counts = Counts()
        touched: dict[Ino, None] = {}
        placed: list[Ino] = []
        for key, (before, after) in changed.items():
            if len(before.siblings) > 1 or len(after.siblings) != 1:
                return None
            kind = key[:1]
            if kind == DIRENT:
                old, new = _dirent(before), _dirent(after)
                if old == new:
                    continue
                entry = EntryPlan(key_ino(key), key_name(key), old, new)
                if not self._count(entry, counts, changed):
                    return None
                entries.append(entry)
            elif kind == PLACE:
                if before is not EMPTY:
                    return None
                placed.append(key_ino(key))
            elif kind in (ATTRS, CONTENT, UNLINKED):
                touched[key_ino(key)] = None
        if self._remote and not (
            self._whole_directories(placed, counts)
            and self._parents_stay(entries, counts)
        ):
            return None
        touched.update(dict.fromkeys(counts.inos()))
        inodes = self._plan_inodes(touched, counts, changed)
        return None if inodes is None else Plan(entries, inodes)

    def _count(self, entry: EntryPlan, counts: Counts, changed: Changed) -> bool:
        """Count links; False for moves of directories, which are not our business."""
        old, new = entry.old, entry.new
        if old is not None:
            counts.add(entry.parent, old, -1)
        if new is not None:
            counts.add(entry.parent, new, 1)
        if old is not None and old.kind == S_DIR:
            return (
                new is None
                and not self._has_children(old.ino)
                and self._shows(entry.parent, entry.name, old.ino)
            )
        if new is not None and new.kind == S_DIR:
            place = changed.get(place_key(new.ino))
            if place is None or place[0] is not EMPTY:
                return False
            value = decode_place(place[1].siblings[0].value)
            return (value.parent, value.name) == (entry.parent, entry.name)
        return True

    def _shows(self, parent: Ino, name: bytes, ino: Ino) -> bool:
        row = self._db.execute(
            "SELECT ino FROM entry WHERE parent = ? AND name = ?", (parent, name)
        ).fetchone()
        return row is not None and row[0] == ino

    def _whole_directories(self, placed: list[Ino], counts: Counts) -> bool:
        """New directories came with their names and before their children."""
        return all(ino in counts.born for ino in placed) and not any(
            self._has_children(ino) for ino in counts.born
        )

    def _parents_stay(self, entries: list[EntryPlan], counts: Counts) -> bool:
        """No name comes into a directory that somebody else removed, which it brings
        back: with these changes, or before."""
        return all(
            entry.parent not in counts.dead
            and (entry.parent in counts.born or self._row(entry.parent) is not None)
            for entry in entries
            if entry.new is not None
        )

    def _has_children(self, ino: Ino) -> bool:
        row = self._db.execute(
            "SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (ino,)
        ).fetchone()
        return row is not None

    def _plan_inodes(
        self, inos: Mapping[Ino, None], counts: Counts, changed: Changed
    ) -> Moves | None:
        out: Moves = {}
        for ino in inos:
            before = self._row(ino)
            attrs = changed.get(attrs_key(ino))
            content = changed.get(content_key(ino))
            after: Inode | None = None
            if before is None:
                if counts.links.get(ino, 0) <= 0 and ino not in counts.born:
                    if self._remote and ino not in counts.dead:
                        return None  # its name may have come before it
                    continue  # an inode no name shows
                if attrs is None or attrs[0] is not EMPTY:
                    return None
                if content is None and self._registers.load(content_key(ino)).siblings:
                    return None  # a peer made it too and its data came first
                if self._remote and self._is_named(ino):
                    return None  # its attributes come behind one of its names
                after = _new_row(ino, attrs[1], content, counts)
            elif before.flags:
                return None
            elif ino not in counts.dead:
                after = _moved(before, counts, attrs, content)
                if self._remote and not self._ctime_follows(before, attrs, content):
                    return None
                if after is None and not self._gone_for_good(ino):
                    return None
            out[ino] = (before, after)
        return out

    def _is_named(self, ino: Ino) -> bool:
        row = self._db.execute(
            "SELECT 1 FROM entry WHERE ino = ? LIMIT 1", (ino,)
        ).fetchone()
        return row is not None

    def _ctime_follows(
        self,
        row: Inode,
        attrs: tuple[Register, Register] | None,
        content: tuple[Register, Register] | None,
    ) -> bool:
        """Whether no other register has a say in the new ctime."""
        if attrs is None and content is not None:
            return _content(content[1])[1].ctime_ns >= row.ctime_ns
        if content is None and attrs is not None:
            return _attrs(attrs[1]).ctime_ns >= row.ctime_ns
        return True

    def _row(self, ino: Ino) -> Inode | None:
        if ino not in self._rows:
            row = self._db.execute(
                "SELECT * FROM inode WHERE ino = ?", (ino,)
            ).fetchone()
            self._rows[ino] = Inode(*row) if row else None
        return self._rows[ino]

    def _gone_for_good(self, ino: Ino) -> bool:
        """The last name went: whether nothing brings the inode back."""
        unlinked = self._registers.load(unlinked_key(ino))
        deleters = [decode_unlinked(s.value).seen for s in unlinked.live]
        return bool(deleters) and not any(
            unseen_by_deleters(decode_content(s.value), deleters)
            for s in self._registers.load(content_key(ino)).live
        )


def write_inode(db: sqlite3.Connection, row: Inode) -> None:
    db.execute(
        "INSERT OR REPLACE INTO inode VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", row
    )


def _dirent(register: Register) -> Dirent | None:
    if not register.siblings or not register.siblings[0].value:
        return None
    return decode_dirent(register.siblings[0].value)


def _attrs(register: Register) -> Attrs:
    return decode_attrs(register.siblings[0].value)


def _content(register: Register) -> tuple[Sibling, Content]:
    sibling = register.siblings[0]
    return sibling, decode_content(sibling.value)


def _new_row(
    ino: Ino,
    attrs: Register,
    content: tuple[Register, Register] | None,
    counts: Counts,
) -> Inode:
    sibling, value = _content(content[1]) if content else (None, None)
    parent = counts.born.get(ino, Ino(0))
    nlink = 2 + counts.subdirs.get(ino, 0) if parent else counts.links[ino]
    return inode_row(ino, _attrs(attrs), sibling, value, nlink, parent, 0)


def _moved(
    row: Inode,
    counts: Counts,
    attrs: tuple[Register, Register] | None,
    content: tuple[Register, Register] | None,
) -> Inode | None:
    """The row after the change; None when a file's last name went."""
    ino = row.ino
    nlink = row.nlink + counts.links.get(ino, 0) + counts.subdirs.get(ino, 0)
    if nlink <= 0:
        return None
    fields: dict[str, Any] = {"nlink": nlink}
    ctimes = [row.ctime_ns] if attrs is None or content is None else []
    if content is not None:
        sibling, value = _content(content[1])
        ctimes.append(value.ctime_ns)
        fields.update(
            mtime_ns=value.mtime_ns,
            root=value.root,
            chunk_log2=value.chunk_log2,
            node=sibling.node,
            seq=sibling.seq,
        )
        if not stat.S_ISLNK(row.mode):
            fields["size"] = value.size
    if attrs is not None:
        new = _attrs(attrs[1])
        ctimes.append(new.ctime_ns)
        fields.update(
            mode=new.mode,
            uid=new.uid,
            gid=new.gid,
            rdev=new.rdev,
            btime_ns=new.btime_ns,
            atime_ns=new.atime_ns,
            target=new.target,
        )
        if content is None and not row.node:  # no data yet: as old as the inode
            fields["mtime_ns"] = new.btime_ns
    fields["ctime_ns"] = max(ctimes)
    return row._replace(**fields)
