"""The /dev/fuse descriptor that outlives a worker (kernel binding)."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager

from fusefs.config import Config
from fusefs.mountpoint import unmounting
from fusefs.mountpoint.exits import MOUNT_FAILURE, CommandError
from fusefs.supervisor import lock


class MountedDevice:
    """A mount and its descriptor. The number of `descriptor` never changes."""

    def __init__(self, config: Config) -> None:
        self._config = config
        with _one_at_a_time(config.mountpoint):
            if unmounting.is_mounted(config.mountpoint):  # since the command looked
                raise CommandError(
                    f"another node has just been mounted on {config.mountpoint}",
                    MOUNT_FAILURE,
                )
            self.descriptor = mount(config)

    def renew(self) -> None:
        """Mounts again after the old connection was aborted."""
        fresh = mount(self._config)
        os.dup2(fresh, self.descriptor, inheritable=False)
        os.close(fresh)

    def is_connected(self) -> bool:
        """Whether it is mounted anywhere: the kernel ends a connection with the last
        mount of it."""
        poller = select.poll()
        poller.register(self.descriptor, 0)
        return not poller.poll(0)

    def close(self) -> None:
        """Lets go; the kernel ends the connection when no worker has it either."""
        os.close(self.descriptor)


@contextmanager
def _one_at_a_time(where: str) -> Iterator[None]:
    """Keeps another node from mounting there meanwhile, by a lock on the directory
    that holds the mountpoint. Where that cannot be had in time, we do without."""
    try:
        holder = os.open(os.path.dirname(where), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        lock.try_lock(holder)
        yield
    finally:
        os.close(holder)


def mount(config: Config) -> int:
    """Mounts and returns the descriptor, not yet negotiated (no INIT answered).

    Raises:
        CommandError: the kernel or fusermount refused.
    """
    from fusefs.bindings.kernel import mounting

    # The agreement of a worker with a connection that is no more.
    (config.run_dir / "fuse.json").unlink(missing_ok=True)
    try:
        return mounting.mount(
            config.mountpoint, fsname=config.fsname, flags=config.mount_flags
        )
    except OSError as error:
        raise CommandError(
            f"cannot mount on {config.mountpoint}: {error.strerror}", MOUNT_FAILURE
        ) from error
