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
from collections import OrderedDict
from collections.abc import Callable, Iterable

from fusefs.model.conflict import LATER_CHOICE, all_appends, conflict_name
from fusefs.model.hlc import Hlc
from fusefs.model.ids import LOST_FOUND_INO, ROOT_INO, Ino, derive_version_ino
from fusefs.model.records import (
    ATTRS,
    CONTENT,
    DIRENT,
    MEMBER,
    PLACE,
    S_REG,
    UNLINKED,
    XATTR,
    Content,
    attrs_key,
    decode_dirent,
    decode_place,
    dirent_key,
    key_ino,
    key_name,
)
from fusefs.model.register import Register, Sibling
from fusefs.model.tx import Effects, EntryChange
from fusefs.namespace.facts import Candidate, Facts, Name, Row, shown_of
from fusefs.namespace.quick import Quick, is_plain, write_inode
from fusefs.namespace.registers import Registers
from fusefs.namespace.rows import content_change, inode_row
from fusefs.namespace.types import FLAG_APPENDS, FLAG_DERIVED, Inode
from fusefs.namespace.warm import Warm

_MAY_WANT = " WHERE parent = ? AND (name = ? OR instr(name, ?))"
"""Odd entries that a name concerns: theirs, or one that a later choice had to avoid."""


class Derivation(Facts):
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
        super().__init__(db, registers)
        self._warm = warm
        self._remote = remote
        self._quick = True
        self._names: OrderedDict[Name, None] = OrderedDict()
        self._inodes: OrderedDict[Ino, None] = OrderedDict()
        self._versions: OrderedDict[Ino, None] = OrderedDict()
        self._before: dict[Name, int] = {}
        self._inode_before: dict[Ino, Inode | None] = {}
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
        if warm is None or self._registers.met_damage:
            return False
        if warm.plain is None:
            warm.plain = is_plain(self._db)
        return warm.plain

    def queue_root(self) -> None:
        """The root is there without any register."""
        self._inodes[ROOT_INO] = None

    def queue_odd(self) -> None:
        """Everything that shows by more than its own register."""
        self._requeue_odd()
        odd = "SELECT ino FROM odd UNION SELECT ino FROM revived"
        self._inodes |= {Ino(ino): None for (ino,) in self._db.execute(odd)}
        self._inodes[LOST_FOUND_INO] = None

    def _queue(
        self, key: bytes, before: Register, after: Register, places: list[Ino]
    ) -> None:
        kind = key[:1]
        if kind == DIRENT:
            self._names[(key_ino(key), key_name(key))] = None
            if bool(before.live) != bool(after.live) and self._any_odd():
                self._requeue_odd((key_ino(key), key_name(key)))
            for sibling in before.live + after.live:
                self._inodes[decode_dirent(sibling.value).ino] = None
        elif kind in (ATTRS, CONTENT, UNLINKED):
            self._inodes[key_ino(key)] = None
            if key_ino(key) == ROOT_INO:
                self._inodes[LOST_FOUND_INO] = None  # has its owner
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

    def _requeue_odd(self, name: Name | None = None) -> None:
        """A name is used now, or no more: the odd entry that shows under it is derived
        anew, and those that had to avoid any. Without a name, a node has another one:
        all are."""
        where, args = ("", ()) if name is None else (_MAY_WANT, (*name, LATER_CHOICE))
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

    def _free_name(
        self, parent: Ino, origin: bytes, c: Candidate, taken: dict[bytes, Row]
    ) -> bytes:
        return self._pick(
            parent,
            lambda nth: conflict_name(origin, self.node_name(c.node), c.hlc, nth),
            lambda name: name in taken,
            c.ino,
            origin,
        )

    def _pick(
        self,
        parent: Ino,
        make: Callable[[int], bytes],
        taken: Callable[[bytes], bool],
        ino: Ino,
        origin: bytes = b"",
    ) -> bytes:
        """The first made name that no dirent uses, nor an odd entry whose own it is; of
        two odd entries that want one name the lower inode number gets it, in whatever
        order they came; of one inode that lost two names the lower name, and a version
        before both (no `origin`)."""
        nth, me = 0, (ino, origin)
        while True:
            name = make(nth)
            nth += 1
            if taken(name) or self._registers.load(dirent_key(parent, name)).live:
                continue
            row = self._db.execute(
                "SELECT origin, why, base, ino FROM odd WHERE parent = ? AND name = ?",
                (parent, name),
            ).fetchone()
            if row is None:
                return name
            its = b"" if row[1] == "version" else row[0]
            if its == name:
                continue
            other = (row[3], its)
            if other > me:
                self._evict(parent, name, row[:3])
            if other >= me:
                return name

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
            self._requeue_odd((parent, row.name))
        self._entry_moved(parent, row)

    def _insert(self, parent: Ino, origin: bytes, row: Row) -> None:
        self._remember(parent, row.name)
        if self._any_odd():
            shadow = self._db.execute(
                "SELECT origin, why, base, ino FROM odd WHERE parent = ? AND name = ?",
                (parent, row.name),
            ).fetchone()
            if shadow is not None and (
                (shadow[3], shadow[1]) != (row.ino, row.why)
                or (row.why != "version" and shadow[0] != origin)
            ):
                self._evict(parent, row.name, shadow[:3])
        self._db.execute(
            "INSERT OR REPLACE INTO entry VALUES(?, ?, ?, ?, ?)",
            (parent, row.name, row.ino, row.kind, row.flags),
        )
        if row.flags & FLAG_DERIVED:
            self._has_odd = True
            self.effects.twins |= row.why == "twin"
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
        before = self.row_of(ino)
        self._inode_before.setdefault(ino, before)
        self._revive(ino)
        if self._names:
            self._inodes[ino] = None  # its entries are about to change: come back
            return
        base = self._version_of(ino) if self._any_odd() else None
        if base is not None and not self._registers.load(attrs_key(ino)).live:
            self._versions[base] = None  # not a file of its own yet
            return
        after = self._compute_inode(ino)
        if after == before:
            return
        if self._any_odd() and self._has_twin(ino):
            self.effects.twins = True
        if after is None:
            self._db.execute("DELETE FROM inode WHERE ino = ?", (ino,))
        else:
            write_inode(self._db, after)
        if (before is None) != (after is None) or (
            before and after and before.flags != after.flags
        ):
            self._versions[ino] = None

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
            for sibling, content in shown_of(self.versions(ino))[2]
        ]
        for vino, sibling, content in sorted(versions, key=lambda v: v[0]):
            node, stamp = self.node_name(sibling.node), sibling.hlc

            def make(nth: int, node: str = node, stamp: Hlc = stamp) -> bytes:
                return conflict_name(origin, node, stamp, nth)

            name = self._pick(parent, make, lambda n: (parent, n) in out, vino)
            out[(parent, name)] = (sibling, content)
        return out

    def _show_version(
        self, ino: Ino, vino: Ino, sibling: Sibling, content: Content
    ) -> None:
        """With what was written to it elsewhere, if that has come: whoever writes to
        it here has to have seen it."""
        attrs = self.attrs(ino)
        if attrs is None or self._registers.load(attrs_key(vino)).live:
            return
        latest, written, _ = shown_of(self.versions(vino))
        if latest is not None and written is not None:
            sibling, content = latest, written
        before = self.row_of(vino)
        self._inode_before.setdefault(vino, before)
        row = inode_row(vino, attrs, sibling, content, 1, 0, FLAG_DERIVED)
        if row != before:
            write_inode(self._db, row)

    def _forget_version(self, vino: Ino) -> None:
        self._inode_before.setdefault(vino, self.row_of(vino))
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
            after = self.row_of(ino)
            if before == after:
                continue
            self._registers.reshaped(before, after)
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
