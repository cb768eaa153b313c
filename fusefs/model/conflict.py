"""Conflicts as pure functions: names of losing versions, and what is none at all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from fusefs.model.appends import plan
from fusefs.model.context import context_of, dots_of
from fusefs.model.hlc import Hlc, physical_ms
from fusefs.model.ids import NAME_MAX, Dot
from fusefs.model.records import Attrs, Content
from fusefs.model.register import Sibling
from fusefs.model.vector import dominates

_DOUBLE = (b".gz", b".bz2", b".xz", b".zst", b".lz", b".lzma", b".z", b".gpg", b".enc")
_MARK = b".conflict-"
LATER_CHOICE = b"Z-"
"""In every name that `conflict_name` makes with `nth`: the end of its time, and on."""


def split_extension(name: bytes) -> tuple[bytes, bytes]:
    """(stem, extension): `a.tar.gz` gives (a, .tar.gz), `.profile` keeps its dot."""
    dot = name.rfind(b".")
    if dot <= 0:
        return name, b""
    stem, ext = name[:dot], name[dot:]
    inner = stem.rfind(b".")
    if ext.lower() in _DOUBLE and inner > 0 and len(stem) - inner <= 5:
        return stem[:inner], stem[inner:] + ext
    return stem, ext


def conflict_name(name: bytes, node_name: str, stamp: Hlc, nth: int = 0) -> bytes:
    """The name under which a losing version of `name` is shown beside it.

    A version of a conflict file does not cascade: its old mark is replaced.
    """
    stem, ext = split_extension(name)
    mark = stem.find(_MARK)
    if mark > 0:
        stem = stem[:mark]
    when = datetime.fromtimestamp(physical_ms(stamp) / 1000, UTC)
    text = when.strftime("%Y%m%dT%H%M%S") + f".{physical_ms(stamp) % 1000:03d}Z"
    safe = "".join(c if c.isalnum() or c in "_-" else "_" for c in node_name) or "node"
    tail = _MARK + _cut(safe.encode(), 48) + b"-" + text.encode()
    if nth:
        tail += b"-%d" % (nth + 1)
    ext = _cut(ext, 64)
    return _cut(stem, NAME_MAX - len(tail) - len(ext)) + tail + ext


def _cut(text: bytes, most: int) -> bytes:
    """Not inside a character, where it is UTF-8."""
    end = min(len(text), most)
    for at in range(end, max(0, end - 4), -1):
        if at == len(text) or text[at] & 0xC0 != 0x80:
            return text[:at]
    return text[:end]


def merge_attrs(siblings: Sequence[tuple[Sibling, Attrs]]) -> Attrs:
    """One value from concurrent ones, field by field; never a conflict."""
    ranked = sorted(siblings, key=lambda s: s[0].rank)
    latest = ranked[-1][1]
    if len(ranked) == 1:
        return latest
    mode = max((a.mode_at, s.rank, a.mode) for s, a in ranked)
    owner = max((a.owner_at, s.rank, a.uid, a.gid) for s, a in ranked)
    return Attrs(
        mode=mode[2],
        uid=owner[2],
        gid=owner[3],
        ctime_ns=max(a.ctime_ns for _, a in ranked),
        mode_at=mode[0],
        owner_at=owner[0],
        btime_ns=min(a.btime_ns for _, a in ranked),
        atime_ns=latest.atime_ns,
        rdev=latest.rdev,
        target=latest.target,
    )


Version = tuple[Sibling, Content]
Seen = tuple[Dot, ...]


def split_versions(versions: Sequence[Version]) -> tuple[Version, list[Version]]:
    """(what the file shows, the losing versions that are real conflicts).

    No conflict: the same data; data whose version another sibling had seen (only
    its times changed here). The shown times are those of the latest sibling that
    has the shown data.
    """
    ranked = sorted(versions, key=lambda v: v[0].rank, reverse=True)
    if len(ranked) == 1:
        return ranked[0], []
    shown: Version | None = None
    losers: list[Version] = []
    for i, (sibling, content) in enumerate(ranked):
        mine = context_of(content.seen)
        others = (context_of(c.seen) for j, (_, c) in enumerate(ranked) if j != i)
        if any(dominates(other, mine) and other != mine for other in others):
            continue
        if shown is None:
            shown = (sibling, content)
        elif not _same_data(content, shown[1]) and not any(
            _same_data(content, c) for _, c in losers
        ):
            losers.append((sibling, content))
    return shown or ranked[0], losers


def _same_data(a: Content, b: Content) -> bool:
    return (a.size, a.root) == (b.size, b.root)


def all_appends(versions: Sequence[Version]) -> bool:
    """True when the versions merge as appends to one base (appends.py)."""
    return plan([c for _, c in versions]) is not None


def merged_seen(contents: Sequence[Content], *more: Dot) -> Seen:
    """The data version that includes all of these, and what these transactions did."""
    dots = [dot for content in contents for dot in content.seen]
    return tuple(dots_of(context_of([*dots, *more])))


def unseen_by_deleters(content: Content, deleters: Sequence[Seen]) -> bool:
    """True when no deleter had seen this data: a delete must not swallow it."""
    mine = context_of(content.seen)
    return not any(dominates(context_of(d), mine) for d in deleters)
