"""What small.db records: small objects with their bytes, large ones by size.

Reads go to any thread at once. A method that writes says so, and its caller holds
the store's WriteLock. `small.n` orders small objects by when they were stored (a
row moves to the end when a write finds it again), so eviction and the search for
pushed objects need no further index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fusefs.model.ids import ChunkId
from fusefs.store.database import Database
from fusefs.store.types import PUSHED, Buffer, Object

RENEW_AFTER_S = 60
"""An object found again is marked as new only when its mark is older than this."""
_PAGE = 1000
_BATCH = 100
_INSERT = (
    "INSERT INTO small(id, size, stored_s, flags, data)"
    " VALUES(?1, ?2, ?3, ?4, ?5) ON CONFLICT(id) DO UPDATE SET data = excluded.data"
    " WHERE data <> excluded.data"  # damaged
)
_MOVE = (
    "UPDATE small SET stored_s = ?2, flags = flags | ?3,"
    " n = (SELECT max(n) + 1 FROM small) WHERE id = ?1"
    " AND (stored_s < ?2 - ?4 OR flags | ?3 <> flags)"
)
_LARGE = (
    "INSERT INTO large VALUES(?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET"
    " size = excluded.size, used_s = excluded.used_s,"
    " flags = flags | excluded.flags"
)
_ONE_OF = ", ".join("?" * _BATCH)


class Index:
    """The tables of small.db as the store sees them."""

    def __init__(self, database: Database) -> None:
        self._db = database

    # -- small objects --------------------------------------------------------

    def get_small(self, cid: ChunkId) -> bytes | None:
        row = self._db.one("SELECT data FROM small WHERE id = ?", (cid,))
        return row[0] if row else None

    def small_size(self, cid: ChunkId) -> int | None:
        row = self._db.one("SELECT size FROM small WHERE id = ?", (cid,))
        return row[0] if row else None

    def small_sizes(self, cids: Sequence[ChunkId]) -> dict[ChunkId, int]:
        """The sizes of those of `cids` that are small objects here."""
        found: dict[ChunkId, int] = {}
        sql = f"SELECT id, size FROM small WHERE id IN ({_ONE_OF})"
        for at in range(0, len(cids), _BATCH):
            batch = cids[at : at + _BATCH]
            padding = (b"",) * (_BATCH - len(batch))
            found.update(self._db.all(sql, (*batch, *padding)))
        return found

    def put_small(self, cid: ChunkId, data: Buffer, flags: int, now_s: int) -> None:
        """Write. An object already here is marked as new and gains the flags."""
        row = (cid, len(data), now_s, flags, data)
        if self._db.run(_INSERT, row) == 0:
            self._db.run(_MOVE, (cid, now_s, flags, RENEW_AFTER_S))

    def put_smalls(
        self, items: Iterable[tuple[ChunkId, Buffer]], flags: int, now_s: int
    ) -> None:
        """Write, in one transaction."""
        with self._db.transaction():
            for cid, data in items:
                self.put_small(cid, data, flags, now_s)

    def delete_small(self, cid: ChunkId) -> bool:
        """Write."""
        # The number of a deleted last row is given again: keep it above the mark.
        self._db.run(
            "UPDATE state SET value = min(value, coalesce((SELECT n FROM small"
            " WHERE id <> ? ORDER BY n DESC LIMIT 1), 0)) WHERE key = 'pushed_n'",
            (cid,),
        )
        return self._db.run("DELETE FROM small WHERE id = ?", (cid,)) > 0

    def small_is_older(self, cid: ChunkId, before_s: float) -> bool:
        """Was it last stored earlier than that? Read under the WriteLock."""
        sql = "SELECT stored_s < ? FROM small WHERE id = ?"
        row = self._db.fresh(sql, (before_s, cid))
        return bool(row and row[0])

    def smalls(self) -> Iterator[Object]:
        """Every small object, page by page."""
        last = -1
        while True:
            rows = self._db.all(
                "SELECT n, id, size, flags, stored_s FROM small WHERE n > ?"
                " ORDER BY n LIMIT ?",
                (last, _PAGE),
            )
            for _, cid, size, flags, stored_s in rows:
                yield Object(cid, size, flags, stored_s)
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def oldest_small_cache(self, limit: int) -> list[tuple[ChunkId, int]]:
        """Small objects without flags, those stored longest ago first."""
        return self._db.all(
            "SELECT s.id, s.size FROM small s INDEXED BY small_cache"
            " WHERE s.flags = 0 ORDER BY s.n LIMIT ?",
            (limit,),
        )

    # -- large objects --------------------------------------------------------

    def put_large(self, cid: ChunkId, size: int, flags: int, now_s: int) -> None:
        """Write. An object already here gains the flags."""
        self._db.run(_LARGE, (cid, size, now_s, flags))

    def get_large(self, cid: ChunkId) -> tuple[int, int] | None:
        """(size, flags)"""
        row = self._db.one("SELECT size, flags FROM large WHERE id = ?", (cid,))
        return (row[0], row[1]) if row else None

    def delete_large(self, cid: ChunkId) -> bool:
        """Write."""
        return self._db.run("DELETE FROM large WHERE id = ?", (cid,)) > 0

    def larges(self) -> Iterator[Object]:
        """Every row of a large object, by id, page by page; stored_s is used_s."""
        last = b""
        while True:
            rows = self._db.all(
                "SELECT id, size, flags, used_s FROM large WHERE id > ?"
                " ORDER BY id LIMIT ?",
                (last, _PAGE),
            )
            for row in rows:
                yield Object(*row)
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def oldest_large_cache(self, limit: int) -> list[tuple[ChunkId, int]]:
        """Large objects without flags, those used longest ago first."""
        return self._db.all(
            "SELECT id, size FROM large WHERE flags = 0 ORDER BY used_s LIMIT ?",
            (limit,),
        )

    def after(self, cid: ChunkId, limit: int) -> list[tuple[ChunkId, int]]:
        """(id, size) of objects of both kinds with a higher id, in order."""
        return self._db.all(
            "SELECT * FROM (SELECT id, size FROM large WHERE id > ?1 ORDER BY id"
            " LIMIT ?2) UNION ALL SELECT * FROM (SELECT id, size FROM small"
            " WHERE id > ?1 ORDER BY id LIMIT ?2) ORDER BY 1 LIMIT ?2",
            (cid, limit),
        )

    def renew_large(self, cid: ChunkId, now_s: int) -> None:
        """Write: count it as used now."""
        self._db.run(
            "UPDATE large SET used_s = ?2 WHERE id = ?1 AND used_s < ?2", (cid, now_s)
        )

    def used_s(self, cid: ChunkId) -> int:
        """When a large object was last used, 0 without a row; read under the
        WriteLock."""
        row = self._db.fresh("SELECT used_s FROM large WHERE id = ?", (cid,))
        return int(row[0]) if row else 0

    def used(self, times: dict[ChunkId, int]) -> None:
        """Write: when large objects were last opened."""
        with self._db.transaction():
            for cid, used_s in times.items():
                self.renew_large(cid, used_s)

    # -- both -----------------------------------------------------------------

    def flags(self, cid: ChunkId) -> int | None:
        """The flags of an object, read under the WriteLock."""
        for table in ("large", "small"):
            row = self._db.fresh(f"SELECT flags FROM {table} WHERE id = ?", (cid,))
            if row:
                return int(row[0])
        return None

    def without(self, flag: int, cids: Sequence[ChunkId]) -> list[ChunkId]:
        """Those of these objects that are here and have not this flag."""
        marks = ",".join("?" * len(cids))
        rows = self._db.all(
            " UNION ALL ".join(
                f"SELECT id FROM {table} WHERE (flags & ?) = 0 AND id IN ({marks})"
                for table in ("small", "large")
            ),
            (flag, *cids, flag, *cids),
        )
        return [row[0] for row in rows]

    def size_of(self, cid: ChunkId) -> int:
        """The size of an object, 0 if it is not here; read under the WriteLock."""
        for table in ("large", "small"):
            row = self._db.fresh(f"SELECT size FROM {table} WHERE id = ?", (cid,))
            if row:
                return int(row[0])
        return 0

    def set_flags(self, cid: ChunkId, set_: int, clear: int, now_s: int) -> None:
        """Write. Flags that are set also mark a small object as new."""
        if set_:
            self._db.run(_MOVE, (cid, now_s, set_, RENEW_AFTER_S))
        for table in ("small", "large"):
            self._db.run(
                f"UPDATE {table} SET flags = (flags | ?2) & ~?3 WHERE id = ?1"
                " AND flags <> (flags | ?2) & ~?3",
                (cid, set_, clear),
            )

    def renew_small(self, cid: ChunkId, now_s: int) -> bool:
        """Write: mark as new."""
        sql = "UPDATE small SET stored_s = ?2 WHERE id = ?1"
        return self._db.run(sql, (cid, now_s)) > 0

    def pushed_larges(self) -> Iterator[tuple[ChunkId, int]]:
        for row in self.larges():
            if row.flags & PUSHED:
                yield row.cid, row.size

    def pushed_smalls(self) -> Iterator[tuple[ChunkId, int]]:
        """(id, size) of the pushed ones, skipping what is known to have none."""
        last = int(self.state("pushed_n") or 0)
        while True:
            rows = self._db.all(
                "SELECT n, id, size, flags & ? FROM small WHERE n > ?"
                " ORDER BY n LIMIT ?",
                (PUSHED, last, _PAGE),
            )
            for _, cid, size, pushed in rows:
                if pushed:
                    yield cid, size
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def last_before_pushed(self) -> tuple[int, ChunkId] | None:
        """The (n, id) up to which no small object is pushed, if it has advanced."""
        known = int(self.state("pushed_n") or 0)
        row = self._db.one(
            "SELECT n, id FROM small WHERE n > ?1 AND n < (SELECT coalesce(min(n),"
            " 1 << 62) FROM small WHERE n > ?1 AND flags & ?2)"
            " ORDER BY n DESC LIMIT 1",
            (known, PUSHED),
        )
        return (row[0], row[1]) if row else None

    def skip_pushed_up_to(self, n: int, cid: ChunkId) -> None:
        """Write. Nothing above changes this: a row becomes pushed only by moving to
        the end. No effect when the row is not there any more."""
        self._db.run(
            "INSERT OR REPLACE INTO state SELECT 'pushed_n', n FROM small"
            " WHERE n = ? AND id = ?",
            (n, cid),
        )

    # -- accounting -----------------------------------------------------------

    def small_count(self) -> int:
        row = self._db.one("SELECT count(*) FROM small")
        return int(row[0]) if row else 0

    def large_totals(self) -> tuple[int, int, int]:
        """(objects, bytes, pushed objects)"""
        row = self._db.one(
            "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(flags & ?), 0)"
            " FROM large",
            (PUSHED,),
        )
        return (row[0], row[1], row[2]) if row else (0, 0, 0)

    def cache_bytes(self) -> int:
        row = self._db.one(
            "SELECT (SELECT coalesce(sum(size), 0) FROM large WHERE flags = 0) +"
            " (SELECT coalesce(sum(size), 0) FROM small INDEXED BY small_cache"
            " WHERE flags = 0)"
        )
        return int(row[0]) if row else 0

    def state(self, key: str) -> float | None:
        row = self._db.one("SELECT value FROM state WHERE key = ?", (key,))
        return row[0] if row else None

    def set_state(self, key: str, value: float | None) -> None:
        """Write; None removes the key."""
        if value is None:
            self._db.run("DELETE FROM state WHERE key = ?", (key,))
        else:
            self._db.run("INSERT OR REPLACE INTO state VALUES(?, ?)", (key, value))
