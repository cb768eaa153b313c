"""Proves the invariants of a store: registers, derived tree, manifests, objects.

Reads everything and changes nothing unless asked to repair. Whoever calls holds the
store's lock, so that no node runs meanwhile. Used by `dfs fsck` and by tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from fusefs.errors import ChunkMissing, Corrupt
from fusefs.model import manifest
from fusefs.model.ids import ChunkId
from fusefs.namespace.namespace import Namespace
from fusefs.plain import plain
from fusefs.store import salvage
from fusefs.store.store import Store

Progress = Callable[[str, int], None]
"""Told the name of the phase and how many things it has looked at."""


class Finding(msgspec.Struct, frozen=True):
    """One broken invariant. `kind` is a word, stable for scripts."""

    kind: str
    subject: str
    detail: str
    repaired: bool = False


class Summary(msgspec.Struct, frozen=True):
    """What was looked at. `absent` chunks are referenced here but kept by others; both
    numbers of chunks are unknown while small.db is damaged. `members` is unknown where
    the register of one is damaged."""

    inodes: int
    bytes: int
    chunks: int | None
    absent: int | None
    members: int | None
    digest: str


def check(
    store_dir: Path,
    *,
    repair: bool,
    contents: bool,
    found: Callable[[Finding], None],
    progress: Progress,
) -> Summary:
    """Calls `found` for every problem.

    Args:
        contents: also hash every object; without it only those a power cut may
            have damaged are.
    """
    namespace = Namespace.open(store_dir)
    try:
        progress("namespace", 0)
        namespace.check_database(quick=not contents)
        for finding in _namespace(namespace, repair):
            found(finding)
        progress("index of objects", 0)
        damaged = salvage.damage(store_dir / "small.db", quick=not contents)
        if damaged and not repair:
            found(Finding("database", "small.db", f"{damaged}; --repair makes it anew"))
            return _summary(namespace, None, None)
        if damaged:
            small, large = salvage.rebuild(store_dir)
            detail = (
                f"{damaged}; made anew with the {small} small and {large} large objects"
                f" that can be read; the old one is {salvage.DAMAGED}"
            )
            found(Finding("database", "small.db", detail, True))
        with closing(Store.open(store_dir, looks=True)) as store:
            lost = bool(damaged)
            for problem in store.check(
                repair, contents=contents, progress=lambda n: progress("objects", n)
            ):
                lost |= problem.repaired
                found(
                    Finding(
                        problem.kind, problem.subject, problem.detail, problem.repaired
                    )
                )
            if lost:
                store.note_lost()
            absent = _references(namespace, store, found, progress)
            return _summary(namespace, store, absent)
    finally:
        namespace.close()


def _namespace(namespace: Namespace, repair: bool) -> Iterator[Finding]:
    """Registers and derived tables; the latter can be made anew from the former."""
    problems = namespace.problems()
    if problems and repair:
        namespace.repair()
    left = set(namespace.problems()) if problems and repair else set(problems)
    for problem in problems:
        kind = "register" if problem.startswith("register") else "tree"
        subject, _, detail = problem.partition(": ")
        yield Finding(kind, subject, detail, problem not in left)


def _references(
    namespace: Namespace,
    store: Store,
    found: Callable[[Finding], None],
    progress: Progress,
) -> int:
    """Every chunk of every version of every file is here, or may be elsewhere.

    Returns how many are not here. While this node is alone in its cluster nobody
    else can have them: then each file with one is a problem.
    """
    members = _members(namespace)
    alone = members is not None and members <= 1
    absent = 0
    nowhere: dict[bytes, tuple[int, int]] = {}
    for number, (root, size, chunk_log2) in enumerate(_roots(namespace, found), 1):
        missing, broken = _count_missing(store, root, size, chunk_log2)
        absent += missing
        if broken:
            subject = f"version {root.hex()} of {size} bytes"
            found(Finding("manifest", subject, broken))
        elif missing and alone:
            nowhere[root] = size, missing
        if number % 256 == 0:
            progress("files", number)
    for finding in _lost(namespace, nowhere):
        found(finding)
    return absent


def _lost(
    namespace: Namespace, nowhere: dict[bytes, tuple[int, int]]
) -> Iterator[Finding]:
    """Given (size, chunks that are nowhere) by root: the files, by name where they have
    one."""
    names = namespace.shown_as(nowhere)
    for root, (size, missing) in nowhere.items():
        version = f"version {root.hex()} of {size} bytes"
        detail = f"{missing} chunks are nowhere"
        for path in names.get(root, ()):
            subject = plain("/" + path.decode(errors="backslashreplace"))
            yield Finding("missing", subject, f"{detail}, of its {version}")
        if root not in names:
            yield Finding("missing", version, detail)


def _roots(
    namespace: Namespace, found: Callable[[Finding], None]
) -> Iterator[tuple[bytes, int, int]]:
    """Those of `live_roots` that are known."""
    damaged = 0
    for root in namespace.live_roots():
        if root is None:
            damaged += 1
        else:
            yield root
    if damaged:
        detail = f"not all were looked at: {damaged} content registers are damaged"
        found(Finding("manifest", "versions", detail))


def _members(namespace: Namespace) -> int | None:
    """How many there are, without those that were forgotten, if every register that
    says so can be read."""
    try:
        return sum(not member.forgotten for member in namespace.members().values())
    except (ValueError, msgspec.DecodeError):
        return None


def _count_missing(
    store: Store, root: bytes, size: int, chunk_log2: int
) -> tuple[int, str]:
    """(chunks not here, what is wrong with the manifest itself)."""
    count = manifest.chunk_count(size, chunk_log2)
    chunks: set[ChunkId] = set()
    try:
        for index, chunk in manifest.present(root, count, store.get):
            if index >= count:
                return 0, f"has a chunk {index} beyond its size"
            chunks.add(chunk)
    except ChunkMissing:
        return 1, ""
    except (Corrupt, ValueError, IndexError) as error:
        return 0, f"cannot be read: {error}"
    return len(store.missing(chunks)), ""


def _summary(namespace: Namespace, store: Store | None, absent: int | None) -> Summary:
    totals = namespace.totals()
    return Summary(
        inodes=totals.inodes,
        bytes=totals.shown_bytes,
        chunks=store.statistics().chunks if store else None,
        absent=absent,
        members=_members(namespace),
        digest=namespace.digest().hex(),
    )
