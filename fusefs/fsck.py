"""Proves the invariants of a store: registers, derived tree, manifests, objects.

Reads everything and changes nothing unless asked to repair. Whoever calls holds the
store's lock, so that no node runs meanwhile. Used by `dfs fsck` and by tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from fusefs.errors import ChunkMissing, Corrupt
from fusefs.model import manifest
from fusefs.model.ids import ChunkId
from fusefs.namespace.namespace import Namespace
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
    """What was looked at. `absent` chunks are referenced here but kept by others;
    `members` is unknown where the register of one is damaged."""

    inodes: int
    bytes: int
    chunks: int
    absent: int
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
    store = Store.open(store_dir)
    try:
        progress("namespace", 0)
        for finding in _namespace(namespace, repair):
            found(finding)
        for problem in store.check(
            repair, contents=contents, progress=lambda n: progress("objects", n)
        ):
            found(
                Finding(problem.kind, problem.subject, problem.detail, problem.repaired)
            )
        absent = _references(namespace, store, found, progress)
        return _summary(namespace, store, absent)
    finally:
        store.close()
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
    for number, (root, size, chunk_log2) in enumerate(_roots(namespace, found), 1):
        missing, broken = _count_missing(store, root, size, chunk_log2)
        absent += missing
        subject = f"version {root.hex()} of {size} bytes"
        if broken:
            found(Finding("manifest", subject, broken))
        elif missing and alone:
            found(Finding("missing", subject, f"{missing} chunks are nowhere"))
        if number % 256 == 0:
            progress("files", number)
    return absent


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
    """How many there are, if every register that says so can be read."""
    try:
        return len(namespace.members())
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


def _summary(namespace: Namespace, store: Store, absent: int) -> Summary:
    totals = namespace.totals()
    return Summary(
        inodes=totals.inodes,
        bytes=totals.shown_bytes,
        chunks=store.statistics().chunks,
        absent=absent,
        members=_members(namespace),
        digest=namespace.digest().hex(),
    )
