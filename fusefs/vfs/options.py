"""The settings of a vfs. Every limit has a unit in its name and a reason here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from fusefs.model.manifest import DEFAULT_CHUNK_LOG2

Sync = Literal["close", "off", "all"]


class VfsOptions(msgspec.Struct, frozen=True, kw_only=True):
    sync: Sync = "close"
    """When to wait for near peers: at flush and fsync of a written file, never, or
    after every change (for programs that talk over the tree)."""
    barrier_s: float = 0.020
    """Longest wait for the peers of one change."""
    locks: Literal["cluster", "local"] = "cluster"
    """Whether locks exclude processes of other nodes, too."""
    lock_failure: Literal["nolck", "again", "local"] = "nolck"
    """The errno when the node that decides about a lock cannot be reached."""
    exclusive: Literal["cluster", "local"] = "cluster"
    """Whether O_EXCL, mkdir and the like exclude near nodes, too."""
    acl: bool = False
    """The kernel checks access control lists, and leaves the umask to us."""
    read_only: bool = False
    """Refuse every change with EROFS."""
    kernel_refs: bool = True
    """The binding calls `forget`: an unlinked inode lives until then. Without it
    (path bindings) it lives until its last handle is released."""
    dirty_bytes: int = 64 << 20
    """Buffers of unpublished writes over all files. Beyond it chunks are stored."""
    writeback_s: float = 5.0
    """Unpublished writes of a file that stays open are published after this."""
    fetch_timeout_s: float = 30.0
    """Longest wait for the bytes of one read: below what a user takes for a hang."""
    read_ahead_chunks: int = 32
    """Largest window asked ahead of a sequential reader (32 MiB)."""
    chunk_log2: int = DEFAULT_CHUNK_LOG2
    """Chunk size of new files."""
    append_chunk_log2: int = 15
    """Chunk size of files that begin with an append, logs: each append stores the last
    chunk anew. Below 32 KiB a chunk is no file of its own."""
    fine_chunk_log2: int = 16
    """Chunk size of files that are changed in place, here and there (`recutting`):
    such a chunk still travels with its transaction."""
    body_bytes: int = 64 << 10
    """Chunks up to this size travel with their transaction."""
    cached_inodes: int = 16_384
    """Attributes kept (twice this at most, ~0.5 KiB each)."""
    cached_entries: int = 32_768
    """Names kept, absent ones included (twice this at most, ~0.2 KiB each)."""
    unfinished: Path | None = None
    """Where to mark files with unpublished writes for the next worker."""
    journal: Path | None = None
    """Where to keep unpublished writes for the next worker."""
    unnamed: Path | None = None
    """Where to keep what is known of files without a name that are in use."""
    same_mount: bool = True
    """What an earlier worker left is of this mount: programs may have files open that
    lost their names. Otherwise those are void."""
    link_max: int = 65_000
    """Hard links of one file (as ext4): what a conflict rule may have to list."""
