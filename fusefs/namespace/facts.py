"""What the registers and the derived rows say, of names, inodes and what comes back.

Reads of one write transaction, by the rules of docs/design.md, section 4; no row is
changed here. `derive` brings the rows to what these give.
"""

from __future__ import annotations

import sqlite3
import stat
from typing import NamedTuple

from fusefs.model.conflict import (
    all_appends,
    merge_attrs,
    split_versions,
    unseen_by_deleters,
)
from fusefs.model.hlc import Hlc
from fusefs.model.ids import LOST_FOUND, LOST_FOUND_INO, ROOT_INO, Ino, NodeId
from fusefs.model.records import (
    S_DIR,
    Attrs,
    Content,
    Dirent,
    Place,
    attrs_key,
    content_key,
    decode_attrs,
    decode_content,
    decode_dirent,
    decode_member,
    decode_place,
    decode_unlinked,
    dirent_key,
    member_key,
    place_key,
    unlinked_key,
)
from fusefs.model.register import Sibling
from fusefs.namespace.registers import Registers
from fusefs.namespace.rows import inode_row
from fusefs.namespace.types import FLAG_APPENDS, FLAG_CONFLICT, FLAG_DERIVED, Inode

_HAS_TWIN = (
    "SELECT EXISTS(SELECT 1 FROM odd WHERE ino = ?1 AND why = 'twin')"
    " OR EXISTS(SELECT 1 FROM entry e JOIN odd o ON o.parent = e.parent"
    " AND o.origin = e.name AND o.why = 'twin' WHERE e.ino = ?1)"
)
Name = tuple[Ino, bytes]


class Candidate(NamedTuple):
    """Something that wants to show under a name."""

    real: bool
    """Named by a live dirent (beats what merely comes back)."""
    rank: tuple[int, int, int]
    ino: Ino
    kind: int
    why: str
    node: NodeId
    seq: int
    hlc: Hlc


class Row(NamedTuple):
    """One row of `entry`, with the row of `odd` that explains it if any."""

    name: bytes
    ino: Ino
    kind: int
    flags: int
    why: str
    base: int
    node: int
    seq: int


class Facts:
    """See the module."""

    def __init__(self, db: sqlite3.Connection, registers: Registers) -> None:
        self._db = db
        self._registers = registers
        self._has_odd: bool | None = None
        """Whether any entry is odd; None: not looked yet."""

    # -- what registers say ----------------------------------------------------

    def place(self, ino: Ino) -> Place | None:
        """Where a directory was put last."""
        latest = self._registers.load(place_key(ino)).latest
        return decode_place(latest.value) if latest else None

    def _place_rank(self, ino: Ino) -> tuple[int, int, int]:
        latest = self._registers.load(place_key(ino)).latest
        return latest.rank if latest else (0, 0, 0)

    def node_name(self, node: NodeId) -> str:
        """For names of conflict files."""
        latest = self._registers.load(member_key(node)).latest
        if latest is None or not latest.value:
            return f"{node:016x}"[:8]
        return decode_member(latest.value).name

    def attrs(self, ino: Ino) -> Attrs | None:
        """The merged attributes, or None when nothing is known of the inode."""
        register = self._registers.load(attrs_key(ino))
        if not register.live:
            return None
        return merge_attrs([(s, decode_attrs(s.value)) for s in register.live])

    def versions(self, ino: Ino) -> list[tuple[Sibling, Content]]:
        """Every live sibling of the content register."""
        register = self._registers.load(content_key(ino))
        return [(s, decode_content(s.value)) for s in register.live]

    # -- rows ------------------------------------------------------------------

    def row_of(self, ino: Ino) -> Inode | None:
        """As the table has it now."""
        row = self._db.execute("SELECT * FROM inode WHERE ino = ?", (ino,)).fetchone()
        return Inode(*row) if row else None

    def _entries_of(self, ino: Ino) -> list[tuple[Ino, bytes, int, int]]:
        return self._db.execute(
            "SELECT parent, name, kind, flags FROM entry WHERE ino = ?", (ino,)
        ).fetchall()

    def has_children(self, ino: Ino) -> bool:
        """Whether any entry is in this directory."""
        row = self._db.execute(
            "SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (ino,)
        ).fetchone()
        return row is not None

    def _any_odd(self) -> bool:
        if self._has_odd is None:
            row = self._db.execute("SELECT 1 FROM odd LIMIT 1").fetchone()
            self._has_odd = row is not None
        return self._has_odd

    def _is_cut(self, ino: Ino) -> bool:
        row = self._db.execute("SELECT 1 FROM cut WHERE ino = ?", (ino,)).fetchone()
        return row is not None

    def _is_twin(self, parent: Ino, name: bytes) -> bool:
        row = self._db.execute(
            "SELECT why FROM odd WHERE parent = ? AND name = ?", (parent, name)
        ).fetchone()
        return row is not None and row[0] == "twin"

    def _version_of(self, ino: Ino) -> Ino | None:
        """The file that this inode is shown as a losing version of."""
        row = self._db.execute(
            "SELECT base FROM odd WHERE ino = ? AND why = 'version'", (ino,)
        ).fetchone()
        return Ino(row[0]) if row else None

    def _has_twin(self, ino: Ino) -> bool:
        """Whether it is one of several inodes that want one name."""
        row = self._db.execute(_HAS_TWIN, (ino,)).fetchone()
        return bool(row[0])

    def _existing(self, parent: Ino, origin: bytes) -> dict[bytes, Row]:
        rows: dict[bytes, Row] = {}
        plain = self._db.execute(
            "SELECT ino, kind, flags FROM entry WHERE parent = ? AND name = ?",
            (parent, origin),
        ).fetchone()
        odd: dict[bytes, Row] = {}
        if self._any_odd():
            for name, ino, why, base, node, seq, kind, flags in self._db.execute(
                "SELECT o.name, o.ino, o.why, o.base, o.node, o.seq, e.kind, e.flags"
                " FROM odd o JOIN entry e ON e.parent = o.parent AND e.name = o.name"
                " WHERE o.parent = ? AND o.origin = ? AND o.why != 'version'",
                (parent, origin),
            ):
                odd[name] = Row(name, ino, kind, flags, why, base, node, seq)
            shadow = self._db.execute(
                "SELECT origin, why, base FROM odd WHERE parent = ? AND name = ?",
                (parent, origin),
            ).fetchone()
            if shadow is not None and (shadow[0] != origin or shadow[1] == "version"):
                # another name's odd entry stands here: not ours to compare
                plain = None
        rows.update(odd)
        if plain is not None and origin not in odd:
            rows[origin] = Row(origin, plain[0], plain[1], plain[2], "", plain[0], 0, 0)
        return rows

    # -- names -----------------------------------------------------------------

    def _candidates(self, parent: Ino, origin: bytes) -> list[Candidate]:
        best: dict[Ino, tuple[Sibling, Dirent]] = {}
        for sibling in self._registers.load(dirent_key(parent, origin)).live:
            dirent = decode_dirent(sibling.value)
            if dirent.kind == S_DIR and not self._belongs(dirent.ino, parent, origin):
                continue
            held = best.get(dirent.ino)
            if held is None or held[0].rank < sibling.rank:
                best[dirent.ino] = (sibling, dirent)
        out = [
            Candidate(True, s.rank, d.ino, d.kind, "", s.node, s.seq, s.hlc)
            for s, d in best.values()
        ]
        for ino, kind, node, seq, hlc in self._db.execute(
            "SELECT ino, kind, node, seq, hlc FROM revived"
            " WHERE parent = ? AND name = ?",
            (parent, origin),
        ):
            if ino not in best:
                why = "lost" if parent == LOST_FOUND_INO else "revived"
                out.append(
                    Candidate(False, (hlc, node, seq), ino, kind, why, node, seq, hlc)
                )
        return out

    def _belongs(self, ino: Ino, parent: Ino, name: bytes) -> bool:
        """Whether a directory's place is here and it is not cut out of a cycle."""
        if ino == LOST_FOUND_INO:
            return (parent, name) == (ROOT_INO, LOST_FOUND)
        place = self.place(ino)
        if place is None or (place.parent, place.name) != (parent, name):
            return False
        return not self._is_cut(ino)

    def _anchor(self, ino: Ino) -> Name | None:
        names = [(row[0], row[1]) for row in self._entries_of(ino)]
        return min(names, default=None)

    # -- inodes ----------------------------------------------------------------

    def _compute_inode(self, ino: Ino) -> Inode | None:
        """Its row; None: it has no name, or nothing is known of it."""
        named = self._entries_of(ino)
        if not named and ino != ROOT_INO:
            return None
        attrs = self.attrs(ino)
        if attrs is None:
            if ino == ROOT_INO:
                attrs = Attrs(stat.S_IFDIR | 0o755, 0, 0, 0, Hlc(0), Hlc(0))
            elif ino == LOST_FOUND_INO:
                top = self.attrs(ROOT_INO)
                owner = (top.uid, top.gid) if top is not None else (0, 0)
                attrs = Attrs(stat.S_IFDIR | 0o700, *owner, 0, Hlc(0), Hlc(0))
            else:
                return None
        flags = FLAG_DERIVED if named and all(n[3] for n in named) else 0
        versions = self.versions(ino)
        if stat.S_ISDIR(attrs.mode):
            return self._directory(ino, attrs, versions, named, flags)
        sibling, content, losers = shown_of(versions)
        if losers:
            flags |= FLAG_CONFLICT | (FLAG_APPENDS if all_appends(versions) else 0)
        links = len(named)
        return inode_row(ino, attrs, sibling, content, links, 0, flags)

    def _directory(
        self,
        ino: Ino,
        attrs: Attrs,
        versions: list[tuple[Sibling, Content]],
        named: list[tuple[Ino, bytes, int, int]],
        flags: int,
    ) -> Inode:
        (children,) = self._db.execute(
            "SELECT count(*) FROM entry WHERE parent = ? AND kind = ?", (ino, S_DIR)
        ).fetchone()
        latest = max(versions, key=lambda v: v[0].rank, default=None)
        sibling, content = latest or (None, None)
        parent = named[0][0] if named else ROOT_INO
        return inode_row(ino, attrs, sibling, content, 2 + children, parent, flags)

    # -- what comes back -------------------------------------------------------

    def _home(self, ino: Ino) -> tuple[int, bytes, int, int, int, int] | None:
        attrs = self.attrs(ino)
        if attrs is None:
            return None
        if stat.S_ISDIR(attrs.mode):
            return self._directory_home(ino)
        return self._file_home(ino, attrs)

    def _file_home(
        self, ino: Ino, attrs: Attrs
    ) -> tuple[int, bytes, int, int, int, int] | None:
        unlinked = self._registers.load(unlinked_key(ino))
        latest = unlinked.latest
        if latest is None:
            return None
        if any(
            row[3] == 0 or self._is_twin(row[0], row[1])
            for row in self._entries_of(ino)
        ):
            return None
        deleters = [decode_unlinked(s.value).seen for s in unlinked.live]
        for sibling, content in self.versions(ino):
            if unseen_by_deleters(content, deleters):
                where = decode_unlinked(latest.value)
                kind = stat.S_IFMT(attrs.mode) >> 12
                return (where.parent, where.name, kind, *_dot_hlc(sibling))
        return None

    def _directory_home(self, ino: Ino) -> tuple[int, bytes, int, int, int, int] | None:
        latest = self._registers.load(place_key(ino)).latest
        if latest is None:
            return None
        place = decode_place(latest.value)
        if self._is_cut(ino):
            name = place.name + b"." + b"%016x" % ino
            return (LOST_FOUND_INO, name[-255:], S_DIR, *_dot_hlc(latest))
        live = self._registers.load(dirent_key(place.parent, place.name)).live
        if any(decode_dirent(s.value).ino == ino for s in live):
            return None
        if not self.has_children(ino):
            return None
        return (place.parent, place.name, S_DIR, *_dot_hlc(latest))

    def _lost_found(self) -> tuple[int, bytes, int, int, int, int] | None:
        live = self._registers.load(dirent_key(ROOT_INO, LOST_FOUND)).live
        if any(decode_dirent(s.value).ino == LOST_FOUND_INO for s in live):
            return None
        if not self.has_children(LOST_FOUND_INO):
            return None
        return (ROOT_INO, LOST_FOUND, S_DIR, 0, 0, 0)

    # -- cycles ----------------------------------------------------------------

    def _cycle_from(self, start: Ino) -> list[Ino]:
        path: dict[Ino, None] = {}
        ino = start
        while ino not in path:
            path[ino] = None
            place = self.place(ino)
            if place is None or place.parent == ROOT_INO:
                return []
            ino = place.parent
        chain = list(path)
        return chain[chain.index(ino) :]


def _dot_hlc(sibling: Sibling) -> tuple[int, int, int]:
    return (sibling.node, sibling.seq, sibling.hlc)


def shown_of(
    versions: list[tuple[Sibling, Content]],
) -> tuple[Sibling | None, Content | None, list[tuple[Sibling, Content]]]:
    """The version that shows, and those that lost to it."""
    if not versions:
        return None, None, []
    if len(versions) == 1:
        return versions[0][0], versions[0][1], []
    (sibling, content), losers = split_versions(versions)
    return sibling, content, losers
