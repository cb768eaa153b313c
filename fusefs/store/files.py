"""Large objects as files: `objects/ab/<hex id>`, written aside, then renamed.

Every path is relative to one directory descriptor. Nothing here knows flags,
quotas or the index. Called from any thread of either process: creation is atomic
by rename, and two writers of one object write the same bytes.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from fusefs.errors import DiskFailed, FsError, NoSpace
from fusefs.model.ids import ChunkId
from fusefs.store import trouble
from fusefs.store.types import Buffer

STALE_TMP_S = 600
"""A temporary file this old belongs to no writer: a write takes milliseconds."""
PROBE_BYTES = 64 << 10
"""More than may be left where a page found no room."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
FULL = (errno.ENOSPC, errno.EDQUOT)

_libc = ctypes.CDLL(None, use_errno=True)


class Found(NamedTuple):
    """A file met while walking; `cid` is None when the name is not an object's."""

    path: str
    cid: ChunkId | None
    size: int
    mtime_s: float
    error: OSError | None = None
    """Why nothing else is known of it."""


class Stat(Protocol):
    """What is asked of an object's file; of its bytes, however they are kept."""

    @property
    def st_size(self) -> int: ...
    @property
    def st_mtime(self) -> float: ...


def path_of(cid: ChunkId) -> str:
    """The object's path below `objects/`."""
    name = cid.hex()
    return f"{name[:2]}/{name}"


class Files:
    """The directory `objects/`."""

    most_unpacked = 0
    """Of descriptors of no file that are kept open for reading."""

    def __init__(self, directory: Path) -> None:
        _make_fan_out(directory)
        self._store = directory.parent
        self.fd = os.open(directory, _DIRECTORY)
        self._serial = itertools.count()
        self._prefix = f"tmp/{os.getpid()}-{os.urandom(6).hex()}-"

    def write(self, data: Buffer) -> str:
        """Store the bytes under a temporary name, to be published or discarded."""
        return self._write_aside(data, "")

    def _write_aside(self, data: Buffer, suffix: str) -> str:
        tmp = f"{self._prefix}{next(self._serial)}{suffix}"
        try:
            with self._failing("writing an object"):
                self._write(tmp, data)
        except OSError:
            self.discard(tmp)
            raise
        return tmp

    def _write(self, tmp: str, data: Buffer) -> None:
        fd = os.open(tmp, _CREATE, 0o400, dir_fd=self.fd)
        try:
            _write_all(fd, data)
        finally:
            os.close(fd)

    def publish(self, tmp: str, cid: ChunkId) -> None:
        """Give a temporary file its object's name, replacing what has it."""
        self._name(tmp, path_of(cid))

    def _name(self, tmp: str, path: str) -> None:
        with self._failing("naming an object"):
            try:
                os.rename(tmp, path, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            except FileNotFoundError:
                self._make_directory(path[:2])
                os.rename(tmp, path, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def _make_directory(self, name: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=self.fd)
        except FileExistsError:
            return
        os.fsync(self.fd)

    def discard(self, tmp: str) -> None:
        """Where it cannot be removed, `remove_stale_tmp` does it another time."""
        try:
            os.unlink(tmp, dir_fd=self.fd)
        except OSError:
            pass

    def stat(self, cid: ChunkId) -> Stat | None:
        try:
            return os.stat(path_of(cid), dir_fd=self.fd)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, cid: ChunkId) -> int | None:
        """A descriptor for reading, None when there is no such object."""
        return self._open(path_of(cid))

    def _open(self, path: str) -> int | None:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _open_file(self, cid: ChunkId) -> int | None:
        """What is on the disk of it."""
        return self.open(cid)

    def renew(self, cid: ChunkId, now_s: float) -> bool:
        """Set the time GC's grace counts from; False when there is no such object."""
        try:
            with self._failing("renewing an object"):
                self._renew(path_of(cid), now_s)
        except FileNotFoundError:
            return False
        return True

    def _renew(self, path: str, now_s: float) -> None:
        os.utime(path, (now_s, now_s), dir_fd=self.fd)

    def kept_bytes(self, cid: ChunkId, size: int) -> int:
        """What an object of this size takes on the disk."""
        return size

    def unlink(self, path: str) -> bool:
        """Remove a file, or what stands for one and is an empty directory, by its path
        below `objects/`; False when it was gone."""
        try:
            os.unlink(path, dir_fd=self.fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except IsADirectoryError:
            os.rmdir(path, dir_fd=self.fd)
        except OSError as error:
            problem = failed(self._store, "removing an object", error)
            if error.errno in (errno.EROFS, *FULL):
                raise problem from error
            raise  # of this file: others can be removed
        return True

    def walk(self) -> Iterator[Found]:
        """Every file of the fan-out directories, whatever its name, and such a
        directory that cannot be listed."""
        for number in range(256):
            sub = f"{number:02x}"
            try:
                yield from self._walk_one(sub)
            except NotADirectoryError:
                yield Found(sub, None, 0, 0.0)
            except OSError as error:
                yield Found(sub, None, 0, 0.0, error)

    def _walk_one(self, sub: str) -> Iterator[Found]:
        try:
            fd = os.open(sub, _DIRECTORY, dir_fd=self.fd)
        except FileNotFoundError:
            return
        try:
            for name in os.listdir(fd):
                path, cid = f"{sub}/{name}", self._parse(sub, name)
                try:
                    stat = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    yield Found(path, cid, 0, 0.0, error)
                    continue
                size = self._plain_size(path, stat)
                yield Found(path, cid, size, stat.st_mtime)
        finally:
            os.close(fd)

    def _parse(self, directory: str, name: str) -> ChunkId | None:
        if len(name) != 64 or name[:2] != directory or name != name.lower():
            return None
        try:
            return ChunkId(bytes.fromhex(name))
        except ValueError:
            return None

    def _plain_size(self, path: str, status: os.stat_result) -> int:
        return status.st_size

    def remove_stale_tmp(self, now_s: float) -> int:
        """Remove what crashed writers left; living ones keep their files."""
        removed = 0
        fd = os.open("tmp", _DIRECTORY, dir_fd=self.fd)
        try:
            for name in os.listdir(fd):
                try:
                    age_s = now_s - os.stat(name, dir_fd=fd).st_mtime
                    if age_s > STALE_TMP_S:
                        os.unlink(name, dir_fd=fd)
                        removed += 1
                except OSError:  # gone, or no writer's: the store opens all the same
                    continue
        finally:
            os.close(fd)
        return removed

    def sync(self, cids: Iterable[ChunkId]) -> list[ChunkId]:
        """Make files and their directory entries durable; gives those not found."""
        gone = []
        directories = set()
        for cid in cids:
            fd = self._open_file(cid)
            if fd is None:
                gone.append(cid)
                continue
            self._sync_and_close(fd, os.fdatasync)
            directories.add(path_of(cid)[:2])
        for name in directories:
            self._sync_and_close(os.open(name, _DIRECTORY, dir_fd=self.fd), os.fsync)
        return gone

    def _sync_and_close(self, fd: int, sync: Callable[[int], None]) -> None:
        with self._failing("syncing an object"):
            _sync_and_close(fd, sync)

    def sync_filesystem(self) -> None:
        """Make everything on the store's file system durable (syncfs(2)).

        Covers what the other process wrote too, and is one journal commit where
        many fdatasyncs are many (measured: 54 against 80 ms for 100 MiB).
        """
        if _libc.syncfs(self.fd) != 0:
            code = ctypes.get_errno()
            error = OSError(code, os.strerror(code))
            raise failed(self._store, "syncing the store", error)

    @contextmanager
    def _failing(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise
        except OSError as error:
            raise failed(self._store, doing, error) from error

    def close(self) -> None:
        os.close(self.fd)


def refusal(directory: Path) -> int:
    """The errno that a file which grows there meets: of a full disk, a quota that is
    used up, a disk that takes no writes. 0: it grows."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, bytes(PROBE_BYTES))
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def failed(store: Path, doing: str, error: OSError) -> FsError:
    """Our error for one of the disk's. No block, no inode, or a quota that is used up:
    NoSpace; else it is noted for `dfs status`."""
    if error.errno in FULL:
        return NoSpace(f"the store's disk is full ({doing})")
    trouble.note(store, f"{doing}: {error.strerror}")
    read_only = errno.EROFS if error.errno == errno.EROFS else None
    return DiskFailed(f"{doing} failed: {error.strerror}", errno=read_only)


def _make_fan_out(directory: Path) -> None:
    """Make `objects/` with its 256 directories, so that no write has to."""
    try:
        (directory / "tmp").mkdir(0o700, parents=True)
    except FileExistsError:
        return
    for number in range(256):
        (directory / f"{number:02x}").mkdir(0o700, exist_ok=True)
    _sync_and_close(os.open(directory, _DIRECTORY), os.fsync)


def _write_all(fd: int, data: Buffer) -> None:
    length = len(data)
    done = os.write(fd, data)
    while done < length:
        done += os.write(fd, memoryview(data)[done:])


def _sync_and_close(fd: int, sync: Callable[[int], None]) -> None:
    try:
        sync(fd)
    finally:
        os.close(fd)
