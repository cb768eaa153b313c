"""Everything that can be wrong before a mount is tried, each with its own sentence."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
import stat
import time
from pathlib import Path

from fusefs.config import Config
from fusefs.mountpoint import nodes, table, unmounting
from fusefs.mountpoint.exits import MOUNT_FAILURE, MOUNT_USAGE, CommandError

FUSE_DEVICE = "/dev/fuse"
ORPHAN_S = 10.0
"""For a worker whose supervisor was killed to end."""
MAX_SOCKET_PATH_BYTES = 107
"""unix(7)"""
FORMAT = "dfs store 1\n"
"""Written last: a store with it is whole."""


def check_all(config: Config) -> None:
    """Returns when nothing known is in the way of mounting.

    A dead mount of ours on the mountpoint is cleared away on the way.

    Raises:
        CommandError: the first obstacle, and what to do about it.
    """
    if config.acl and config.binding != "kernel":
        raise usage("acl needs the kernel's own checks: not with binding=fusepy")
    check_device()
    check_mountpoint(config)
    check_store(config)
    check_port(config)


def check_device() -> None:
    """/dev/fuse is there and may be opened."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise _failure(
            f"{FUSE_DEVICE} does not exist; load the kernel's module with "
            "'modprobe fuse', or give this container the device (--device /dev/fuse)"
        ) from None
    except OSError as error:
        raise _failure(
            f"{FUSE_DEVICE} cannot be opened ({error.strerror}); "
            "ask for read and write permission on it"
        ) from None
    if os.geteuid() != 0 and fusermount() is None:
        raise _failure(
            "only root can mount without fusermount3; install it with "
            "'apt-get install fuse3'"
        )


def fusermount() -> str | None:
    """The program that mounts and unmounts for users who are not root."""
    return shutil.which("fusermount3") or shutil.which("fusermount")


def check_mountpoint(config: Config) -> None:
    """The mountpoint is an empty directory that carries no mount of ours."""
    where = config.mountpoint
    there = table.find(where)
    if there is not None and there.is_ours:
        _clear_or_refuse(where, config.store)
    status = _stat(where)
    if not stat.S_ISDIR(status.st_mode):
        raise _failure(f"mountpoint {where} is not a directory")
    # Root may mount where nobody can write, as on a read-only system.
    if os.geteuid() != 0 and not os.access(where, os.R_OK | os.W_OK | os.X_OK):
        raise _failure(
            f"mountpoint {where} is not yours; choose a directory you may write to"
        )
    if not config.allow_nonempty and any(os.scandir(where)):
        raise _failure(
            f"mountpoint {where} is not empty; choose an empty directory, or hide "
            "what is in it with -o nonempty"
        )


def _stat(where: str) -> os.stat_result:
    try:
        return os.stat(where)
    except FileNotFoundError:
        raise _failure(
            f"mountpoint {where} does not exist; "
            f"make it with: mkdir -p {shlex.quote(where)}"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            there = table.find(where)
            kind = there.fs_type if there else "FUSE file system"
            raise _failure(
                f"{where} is the dead mount of a {kind}; "
                f"remove it with: umount -l {shlex.quote(where)}"
            ) from None
        raise _failure(f"mountpoint {where}: {error.strerror}") from None


def _clear_or_refuse(where: str, store: str) -> None:
    if unmounting.is_dead(where) or _is_ending(where, store):
        unmounting.detach(where)
        if (again := table.find(where)) is not None and again.is_ours:
            _clear_or_refuse(where, store)
        return
    if nodes.at_mountpoint(where) is None and unmounting.answer(where) is None:
        raise _failure(
            f"{where} is a dfs mount that does not answer, and its node is gone; "
            f"end it with: dfs umount -f {shlex.quote(where)}"
        )
    raise _failure(
        f"{where} is already a dfs mount; "
        f"unmount it first with: dfs umount {shlex.quote(where)}"
    )


def _is_ending(where: str, store: str) -> bool:
    """Whether the worker of a killed supervisor, which ends, too, has ended now."""
    until_s = time.monotonic() + ORPHAN_S
    while nodes.at_mountpoint(where) is None and time.monotonic() < until_s:
        time.sleep(0.1)
        if unmounting.is_dead(where) or _abort_remains(where, store):
            return True
    return False


def _abort_remains(where: str, store: str) -> bool:
    """Ends what the kernel holds of a worker that was killed with its supervisor. It
    waits for a program, which waits for an answer that nobody gives."""
    there = table.find(where)
    left = nodes.remains(store, there.connection) if there is not None else None
    if there is None or left is None or unmounting.answer(where) is not None:
        return False
    ended = unmounting.abort(there.connection)
    if ended and left.worker:  # it has the lock on the store, too
        nodes.wait_gone(left.worker, ORPHAN_S)
    return ended


def check_store(config: Config) -> None:
    """The store is on a disk, and can be made; it and the mountpoint, if there is one,
    do not contain each other."""
    store = os.path.realpath(config.store)
    most = MAX_SOCKET_PATH_BYTES - len("/run/node.sock")
    if len(os.fsencode(config.store)) > most:
        raise _failure(
            f"the path of store {config.store} is longer than {most} bytes, so that no "
            "socket can be in it; give a shorter one with --store"
        )
    if where := config.mountpoint:
        _check_apart(store, where)
        _check_way(config.store, where)
    if (there := table.around(store)) is not None and there.is_ours:
        raise _failure(
            f"store {store} is in a dfs mount, whose members would all see its secret; "
            "give one on a disk with --store"
        )
    if os.path.exists(store) and not os.path.isdir(store):
        raise _failure(f"store {store} is not a directory")
    try:
        if Path(store).is_dir() and not (Path(store) / "format").exists():
            _check_new_store(store)
        elif other := other_format(Path(store)):
            raise _failure(other)
    except PermissionError:
        raise _failure(
            f"store {store} belongs to another user; give one of yours with --store"
        ) from None


def other_format(store: Path) -> str:
    """The sentence for a user whose store this program does not know; else empty."""
    file = store / "format"
    try:
        found = file.read_text(errors="backslashreplace")
    except FileNotFoundError:
        return ""
    except IsADirectoryError:
        found = "a directory"
    if found.strip() in (FORMAT.strip(), ""):  # a power cut may have emptied it
        return ""
    if not found.startswith(FORMAT.rstrip("1\n")):
        return f"{file} is damaged; remove it, and the next `dfs mount` makes it anew"
    return (
        f"store {store} is of another version of dfs: its format is {found.strip()!r}, "
        f"this program knows {FORMAT.strip()!r}"
    )


def _check_apart(store: str, where: str) -> None:
    if _contains(where, store):
        raise _failure(
            f"store {store} is below the mountpoint {where}, which would hide it; "
            "give a store elsewhere with --store"
        )
    if _contains(store, where):
        raise _failure(
            f"mountpoint {where} is below the store {store}; mount elsewhere"
        )


def _check_way(store: str, where: str) -> None:
    """The store may be elsewhere, and reached by a link in the mountpoint."""
    if any(os.path.realpath(above) == where for above in Path(store).parents):
        raise _failure(
            f"the path of store {store} leads through the mountpoint {where}; name "
            "another way with --store"
        )


def _check_new_store(store: str) -> None:
    ours = ("run", "lock", "identity", "aside", "held", "reserve", "pins")
    of_disk = "lost+found"  # the root of ext4 has one
    strangers = [name for name in os.listdir(store) if name not in (*ours, of_disk)]
    known = ("meta.db", "small.db", "objects", "write.lock")
    strangers = [n for n in strangers if not n.startswith(known)]
    if strangers:
        raise _failure(
            f"store {store} has other files in it ({strangers[0]!r}); "
            "choose an empty or new directory with --store"
        )


def _contains(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def check_port(config: Config) -> None:
    """The port can be listened on now."""
    if not config.port:
        return
    try:
        for address in socket.getaddrinfo(
            config.listen or "0.0.0.0", config.port, type=socket.SOCK_STREAM
        ):
            _check_address(address[0], address[4])
    except OSError as error:
        raise _failure(_port_sentence(config, error)) from None


def _check_address(family: int, where: tuple[object, ...]) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(where)
        probe.listen(1)


def _port_sentence(config: Config, error: OSError) -> str:
    where = f"{config.listen or 'all addresses'} port {config.port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{where} is in use by another program{_own_node(config)}; give another "
            "port with --port N, or --port 0 for any free one"
        )
    if error.errno == errno.EACCES:
        return f"{where} may not be used by this user; give a port above 1023"
    return f"cannot listen on {where}: {error.strerror}; see --listen and --port"


def _own_node(config: Config) -> str:
    """Said of a node of this store that has not ended yet, as after umount(8)."""
    pids = [n.pid for n in nodes.on_store(config.store)]
    return f": this store's node (process {pids[0]}) is still there" if pids else ""


def _failure(message: str) -> CommandError:
    return CommandError(message, MOUNT_FAILURE)


def usage(message: str) -> CommandError:
    """A mount request that makes no sense as given."""
    return CommandError(message, MOUNT_USAGE)
