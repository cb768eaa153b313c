"""fusepy 3.0.1 with its defects mended: the choke point, and calls without loss.

fusepy has had no release since 2018 and its version is pinned, so its class can be
extended safely. `Library` is where every call from libfuse enters:

* one wrapper catches everything, and only a positive errno leaves it (fusepy itself
  runs into a NameError, answers EINVAL for bugs, and dies on an OSError without one);
* data is read into and written from libfuse's buffers without a copy;
* `create` learns the flags, `flush` the lock owner, `utimens` an exact UTIME_NOW;
* a thread keeps its Python state (19 k to 30 k stat/s measured);
* `fallocate`, which libfuse 2.9 has and fusepy does not, is offered.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import fuse

from fusefs.bindings import damage
from fusefs.errors import FsError
from fusefs.vfs.types import NOW, Attr

if TYPE_CHECKING:
    from fusefs.bindings.fusepy_ops import Operations

log = logging.getLogger("dfs.fusepy")

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
BLOCK_SIZE = 128 << 10
"""One FUSE request: what programs should read and write at once."""

_FALLOCATE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    fuse.c_off_t,
    fuse.c_off_t,
    ctypes.POINTER(fuse.fuse_file_info),
)


class _Operations(ctypes.Structure):
    """struct fuse_operations of libfuse 2.9, to its end."""

    _fields_ = (
        *fuse.fuse_operations._fields_,
        ("poll", ctypes.c_void_p),
        ("write_buf", ctypes.c_void_p),
        ("read_buf", ctypes.c_void_p),
        ("flock", ctypes.c_void_p),
        ("fallocate", _FALLOCATE),
    )


_view_types: dict[int, Any] = {}


def _view(pointer: Any, size: int) -> memoryview:
    """libfuse's buffer itself. Valid until the call returns."""
    kind = _view_types.get(size)
    if kind is None:
        kind = ctypes.c_ubyte * size
        if len(_view_types) < 256:
            _view_types[size] = kind
    address = ctypes.addressof(pointer.contents)
    return memoryview(kind.from_address(address)).cast("B")


def _when(spec: Any) -> int | None:
    if spec.tv_nsec == UTIME_OMIT:
        return None
    if spec.tv_nsec == UTIME_NOW:
        return NOW
    return int(spec.tv_sec * 10**9 + spec.tv_nsec)


def _fill(stat: Any, attr: Attr) -> None:
    stat.st_ino = attr.ino
    stat.st_mode = attr.mode
    stat.st_nlink = attr.nlink
    stat.st_uid = attr.uid
    stat.st_gid = attr.gid
    stat.st_rdev = attr.rdev
    stat.st_size = attr.size
    stat.st_blocks = attr.blocks
    stat.st_blksize = BLOCK_SIZE
    for spec, ns in (
        (stat.st_atimespec, attr.atime_ns),
        (stat.st_mtimespec, attr.mtime_ns),
        (stat.st_ctimespec, attr.ctime_ns),
    ):
        spec.tv_sec, spec.tv_nsec = divmod(ns, 10**9)


def answer(name: str, call: Callable[..., Any], *args: Any) -> int:
    """The call's result for libfuse: >= 0, or a negative errno. Never raises."""
    try:
        return call(*args) or 0
    except FsError as error:
        if error.errno == errno.EIO:
            damage.say(log, name, error)
        return -(error.errno or errno.EIO)
    except UnicodeError:
        return -errno.EINVAL
    except Exception:
        log.exception("bug in %s: answered with EIO", name)
        return -errno.EIO
    except BaseException:
        log.critical("fatal in %s: stopping", name, exc_info=True)
        os.kill(os.getpid(), signal.SIGTERM)
        return -errno.EIO


_thread = threading.local()
_kept = itertools.count()
MAX_KEPT = 64
"""Thread states kept (about 20 KiB each, for ever): far more threads than libfuse
keeps idle (10), so that the bound is met only when bursts of work end many."""


def _keep_thread_state() -> None:
    """Python makes a thread state for each call from a thread it does not know and
    throws it away after: a third of the cost of a stat. One that is asked for once
    more, and never given back, stays with the thread."""
    _thread.known = True
    if next(_kept) < MAX_KEPT:
        ctypes.pythonapi.PyGILState_Ensure()


class Library(fuse.FUSE):  # type: ignore[misc]
    """fusepy's FUSE; constructing it mounts and serves until unmounted."""

    operations: Operations

    @staticmethod
    def _wrapper(func: Any, *args: Any) -> int:
        """Every call from libfuse."""
        if not hasattr(_thread, "known"):
            _keep_thread_state()
        name = func.__name__
        if name not in _SETTLES_ITSELF:
            answer("settle", func.__self__.operations.orphans.settle)
        return answer(name, func, *args)

    def fgetattr(self, path: bytes | None, buffer: Any, fip: Any) -> int:
        handle = fip.contents.fh if fip else None
        attr = self.operations.getattr(self._decode_optional_path(path), handle)
        ctypes.memset(buffer, 0, ctypes.sizeof(fuse.c_stat))
        _fill(buffer.contents, attr)
        return 0

    def getattr(self, path: bytes, buffer: Any) -> int:
        return self.fgetattr(path, buffer, None)

    def read(
        self, path: bytes | None, buffer: Any, size: int, offset: int, fip: Any
    ) -> int:
        if not size:
            return 0
        view = _view(buffer, size)
        return self.operations.read(None, view, offset, fip.contents.fh)

    def write(
        self, path: bytes | None, buffer: Any, size: int, offset: int, fip: Any
    ) -> int:
        if not size:
            return 0
        view = _view(buffer, size)
        return self.operations.write(None, view, offset, fip.contents.fh)

    def open(self, path: bytes, fip: Any) -> int:
        info = fip.contents
        text = path.decode(self.encoding)
        opened = self.operations.open(text, info.flags)
        info.fh, info.keep_cache, info.direct_io = opened
        return 0

    def create(self, path: bytes, mode: int, fip: Any) -> int:
        info = fip.contents
        text = path.decode(self.encoding)
        info.fh = self.operations.create(text, mode, info.flags)
        return 0

    def flush(self, path: bytes | None, fip: Any) -> int:
        info = fip.contents
        self.operations.flush(None, info.fh, info.lock_owner)
        return 0

    def utimens(self, path: bytes, times: Any) -> int:
        pair: tuple[int | None, int | None] = (NOW, NOW)
        if times:
            pair = (_when(times.contents.actime), _when(times.contents.modtime))
        self.operations.utimens(path.decode(self.encoding), pair)
        return 0

    def fallocate(
        self, path: bytes | None, mode: int, offset: int, length: int, fip: Any
    ) -> int:
        self.operations.fallocate(fip.contents.fh, mode, offset, length)
        return 0

    def readdir(
        self, path: bytes | None, buffer: Any, filler: Any, offset: int, fip: Any
    ) -> int:
        """Type and number go with each name; offset 0, for libfuse keeps the list."""
        stat = fuse.c_stat()
        pointer = ctypes.byref(stat)
        for entry in self.operations.readdir(None, fip.contents.fh):
            stat.st_ino = entry.ino
            stat.st_mode = entry.kind << 12
            if filler(buffer, entry.name, pointer, 0):
                break
        return 0


_SETTLES_ITSELF = frozenset({"rename", "init", "destroy"})
"""A rename may take the place of the unlink that waits (Orphans.replaced)."""


def serve(operations: Operations, mountpoint: bytes, words: dict[str, Any]) -> None:
    """Mounts and blocks until unmounted. Raises RuntimeError when it cannot."""
    fuse.fuse_operations = _Operations
    where = mountpoint.decode("latin-1")
    try:
        Library(operations, where, encoding="latin-1", **words)
    except RuntimeError as error:  # with a number
        raise RuntimeError(
            f"libfuse gave up ({error}); why it says in worker.log, or with -f"
        ) from None
