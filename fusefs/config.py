"""The settings of a node, as every process of it is started with them.

The CLI merges them from their sources (fusefs.options); the supervisor writes them
to STORE/run/config.json, and its children read them from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a node is started with, after all sources were merged."""

    store: str = ""
    """Absolute directory of identity, namespace and chunks."""
    mountpoint: str = ""
    """Absolute directory; empty for a node without a mount."""
    port: int = 4000
    """TCP; 0 is any free one (the one taken is in run/node.json)."""
    listen: str = ""
    """Address to listen on; empty is all."""
    name: str = ""
    """What people call this node; by default the name its store was made with, which
    is the host's unless one was given."""
    join: str = ""
    """A join token; used only while the store has no identity yet."""
    advertise: str = ""
    """host:port others should dial, when it is not what we listen on."""
    discovery: bool = True
    """Look for peers by multicast DNS on the local network."""
    binding: Literal["kernel", "fusepy"] = "kernel"
    sync: Literal["close", "off", "all"] = "close"
    """When an operation waits for near peers."""
    barrier_ms: int = 20
    """Longest wait for near peers per close."""
    locks: Literal["cluster", "local"] = "cluster"
    """Whether flock and fcntl exclude other nodes."""
    lock_failure: Literal["nolck", "again", "local"] = "nolck"
    """The errno when a lock's owner cannot be reached; local: after a while the lock is
    granted, and excludes programs of this machine."""
    exclusive: Literal["cluster", "local"] = "cluster"
    """Whether O_EXCL, mkdir, link and the like exclude near nodes."""
    acl: bool = False
    """POSIX access control lists, checked by the kernel."""
    replicas: int = 3
    """Copies the cluster keeps; only the first mount of a cluster sets it."""
    mass_delete: int = 30
    """Percent of the tree; when other nodes remove more than this within a minute,
    and at least 100 entries, it waits for `dfs apply` or `dfs reject`. 0: never."""
    mass_delete_age_s: float = 600.0
    """Entries younger than this are not counted: nobody mourns a tree just unpacked."""
    compress: Literal["no", "zstd"] = "no"
    """How large chunks are kept on this disk from now on."""
    cache_size: int = 0
    """Bytes of chunks kept that this node is not responsible for; 0 is no quota."""
    min_free: int = 1 << 30
    """Bytes left free on the store's disk; below it writes get ENOSPC."""
    fetch_timeout_s: float = 30.0
    """Longest a read waits for bytes from peers."""
    dirty_size: int = 64 << 20
    """Bytes of written but not yet stored data in memory."""
    watchdog_s: float = 60.0
    """A mount that answers nothing for so long is aborted and restarted; 0: never."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    mount_flags: tuple[str, ...] = ()
    """Words of `-o` that the kernel or fusermount understand: ro, nosuid, ..."""
    fsname: str = ""
    """The source shown by `mount`; `dfs@NAME` by default."""
    allow_nonempty: bool = False
    foreground: bool = False
    power_cut: bool = False
    """Found by the supervisor: the machine went down while the store was in use."""

    @property
    def run_dir(self) -> Path:
        """Sockets, pids and logs of the running node."""
        return Path(self.store) / "run"

    @property
    def read_only(self) -> bool:
        return "ro" in self.mount_flags


def encode(config: Config) -> bytes:
    """The JSON that STORE/run/config.json holds."""
    return msgspec.json.format(msgspec.json.encode(config), indent=1)


def decode(data: bytes) -> Config:
    """The inverse; fields of a newer version are ignored."""
    return msgspec.json.decode(data, type=Config)


def load(path: Path) -> Config:
    """The settings a process was started with."""
    return decode(path.read_bytes())
