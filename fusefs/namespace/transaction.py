"""Local transactions: one POSIX operation as writes of registers.

Lives between BEGIN and COMMIT under the write lock; every read is fresh. The
methods keep the tree's own invariants (places, unlinked records, parents' times);
permissions and errnos are the vfs's business. An entry or inode that a merge rule
shows without a register of its own is materialised before it is changed.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence

import msgspec

from fusefs.errors import Busy, NotFound
from fusefs.model.appends import Merge, extended
from fusefs.model.conflict import merged_seen, split_versions
from fusefs.model.hlc import Hlc
from fusefs.model.ids import (
    LOST_FOUND,
    LOST_FOUND_INO,
    ROOT_INO,
    Dot,
    Ino,
    NodeId,
    derive_version_ino,
)
from fusefs.model.records import (
    S_DIR,
    S_REG,
    Attrs,
    Content,
    Dirent,
    Member,
    Place,
    Unlinked,
    attrs_key,
    content_key,
    decode_dirent,
    dirent_key,
    encode_value,
    member_key,
    place_key,
    setting_key,
    unlinked_key,
    xattr_key,
)
from fusefs.model.register import GONE
from fusefs.namespace.types import (
    FLAG_APPENDS,
    FLAG_CONFLICT,
    FLAG_DERIVED,
    Entry,
    Inode,
)
from fusefs.namespace.writing import Writing

_TWINS = (
    "SELECT e.parent, e.name, e.ino, e.kind FROM odd o"
    " JOIN entry e ON e.parent = o.parent AND e.name = o.name"
    " WHERE o.parent = ? AND o.origin = ? AND o.why = 'twin'"
    " ORDER BY e.name"
)


class Transaction(Writing):
    """Use through `Namespace.transaction()`."""

    # -- names ------------------------------------------------------------------

    def create(
        self,
        parent: Ino,
        name: bytes,
        ino: Ino,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
    ) -> None:
        """A new inode under a new name; the parent's times move."""
        # Looked at before anything is written: settled without its name, the inode
        # would be derived the general way, which counts the parent's children.
        self._real_directory(parent)
        self.new_inode(ino, mode, uid, gid, rdev, target)
        self.link(parent, name, ino, stat.S_IFMT(mode) >> 12)
        self.touch(parent)

    def new_inode(
        self,
        ino: Ino,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
    ) -> None:
        """An inode without a name yet (O_TMPFILE, or create's first half)."""
        now = self.now_ns
        attrs = Attrs(mode, uid, gid, now, self._hlc, self._hlc, now, 0, rdev, target)
        self._write(attrs_key(ino), encode_value(attrs))
        self.bare.add(ino)
        if stat.S_ISDIR(mode):
            self._write(content_key(ino), encode_value(Content(now, now)))

    def link(self, parent: Ino, name: bytes, ino: Ino, kind: int) -> None:
        """Name an inode here (a directory moves here). Times are the caller's."""
        if ino == LOST_FOUND_INO and (parent, name) != (ROOT_INO, LOST_FOUND):
            raise Busy("lost+found stays where it is")
        parent = self._real_directory(parent)
        self._write(dirent_key(parent, name), encode_value(Dirent(ino, kind)))
        if kind == S_DIR:
            self._write(place_key(ino), encode_value(Place(parent, name)))

    def add_link(self, ino: Ino, parent: Ino, name: bytes) -> None:
        """link(2): another name for a file; ctime and the parent's times move."""
        row = self._real_inode(ino)
        self.link(parent, name, row.ino, stat.S_IFMT(row.mode) >> 12)
        self.set_attrs(row.ino)
        self.touch(parent)

    def unlink(self, parent: Ino, name: bytes) -> None:
        """Remove a name that is not a directory; it leaves an `unlinked`."""
        entry = self._real_entry(parent, name)
        self._keep_beside(parent, name)
        self._drop(entry)
        self.touch(parent)

    def rmdir(self, parent: Ino, name: bytes) -> None:
        """Remove an empty directory."""
        entry = self._real_entry(parent, name)
        self._keep_beside(parent, name)
        self._write(dirent_key(parent, name), GONE)
        self._bury(entry)
        self.touch(parent)

    def _drop(self, entry: Entry) -> None:
        others = self.has_other_name(entry)
        if not others:
            self._keep_versions(entry)
        self._write(dirent_key(entry.parent, entry.name), GONE)
        if others:
            self._one_less(entry)
            return
        self._bury(entry)

    def _bury(self, entry: Entry) -> None:
        """Its last name went: remember where it was and what data was seen."""
        seen = merged_seen([c for _, c in self.versions(entry.ino)])
        value = Unlinked(entry.parent, entry.name, seen)
        self._write(unlinked_key(entry.ino), encode_value(value))

    def _one_less(self, entry: Entry) -> None:
        """It has other names. They may be going at this moment, on a node that counts
        on this one: then the file comes back here, for nobody meant its data."""
        value = Unlinked(entry.parent, entry.name)
        self._write(unlinked_key(entry.ino), encode_value(value))
        self.set_attrs(entry.ino)

    def withdraw(self, parent: Ino, name: bytes, twin: Entry) -> None:
        """Take back this node's claim to a name, for an inode that another one's keeps
        from it and that shows as `twin`. Nothing else of the name changes, whatever
        others do to it at the same time."""
        key = dirent_key(parent, name)
        beside = [
            sibling.dot
            for sibling in self._registers.load(key).siblings
            if not sibling.value or decode_dirent(sibling.value).ino != twin.ino
        ]
        others = self.has_other_name(twin)
        self._write(key, GONE, beside)
        if others:
            self._one_less(twin._replace(parent=parent, name=name))
        else:
            self._bury(twin._replace(parent=parent, name=name))

    def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes
    ) -> None:
        """Move an entry, replacing what is at the new name."""
        entry = self._real_entry(parent, name)
        self._keep_beside(parent, name)
        target = self.entry(new_parent, new_name)
        last = False
        if target is not None:
            target = self._real_entry(new_parent, new_name)
            self._keep_beside(new_parent, new_name)
            last = target.kind == S_DIR or not self.has_other_name(target)
            if target.ino != entry.ino and last:
                self._keep_versions(target)
        self.link(new_parent, new_name, entry.ino, entry.kind)
        if target is not None and target.ino != entry.ino:
            # buried before anything is read: an inode without name and without an
            # `unlinked` is no plain state (quick.py)
            if last:
                self._bury(target)
            else:
                self._one_less(target)
        self._write(dirent_key(parent, name), GONE)
        self.set_attrs(entry.ino)
        self.touch(parent)
        if new_parent != parent:
            self.touch(new_parent)

    def touch_entry(self, parent: Ino, name: bytes) -> None:
        """Give an entry that a merge rule shows a register of its own."""
        self._real_entry(parent, name)

    def exchange(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes
    ) -> None:
        """RENAME_EXCHANGE: both entries swap what they name."""
        a = self._real_entry(parent, name)
        b = self._real_entry(new_parent, new_name)
        self._keep_beside(parent, name)
        self._keep_beside(new_parent, new_name)
        # Looked at before: half exchanged, one has no name left, and is brought back.
        for directory in (new_parent, parent):
            self._real_directory(directory)
        self.link(new_parent, new_name, a.ino, a.kind)
        self.link(parent, name, b.ino, b.kind)
        self.set_attrs(a.ino)
        self.set_attrs(b.ino)
        self.touch(parent)
        if new_parent != parent:
            self.touch(new_parent)

    # -- inodes -----------------------------------------------------------------

    def touch(self, ino: Ino) -> None:
        """A directory's listing changed: mtime and ctime are now."""
        ctime = self._ctime(ino)
        self._write(content_key(ino), encode_value(Content(self.now_ns, ctime)))

    def set_attrs(
        self,
        ino: Ino,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> None:
        """Change what is given; ctime is now (with nothing given: only that).
        `ctime_ns` is when it was changed, if that was before now."""
        row = self._real_inode(ino)
        ino = row.ino
        old = self._derivation.attrs(ino)
        if old is None:
            old = Attrs(row.mode, row.uid, row.gid, 0, Hlc(0), Hlc(0), row.btime_ns)
        owner_moved = uid is not None or gid is not None
        attrs = Attrs(
            mode=old.mode if mode is None else mode,
            uid=old.uid if uid is None else uid,
            gid=old.gid if gid is None else gid,
            ctime_ns=max(self.now_ns if ctime_ns is None else ctime_ns, row.ctime_ns),
            mode_at=old.mode_at if mode is None else self._hlc,
            owner_at=self._hlc if owner_moved else old.owner_at,
            btime_ns=old.btime_ns,
            atime_ns=old.atime_ns if atime_ns is None else atime_ns,
            rdev=old.rdev,
            target=old.target,
        )
        self._write(attrs_key(ino), encode_value(attrs))

    def set_times(
        self, ino: Ino, *, mtime_ns: int | None = None, atime_ns: int | None = None
    ) -> None:
        """utimensat(2): explicit times; ctime is now. The data version stays."""
        row = self._real_inode(ino)
        ino = row.ino
        if mtime_ns is not None:
            beside = self._beside(row, row.dot)
            if row.flags & FLAG_CONFLICT and not beside:
                self._keep_losers(ino)
                row = self._real_inode(ino)
            versions = self.versions(ino)
            shown = next((c for s, c in versions if s.dot == row.dot), Content(0, 0))
            content = msgspec.structs.replace(
                shown, mtime_ns=mtime_ns, ctime_ns=max(self.now_ns, row.ctime_ns)
            )
            self._write(content_key(ino), encode_value(content), beside)
        if atime_ns is not None or mtime_ns is None:
            self.set_attrs(ino, atime_ns=atime_ns)

    def set_content(
        self,
        ino: Ino,
        *,
        size: int,
        root: bytes,
        chunk_log2: int,
        mtime_ns: int,
        ctime_ns: int | None = None,
        data_changed: bool = True,
        appended: bool = False,
        over: Dot | None = None,
    ) -> None:
        """Publish a version of a file. Losing versions become real files first, so
        no byte of theirs is dropped. `ctime_ns` is when it was written, if that was
        before now: what fstat said before close stays true after it. `appended`: it
        is what the file showed, with bytes added at the end; or, where what others
        appended cannot be had now and stays beside it, what the version `over` is."""
        row = self._real_inode(ino)
        ino = row.ino
        beside = self._beside(row, over) if appended and over is not None else []
        if row.flags & FLAG_CONFLICT and not beside:
            self._keep_losers(ino)
            row = self._real_inode(ino)
        versions = [v for v in self.versions(ino) if v[0].dot not in beside]
        contents = [c for _, c in versions]
        seen = merged_seen(contents)
        under = over if beside else row.dot
        shown = next((c for s, c in versions if s.dot == under), None)
        base, pieces = (shown.appended_to, shown.pieces) if shown else (None, ())
        if data_changed:
            seen = merged_seen(contents, (self._node, self.seq))
            base, pieces = None, ()
            if appended:
                before = shown or Content(0, 0)
                base, pieces = extended(before, self._hlc, self._node, size)
        content = Content(
            mtime_ns=mtime_ns,
            ctime_ns=max(self.now_ns if ctime_ns is None else ctime_ns, row.ctime_ns),
            size=size,
            root=root,
            chunk_log2=chunk_log2,
            seen=seen,
            appended_to=base,
            pieces=pieces,
        )
        self._write(content_key(ino), encode_value(content), beside)

    def _beside(self, row: Inode, over: Dot) -> list[Dot]:
        """Versions that merge with what is appended to that one. None of this node's
        may stay: whoever knows its next one has seen it."""
        if not row.flags & FLAG_APPENDS or content_key(row.ino) in self._writes:
            return []
        dots = [s.dot for s, _ in self.versions(row.ino)]
        others = [dot for dot in dots if dot != over]
        mine = any(node == self._node for node, _ in others)
        return others if over in dots and not mine else []

    def merge_appends(
        self, ino: Ino, merge: Merge, root: bytes, versions: Sequence[Dot]
    ) -> bool:
        """Publish the merge of concurrent appends, of exactly these versions. False,
        having done nothing, when the file has others by now."""
        row = self.inode(ino)
        have = self.versions(ino)
        if row is None or {s.dot for s, _ in have} != set(versions):
            return False
        latest = max(c.mtime_ns for _, c in have)
        content = Content(
            mtime_ns=latest,
            ctime_ns=max(row.ctime_ns, *(c.ctime_ns for _, c in have)),
            size=merge.size,
            root=root,
            chunk_log2=row.chunk_log2,
            seen=merged_seen([c for _, c in have]),
            appended_to=merge.appended_to,
            pieces=merge.pieces,
        )
        self._write(content_key(ino), encode_value(content))
        return True

    def set_xattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        self._real_inode(ino)
        self.bare.discard(ino)
        self._write(xattr_key(ino, name), b"\1" + value)
        self.set_attrs(ino)

    def remove_xattr(self, ino: Ino, name: bytes) -> None:
        self._real_inode(ino)
        self._write(xattr_key(ino, name), GONE)
        self.set_attrs(ino)

    # -- cluster ----------------------------------------------------------------

    def put_member(self, node: NodeId, member: Member) -> None:
        self._write(member_key(node), encode_value(member))

    def put_setting(self, name: bytes, value: bytes) -> None:
        self._write(setting_key(name), value)

    # -- materialising what merge rules show ----------------------------------------

    def _real_directory(self, ino: Ino) -> Ino:
        row = self._rows.get(ino) or self.inode(ino)
        if row is not None and row.flags & FLAG_DERIVED:
            for entry in self.links(ino):
                self._real_entry(entry.parent, entry.name)
        return ino

    def _real_inode(self, ino: Ino) -> Inode:
        row = self.inode(ino)
        if row is None:
            raise NotFound(f"inode {ino}")
        if row.flags & FLAG_DERIVED:
            for entry in self.links(ino):
                self._real_entry(entry.parent, entry.name)
            row = self.inode(ino)
            if row is None:
                raise NotFound(f"inode {ino}")
        return row

    def _real_entry(self, parent: Ino, name: bytes) -> Entry:
        """The entry, given a dirent of its own if a merge rule shows it."""
        entry = self.entry(parent, name)
        if entry is None:
            raise NotFound(name.decode("utf-8", "replace"))
        if not entry.flags & FLAG_DERIVED:
            return entry
        origin, why, base = self._db.execute(
            "SELECT origin, why, base FROM odd WHERE parent = ? AND name = ?",
            (parent, name),
        ).fetchone()
        if why == "version":
            self._keep_losers(Ino(base))
        elif why == "twin":
            self._real_twins(parent, origin)
        elif name != origin:
            self.link(parent, name, entry.ino, entry.kind)
        else:
            self._real_directory_of(entry)
            self.link(parent, name, entry.ino, entry.kind)
        self._settle()
        return entry._replace(flags=0)

    def new_lost_found(self) -> None:
        """Its attributes. It belongs to whom the tree belongs: where all members are
        ordinary users, nobody else can look into it."""
        top = self.inode(ROOT_INO)
        owner = (top.uid, top.gid) if top is not None else (0, 0)
        self.new_inode(LOST_FOUND_INO, stat.S_IFDIR | 0o700, *owner)

    def _real_directory_of(self, entry: Entry) -> None:
        if entry.ino == LOST_FOUND_INO:
            self.new_lost_found()
        elif entry.parent == LOST_FOUND_INO:
            self._real_directory(LOST_FOUND_INO)

    def _real_twins(self, parent: Ino, origin: bytes) -> None:
        """The write that leaves the name to the winner alone drops every twin from
        its register, so all of them become entries of their own."""
        winner = self.entry(parent, origin)
        for row in self._db.execute(_TWINS, (parent, origin)).fetchall():
            self.link(*row)
        if winner is not None and not winner.flags & FLAG_DERIVED:
            value = encode_value(Dirent(winner.ino, winner.kind))
            self._write(dirent_key(parent, origin), value)

    def _keep_beside(self, parent: Ino, name: bytes) -> None:
        """What stands beside a name because it lost it becomes an entry of its own:
        who removes or moves the winner has not removed the losers."""
        if self._derivation.plain():
            return
        for (beside,) in self._db.execute(
            "SELECT name FROM odd WHERE parent = ? AND origin = ? AND why = 'twin'"
            " AND name != origin ORDER BY name",
            (parent, name),
        ).fetchall():
            self._real_entry(parent, beside)

    def _keep_versions(self, entry: Entry) -> None:
        """The same for concurrent versions of a file whose last name goes."""
        row = self.inode(entry.ino) if entry.kind == S_REG else None
        if row is not None and row.flags & FLAG_CONFLICT:
            self._keep_losers(entry.ino)

    def _keep_losers(self, base: Ino) -> None:
        """Make every losing version a file of its own, so that the next write of
        the content register drops no byte; the shown one then includes them all."""
        self._settle()
        attrs = self._derivation.attrs(base)
        versions = self.versions(base)
        if attrs is None or len(versions) < 2:
            return
        losers = [
            (name, derive_version_ino(base, sibling.dot), content)
            for name, (sibling, content) in self._derivation.losers(base).items()
        ]
        kept_by_others = {vino for _, vino, _ in losers if self._is_kept(vino)}
        for (parent, name), vino, content in losers:
            # another node may have done it, and the file was changed since; of what it
            # wrote some may be here and some on its way
            if not self._registers.load(attrs_key(vino)).live:
                self._write(attrs_key(vino), encode_value(attrs))
            if not self._registers.load(content_key(vino)).live:
                self._write(content_key(vino), encode_value(content))
            if vino not in kept_by_others:
                self._write(dirent_key(parent, name), encode_value(Dirent(vino, S_REG)))
        (_, shown), _ = split_versions(versions)
        seen = merged_seen([c for _, c in versions])
        kept = msgspec.structs.replace(shown, seen=seen, appended_to=None, pieces=())
        self._write(content_key(base), encode_value(kept))
        self._settle()

    def _is_kept(self, vino: Ino) -> bool:
        """Whether a losing version is, or was, a file of its own."""
        if self._registers.load(unlinked_key(vino)).live:
            return True
        return any(not entry.flags & FLAG_DERIVED for entry in self.links(vino))
