"""The derived tree: what lookups see, as a function of the registers alone.

`Derivation` lives inside one write transaction. Told which registers changed, it
brings the tables inode, entry, odd, revived and cut to exactly what a rebuild from
scratch would give (a test compares both after every step), and collects the
`Effects` caches must forget. The rules are those of docs/design.md, section 4.

How it stays small: a *name* (parent, origin) is re-derived as a whole: its dirent
register and the inodes that come back under it decide its rows. An *inode* is
re-derived as a whole from its registers and its number of entries. Each change
queues the names and inodes it may touch, until nothing is queued.
"""

from __future__ import annotations

import sqlite3
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from fusefs.model.conflict import (
    all_appends,
    conflict_name,
    merge_attrs,
    split_versions,
    unseen_by_deleters,
)
from fusefs.model.hlc import Hlc
from fusefs.model.ids import (
    LOST_FOUND,
    LOST_FOUND_INO,
    ROOT_INO,
    Ino,
    NodeId,
    derive_version_ino,
)
from fusefs.model.records import (
    ATTRS,
    CONTENT,
    DIRENT,
    MEMBER,
    PLACE,
    S_DIR,
    S_REG,
    UNLINKED,
    XATTR,
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
    key_ino,
    key_name,
    member_key,
    place_key,
    unlinked_key,
)
from fusefs.model.register import Register, Sibling
from fusefs.model.tx import Effects, EntryChange
from fusefs.namespace.quick import Quick, is_plain, write_inode
from fusefs.namespace.registers import Registers
from fusefs.namespace.rows import content_change, inode_row
from fusefs.namespace.types import FLAG_APPENDS, FLAG_CONFLICT, FLAG_DERIVED, Inode
from fusefs.namespace.warm import Warm

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


class Derivation:
    """`warm`: what is known of rows and oddities; None asks for the general way
    only. `remote`: the changes are a peer's."""

    def __init__(
        self,
        db: sqlite3.Connection,
        registers: Registers,
        warm: Warm | None = None,
        *,
        remote: bool = False,
    ) -> None:
        self._db = db
        self._registers = registers
        self._warm = warm
        self._remote = remote
        self._quick = True
        self._names: OrderedDict[Name, None] = OrderedDict()
        self._inodes: OrderedDict[Ino, None] = OrderedDict()
        self._versions: OrderedDict[Ino, None] = OrderedDict()
        self._before: dict[Name, int] = {}
        self._inode_before: dict[Ino, Inode | None] = {}
        self._has_odd: bool | None = None
        self.effects = Effects()

    # -- what changed ---------------------------------------------------------

    def run(self) -> Effects:
        """Bring the derived tables up to date with everything changed so far."""
        changed = dict(self._registers.changed)
        self._registers.changed.clear()
        effects = self._run(changed)
        for key in changed:
            if key[:1] == XATTR and key_ino(key) not in effects.inodes:
                effects.inodes.append(key_ino(key))  # it came without its new ctime
        return effects

    def _run(self, changed: dict[bytes, tuple[Register, Register]]) -> Effects:
        if self._warm is not None:
            if self._quick and self.plain():
                quick = Quick(self._db, self._registers, self._warm.rows, self._remote)
                effects = quick.run(changed)
                if effects is not None:
                    return effects
            self._warm.plain = None
            self._warm.rows.clear()
        places: list[Ino] = []
        for key, (before, after) in changed.items():
            self._queue(key, before, after, places)
        if places:
            self._recut(places)
        self._settle()
        return self._finish()

    def go_the_general_way(self) -> None:
        """From now on: something is known that the quick way does not look for."""
        self._quick = False

    def plain(self) -> bool:
        """Whether every entry is its own register's (quick.is_plain)."""
        warm = self._warm
        if warm is None or self._registers.damaged:
            return False
        if warm.plain is None:
            warm.plain = is_plain(self._db)
        return warm.plain

    def queue_root(self) -> None:
        """The root is there without any register."""
        self._inodes[ROOT_INO] = None

    def _queue(
        self, key: bytes, before: Register, after: Register, places: list[Ino]
    ) -> None:
        kind = key[:1]
        if kind == DIRENT:
            self._names[(key_ino(key), key_name(key))] = None
            if bool(before.live) != bool(after.live) and self._any_odd():
                self._requeue_odd(key_ino(key))
            for sibling in before.live + after.live:
                self._inodes[decode_dirent(sibling.value).ino] = None
        elif kind in (ATTRS, CONTENT, UNLINKED):
            self._inodes[key_ino(key)] = None
            concurrent = len(before.siblings) > 1 or len(after.siblings) > 1
            if (kind == CONTENT and concurrent) or self._any_odd():
                self._versions[key_ino(key)] = None
        elif kind == PLACE:
            ino = key_ino(key)
            places.append(ino)
            self._inodes[ino] = None
            for sibling in before.siblings + after.siblings:
                place = decode_place(sibling.value)
                self._names[(place.parent, place.name)] = None
        elif kind == MEMBER:
            self._requeue_odd()

    def _requeue_odd(self, parent: int | None = None) -> None:
        """A node's name changed, or names of a directory: derive odd entries anew."""
        where, args = ("", ()) if parent is None else (" WHERE parent = ?", (parent,))
        rows = self._db.execute(
            "SELECT parent, origin, why, base FROM odd" + where, args
        ).fetchall()
        for row_parent, origin, why, base in rows:
            if why == "version":
                self._versions[Ino(base)] = None
            else:
                self._names[(Ino(row_parent), origin)] = None

    def _settle(self) -> None:
        while self._names or self._inodes or self._versions:
            while self._names or self._inodes:
                while self._names:
                    name, _ = self._names.popitem(last=False)
                    self._derive_name(*name)
                while self._inodes and not self._names:
                    ino, _ = self._inodes.popitem(last=False)
                    self._derive_inode(ino)
            if self._versions:
                ino, _ = self._versions.popitem(last=False)
                self._derive_versions(ino)

    # -- names ----------------------------------------------------------------

    def _derive_name(self, parent: Ino, origin: bytes) -> None:
        want = self._rows_of(parent, origin)
        have = self._existing(parent, origin)
        for name, row in have.items():
            if want.get(name) != row:
                self._remove(parent, origin, row)
                if self._any_odd():
                    self._names[(parent, origin)] = None  # a name became free
        for name, row in want.items():
            if have.get(name) != row:
                self._insert(parent, origin, row)

    def _rows_of(self, parent: Ino, origin: bytes) -> dict[bytes, Row]:
        """What this name shows: the winner under it, the others beside it."""
        found = self._candidates(parent, origin)
        found.sort(key=lambda c: (c.real, c.rank), reverse=True)
        rows: dict[bytes, Row] = {}
        for c in found[:1]:
            if c.real:
                rows[origin] = Row(origin, c.ino, c.kind, 0, "", c.ino, 0, 0)
            else:
                rows[origin] = Row(
                    origin, c.ino, c.kind, FLAG_DERIVED, c.why, c.ino, c.node, c.seq
                )
        for c in sorted(found[1:], key=lambda c: c.ino):  # who picks first: `_pick`
            name = self._free_name(parent, origin, c, rows)
            why = "twin" if c.real else c.why
            rows[name] = Row(
                name, c.ino, c.kind, FLAG_DERIVED, why, c.ino, c.node, c.seq
            )
        return rows

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

    def _is_cut(self, ino: Ino) -> bool:
        row = self._db.execute("SELECT 1 FROM cut WHERE ino = ?", (ino,)).fetchone()
        return row is not None

    def place(self, ino: Ino) -> Place | None:
        latest = self._registers.load(place_key(ino)).latest
        return decode_place(latest.value) if latest else None

    def _free_name(
        self, parent: Ino, origin: bytes, c: Candidate, taken: dict[bytes, Row]
    ) -> bytes:
        return self._pick(
            parent,
            lambda nth: conflict_name(origin, self.node_name(c.node), c.hlc, nth),
            lambda name: name in taken,
            c.ino,
        )

    def _pick(
        self,
        parent: Ino,
        make: Callable[[int], bytes],
        taken: Callable[[bytes], bool],
        ino: Ino,
    ) -> bytes:
        """The first made name that no dirent uses; of two odd entries that want one
        name the lower inode number gets it, in whatever order they came."""
        nth = 0
        while True:
            name = make(nth)
            nth += 1
            if taken(name) or self._registers.load(dirent_key(parent, name)).live:
                continue
            row = self._db.execute(
                "SELECT origin, why, base, ino FROM odd WHERE parent = ? AND name = ?",
                (parent, name),
            ).fetchone()
            if row is not None and row[3] > ino:
                self._evict(parent, name, row[:3])
            if row is None or row[3] >= ino:
                return name

    def node_name(self, node: NodeId) -> str:
        latest = self._registers.load(member_key(node)).latest
        if latest is None or not latest.value:
            return f"{node:016x}"[:8]
        return decode_member(latest.value).name

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

    def _evict(self, parent: Ino, name: bytes, shadow: tuple[bytes, str, int]) -> None:
        """Take an odd entry off a name that another has more right to."""
        origin, why, base = shadow
        ino, kind, flags = self._db.execute(
            "SELECT ino, kind, flags FROM entry WHERE parent = ? AND name = ?",
            (parent, name),
        ).fetchone()
        self._remove(parent, origin, Row(name, ino, kind, flags, why, base, 0, 0))
        if why == "version":
            self._forget_version(Ino(ino))
            self._versions[Ino(base)] = None
        else:
            self._names[(parent, origin)] = None

    def _any_odd(self) -> bool:
        if self._has_odd is None:
            row = self._db.execute("SELECT 1 FROM odd LIMIT 1").fetchone()
            self._has_odd = row is not None
        return self._has_odd

    # -- rows -----------------------------------------------------------------

    def _remember(self, parent: Ino, name: bytes) -> None:
        if (parent, name) not in self._before:
            row = self._db.execute(
                "SELECT ino FROM entry WHERE parent = ? AND name = ?", (parent, name)
            ).fetchone()
            self._before[(parent, name)] = row[0] if row else 0

    def _remove(self, parent: Ino, origin: bytes, row: Row) -> None:
        self._remember(parent, row.name)
        self._db.execute(
            "DELETE FROM entry WHERE parent = ? AND name = ?", (parent, row.name)
        )
        if row.flags & FLAG_DERIVED:
            self._db.execute(
                "DELETE FROM odd WHERE parent = ? AND name = ?", (parent, row.name)
            )
        if self._any_odd():  # a name became free that another had to avoid
            self._requeue_odd(parent)
        self._entry_moved(parent, row)

    def _insert(self, parent: Ino, origin: bytes, row: Row) -> None:
        self._remember(parent, row.name)
        if self._any_odd():
            shadow = self._db.execute(
                "SELECT origin, why, base, ino FROM odd WHERE parent = ? AND name = ?",
                (parent, row.name),
            ).fetchone()
            if shadow is not None and (shadow[3], shadow[1]) != (row.ino, row.why):
                self._evict(parent, row.name, shadow[:3])
        self._db.execute(
            "INSERT OR REPLACE INTO entry VALUES(?, ?, ?, ?, ?)",
            (parent, row.name, row.ino, row.kind, row.flags),
        )
        if row.flags & FLAG_DERIVED:
            self._has_odd = True
            self._db.execute(
                "INSERT OR REPLACE INTO odd VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    parent,
                    row.name,
                    origin,
                    row.ino,
                    row.why,
                    row.base,
                    row.node,
                    row.seq,
                ),
            )
        self._entry_moved(parent, row)

    def _entry_moved(self, parent: Ino, row: Row) -> None:
        # its directory may appear or vanish with its last child, and its link
        # count changes with a subdirectory
        self._inodes[parent] = None
        if row.why == "version":
            if self._registers.load(attrs_key(row.ino)).live:
                self._inodes[row.ino] = None  # a file of its own already: a link more
            return
        self._inodes[row.ino] = None
        if row.kind == S_REG and self._any_odd():
            self._versions[row.ino] = None

    # -- inodes ---------------------------------------------------------------

    def _derive_inode(self, ino: Ino) -> None:
        before = self._inode_row(ino)
        self._inode_before.setdefault(ino, before)
        self._revive(ino)
        if self._names:
            self._inodes[ino] = None  # its entries are about to change: come back
            return
        after = self._compute_inode(ino)
        if after == before:
            return
        if after is None:
            self._db.execute("DELETE FROM inode WHERE ino = ?", (ino,))
        else:
            write_inode(self._db, after)
        if (before is None) != (after is None) or (
            before and after and before.flags != after.flags
        ):
            self._versions[ino] = None

    def _inode_row(self, ino: Ino) -> Inode | None:
        row = self._db.execute("SELECT * FROM inode WHERE ino = ?", (ino,)).fetchone()
        return Inode(*row) if row else None

    def _entries_of(self, ino: Ino) -> list[tuple[Ino, bytes, int, int]]:
        return self._db.execute(
            "SELECT parent, name, kind, flags FROM entry WHERE ino = ?", (ino,)
        ).fetchall()

    def _compute_inode(self, ino: Ino) -> Inode | None:
        named = self._entries_of(ino)
        if not named and ino != ROOT_INO:
            return None
        attrs = self.attrs(ino)
        if attrs is None:
            if ino == ROOT_INO:
                attrs = Attrs(stat.S_IFDIR | 0o755, 0, 0, 0, Hlc(0), Hlc(0))
            elif ino == LOST_FOUND_INO:
                attrs = Attrs(stat.S_IFDIR | 0o700, 0, 0, 0, Hlc(0), Hlc(0))
            else:
                return None
        flags = FLAG_DERIVED if named and all(n[3] for n in named) else 0
        versions = self.versions(ino)
        if stat.S_ISDIR(attrs.mode):
            return self._directory(ino, attrs, versions, named, flags)
        sibling, content, losers = _shown(versions)
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

    # -- what comes back ------------------------------------------------------

    def _revive(self, ino: Ino) -> None:
        """Keep the inode's row in `revived` right; queue the names it concerns."""
        if ino == ROOT_INO:
            return
        want = self._lost_found() if ino == LOST_FOUND_INO else self._home(ino)
        have = self._db.execute(
            "SELECT parent, name, kind, node, seq, hlc FROM revived WHERE ino = ?",
            (ino,),
        ).fetchone()
        if want == have:
            return
        if have is not None:
            self._db.execute("DELETE FROM revived WHERE ino = ?", (ino,))
            self._names[(Ino(have[0]), have[1])] = None
        if want is not None:
            self._db.execute(
                "INSERT INTO revived VALUES(?, ?, ?, ?, ?, ?, ?)", (ino, *want)
            )
            self._names[(Ino(want[0]), want[1])] = None

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

    def _is_twin(self, parent: Ino, name: bytes) -> bool:
        row = self._db.execute(
            "SELECT why FROM odd WHERE parent = ? AND name = ?", (parent, name)
        ).fetchone()
        return row is not None and row[0] == "twin"

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
        if not self._has_children(ino):
            return None
        return (place.parent, place.name, S_DIR, *_dot_hlc(latest))

    def _lost_found(self) -> tuple[int, bytes, int, int, int, int] | None:
        live = self._registers.load(dirent_key(ROOT_INO, LOST_FOUND)).live
        if any(decode_dirent(s.value).ino == LOST_FOUND_INO for s in live):
            return None
        if not self._has_children(LOST_FOUND_INO):
            return None
        return (ROOT_INO, LOST_FOUND, S_DIR, 0, 0, 0)

    def _has_children(self, ino: Ino) -> bool:
        row = self._db.execute(
            "SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (ino,)
        ).fetchone()
        return row is not None

    # -- losing versions of a file --------------------------------------------

    def _derive_versions(self, ino: Ino) -> None:
        """Show each losing version beside the file's first name."""
        have = {
            row[1]: row
            for row in self._db.execute(
                "SELECT parent, name, origin, ino, node, seq FROM odd"
                " WHERE base = ? AND why = 'version'",
                (ino,),
            )
        }
        want: dict[bytes, tuple[Ino, bytes, Sibling, Content]] = {}
        anchor = self._anchor(ino)
        if anchor is not None and not all_appends(self.versions(ino)):
            # concurrent appends are merged, not shown (docs/design.md)
            for (parent, name), (sibling, content) in self.losers(ino).items():
                want[name] = (parent, anchor[1], sibling, content)
        for name, row in have.items():
            keep = want.get(name)
            vino = derive_version_ino(ino, (row[4], row[5]))
            if keep is None or keep[0] != row[0] or keep[2].dot != (row[4], row[5]):
                self._remove(
                    Ino(row[0]),
                    row[2],
                    Row(name, vino, S_REG, FLAG_DERIVED, "version", ino, 0, 0),
                )
                self._forget_version(vino)
                self._versions[ino] = None  # once more: a name became free
        for name, (parent, origin, sibling, content) in want.items():
            vino = derive_version_ino(ino, sibling.dot)
            if name not in have or have[name][:4] != (parent, name, origin, vino):
                self._insert(
                    parent,
                    origin,
                    Row(name, vino, S_REG, FLAG_DERIVED, "version", ino, *sibling.dot),
                )
            self._show_version(ino, vino, sibling, content)

    def losers(self, ino: Ino) -> dict[Name, tuple[Sibling, Content]]:
        """The losing versions of a file and the names that stand for them."""
        anchor = self._anchor(ino)
        if anchor is None:
            return {}
        parent, origin = anchor
        out: dict[Name, tuple[Sibling, Content]] = {}
        versions = [
            (derive_version_ino(ino, sibling.dot), sibling, content)
            for sibling, content in _shown(self.versions(ino))[2]
        ]
        for vino, sibling, content in sorted(versions, key=lambda v: v[0]):
            node, stamp = self.node_name(sibling.node), sibling.hlc

            def make(nth: int, node: str = node, stamp: Hlc = stamp) -> bytes:
                return conflict_name(origin, node, stamp, nth)

            name = self._pick(parent, make, lambda n: (parent, n) in out, vino)
            out[(parent, name)] = (sibling, content)
        return out

    def _anchor(self, ino: Ino) -> Name | None:
        names = [(row[0], row[1]) for row in self._entries_of(ino)]
        return min(names, default=None)

    def _show_version(
        self, ino: Ino, vino: Ino, sibling: Sibling, content: Content
    ) -> None:
        attrs = self.attrs(ino)
        if attrs is None or self._registers.load(attrs_key(vino)).live:
            return
        before = self._inode_row(vino)
        self._inode_before.setdefault(vino, before)
        row = inode_row(vino, attrs, sibling, content, 1, 0, FLAG_DERIVED)
        if row != before:
            write_inode(self._db, row)

    def _forget_version(self, vino: Ino) -> None:
        self._inode_before.setdefault(vino, self._inode_row(vino))
        if self._registers.load(attrs_key(vino)).live:
            self._inodes[vino] = None
        else:
            self._db.execute("DELETE FROM inode WHERE ino = ?", (vino,))

    # -- cycles ---------------------------------------------------------------

    def _recut(self, moved: Iterable[Ino]) -> None:
        """Find the cycles of places anew and cut each at its latest move."""
        old = {Ino(row[0]) for row in self._db.execute("SELECT ino FROM cut")}
        new: set[Ino] = set()
        for start in {*moved, *old}:
            cycle = self._cycle_from(start)
            if cycle:
                new.add(max(cycle, key=self._place_rank))
        for ino in old - new:
            self._db.execute("DELETE FROM cut WHERE ino = ?", (ino,))
        for ino in new - old:
            self._db.execute("INSERT INTO cut VALUES(?)", (ino,))
        for ino in old ^ new:
            place = self.place(ino)
            self._inodes[ino] = None
            if place is not None:
                self._names[(place.parent, place.name)] = None

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

    def _place_rank(self, ino: Ino) -> tuple[int, int, int]:
        latest = self._registers.load(place_key(ino)).latest
        return latest.rank if latest else (0, 0, 0)

    # -- effects --------------------------------------------------------------

    def _finish(self) -> Effects:
        effects = self.effects
        for (parent, name), old in self._before.items():
            row = self._db.execute(
                "SELECT ino FROM entry WHERE parent = ? AND name = ?", (parent, name)
            ).fetchone()
            new = row[0] if row else 0
            if new != old:
                effects.entries.append(EntryChange(parent, name, old, new))
        for ino, before in self._inode_before.items():
            after = self._inode_row(ino)
            if before == after:
                continue
            effects.inodes.append(ino)
            if after is not None and after.flags & FLAG_APPENDS:
                effects.appends.append(ino)
            changed = content_change(before, after)
            if changed is not None:
                effects.contents.append(changed)
        self._before.clear()
        self._inode_before.clear()
        self.effects = Effects()
        return effects


def _dot_hlc(sibling: Sibling) -> tuple[int, int, int]:
    return (sibling.node, sibling.seq, sibling.hlc)


def _shown(
    versions: list[tuple[Sibling, Content]],
) -> tuple[Sibling | None, Content | None, list[tuple[Sibling, Content]]]:
    if not versions:
        return None, None, []
    if len(versions) == 1:
        return versions[0][0], versions[0][1], []
    (sibling, content), losers = split_versions(versions)
    return sibling, content, losers
