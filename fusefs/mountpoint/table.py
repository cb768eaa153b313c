"""The kernel's mount table, as this process sees it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fusefs.errors import ConfigError

FS_TYPE = "fuse.dfs"
"""What our mounts are called in the table (subtype `dfs`)."""
PROCESSES = Path("/proc")
MOUNTINFO = PROCESSES / "self/mountinfo"
_OCTAL = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo (see proc(5))."""

    where: bytes
    device: str
    """major:minor; the minor number names the FUSE connection in /sys."""
    fs_type: str
    source: str
    user: int
    """Who made it, as the kernel saw; -1 where it does not say (it does for FUSE)."""
    root: bytes = b"/"
    """What of the file system is mounted: a bind mount may have a part of it."""
    number: int = 0
    parent: int = 0
    """The number of the mount it is on."""
    options: bytes = b""
    """Of the file system, as they stand there."""

    @property
    def is_ours(self) -> bool:
        return self.fs_type == FS_TYPE

    @property
    def connection(self) -> str:
        """The directory of the connection below /sys/fs/fuse/connections."""
        return self.device.partition(":")[2]


def parse(text: bytes) -> list[Mount]:
    """All mounts, in the order they were made (a later one hides an earlier one)."""
    mounts = []
    for line in filter(None, text.split(b"\n")):  # a name may hold a \r
        fields = line.split(b" ")
        dash = fields.index(b"-", 6)
        mounts.append(
            Mount(
                _unescape(fields[4]),
                fields[2].decode(),
                fields[dash + 1].decode(),
                _unescape(fields[dash + 2]).decode(errors="replace"),
                _user(fields[dash + 3]),
                _unescape(fields[3]),
                int(fields[0]),
                int(fields[1]),
                fields[dash + 3],
            )
        )
    return mounts


def _user(options: bytes) -> int:
    found = re.search(rb"(?:^|,)user_id=(\d+)", options)
    return int(found[1]) if found else -1


def _unescape(field: bytes) -> bytes:
    return _OCTAL.sub(lambda m: bytes([int(m.group(1), 8)]), field)


def find(directory: str) -> Mount | None:
    """The topmost mount exactly at this directory, without touching it."""
    where = os.fsencode(directory)
    here = [m for m in parse(MOUNTINFO.read_bytes()) if m.where == where]
    return here[-1] if here else None


def of_connection(connection: str) -> list[Mount]:
    """Our mounts with this connection, wherever they are now: renaming a directory
    above a mountpoint moves the mount. The first is the node's own if that is still
    there; the others are bind mounts of it."""
    mounts = parse(MOUNTINFO.read_bytes())
    return [m for m in mounts if m.is_ours and m.connection == connection]


def below(directory: str) -> list[Mount]:
    """What is mounted on directories within this one."""
    top = os.fsencode(directory).rstrip(b"/") + b"/"
    return [m for m in parse(MOUNTINFO.read_bytes()) if m.where.startswith(top)]


def is_built_upon(connection: str) -> bool:
    """Whether something is mounted on a directory of this connection, or an overlay
    shows one: when the kernel drops the directory's name, it unmounts the first, and
    the second is stale for good. In containers, too: in each mount namespace of a
    process that we may look at."""
    return any(_built_upon(text, connection) for text in _all_tables())


def _all_tables() -> Iterator[bytes]:
    """Of every mount namespace, ours first."""
    seen: set[str] = set()
    for process in (MOUNTINFO.parent, *PROCESSES.glob("[0-9]*")):
        try:
            namespace = os.readlink(process / "ns/mnt")
            if namespace not in seen:
                seen.add(namespace)
                yield (process / "mountinfo").read_bytes()
        except OSError:  # it ended, or is another user's
            continue


def _built_upon(text: bytes, connection: str) -> bool:
    mounts = parse(text)
    ours = {m.number: m.where for m in mounts if m.device == f"0:{connection}"}
    tops = tuple(where.rstrip(b"/") + b"/" for where in ours.values())
    return any(
        mount.parent in ours
        or any((layer + b"/").startswith(tops) for layer in _lower_layers(mount))
        for mount in mounts
    )


def _lower_layers(mount: Mount) -> list[bytes]:
    """Directories it was given to show, if it is an overlay."""
    if mount.fs_type != "overlay":
        return []
    words = [word.partition(b"=") for word in mount.options.split(b",")]
    return [
        _unescape(layer)
        for key, _, layers in words
        if key in (b"lowerdir", b"lowerdir+", b"datadir+")
        for layer in layers.split(b":")
    ]


def around(path: str) -> Mount | None:
    """The mount that a path, given without links, is in."""
    inside = os.fsencode(path)
    mounts = parse(MOUNTINFO.read_bytes())
    here = [m for m in mounts if inside == m.where or inside.startswith(_below(m))]
    return max(here, key=lambda m: len(m.where), default=None)


def _below(mount: Mount) -> bytes:
    return mount.where.rstrip(b"/") + b"/"


def canonical(directory: str) -> str:
    """The absolute path with links of the parents resolved.

    The last component is not touched, because a dead or stuck mount may be there;
    if it is a symbolic link, that is resolved too.

    Raises:
        ConfigError: it is empty, as an unset variable of a script.
    """
    if not directory:
        raise ConfigError("the directory is an empty word; give its path")
    path = os.path.abspath(directory)
    if find(path) is None and os.path.islink(path):
        return os.path.realpath(path)
    parent, name = os.path.split(path)
    return os.path.join(os.path.realpath(parent), name) if name else "/"
