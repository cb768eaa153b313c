"""Objects that are kept as zstd frames of their bytes: `objects/ab/<hex id>.z`.

Whoever opens one gets a descriptor of the bytes themselves, in memory, with the time
of the file; nothing else in the store knows. What would not get smaller is kept plain.

Source: RFC 8878 (Zstandard).
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from fusefs.errors import NotSupported
from fusefs.model.ids import ChunkId
from fusefs.store.files import Files, Stat, path_of
from fusefs.store.types import MAX_OBJECT_BYTES, Buffer

SUFFIX = ".z"
LEVEL = 1
"""Three times as fast as the usual 3, for a tenth more bytes."""
WORTH = 8
"""At least one in so many bytes has to go."""
MOST_UNPACKED = 16
"""Kept in memory: up to 16 MiB."""
_HEADER_BYTES = 18
"""A frame's (RFC 8878, 3.1.1.1): it tells the size of the bytes."""
_MODULES = ("compression.zstd", "backports.zstd")
"""Of Python 3.14, and the same for others."""
PACKAGE = "backports.zstd"


class _Stat(NamedTuple):
    st_size: int
    st_mtime: float


def zstd() -> ModuleType:
    """Raises NotSupported with a sentence for the user."""
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise NotSupported(
        f"compressed chunks need the Python package {PACKAGE}; install it beside dfs "
        f"(.venv/bin/pip install {PACKAGE})"
    )


def any_packed(objects: Path) -> bool:
    """Looks through all of them, until one is."""
    return any(objects.glob(f"??/*{SUFFIX}"))


def files_in(objects: Path, *, packed: bool, packs: bool) -> Files:
    """`packed`: there may be such ones; `packs`: and there will be more."""
    return PackedFiles(objects, packs=packs) if packed else Files(objects)


class PackedFiles(Files):
    """Raises NotSupported where zstd is not installed."""

    most_unpacked = MOST_UNPACKED

    def __init__(self, directory: Path, *, packs: bool) -> None:
        """`packs`: what is written from now on; what is packed can be read anyway."""
        self._zstd: Any = zstd()
        self._packs = packs
        super().__init__(directory)

    # -- writing ---------------------------------------------------------------

    def write(self, data: Buffer) -> str:
        if not self._packs:
            return super().write(data)
        frame = self._zstd.compress(data, LEVEL)
        if len(data) - len(frame) < len(data) // WORTH:
            return super().write(data)
        return self._write_aside(frame, SUFFIX)

    def publish(self, tmp: str, cid: ChunkId) -> None:
        """In one of both forms; killed in between, it is there in both."""
        plain = path_of(cid)
        packed = f"{plain}{SUFFIX}"
        is_packed = tmp.endswith(SUFFIX)
        self._name(tmp, packed if is_packed else plain)
        super().unlink(plain if is_packed else packed)

    def kept_bytes(self, cid: ChunkId, size: int) -> int:
        try:
            path = f"{path_of(cid)}{SUFFIX}"
            return os.stat(path, dir_fd=self.fd).st_size
        except FileNotFoundError:
            return size

    def unlink(self, path: str) -> bool:
        removed = super().unlink(path)
        if not path.endswith(SUFFIX):
            removed |= super().unlink(f"{path}{SUFFIX}")
        return removed

    def _renew(self, path: str, now_s: float) -> None:
        try:
            super()._renew(path, now_s)
        except FileNotFoundError:
            super()._renew(f"{path}{SUFFIX}", now_s)

    # -- reading ---------------------------------------------------------------

    def stat(self, cid: ChunkId) -> Stat | None:
        return super().stat(cid) or self._stat_packed(f"{path_of(cid)}{SUFFIX}")

    def _stat_packed(self, path: str) -> _Stat | None:
        fd = self._open(path)
        if fd is None:
            return None
        try:
            return _Stat(self._size_in(fd), os.fstat(fd).st_mtime)
        finally:
            os.close(fd)

    def _size_in(self, fd: int) -> int:
        """What the frame's header says; 0: it is none of ours, or cannot be read."""
        try:
            found = self._zstd.get_frame_info(os.pread(fd, _HEADER_BYTES, 0))
        except (self._zstd.ZstdError, OSError):
            return 0
        size = int(found.decompressed_size or 0)
        return size if size <= MAX_OBJECT_BYTES else 0

    def open(self, cid: ChunkId) -> int | None:
        """Of a packed one that is damaged: of no bytes."""
        fd = super().open(cid)
        if fd is not None:
            return fd
        packed = self._open(f"{path_of(cid)}{SUFFIX}")
        if packed is None:
            return None
        try:
            status = os.fstat(packed)
            data = self._unpacked(os.pread(packed, MAX_OBJECT_BYTES, 0))
        finally:
            os.close(packed)
        fd = os.memfd_create("dfs object", os.MFD_CLOEXEC)
        try:
            while data:
                data = data[os.write(fd, data) :]
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _unpacked(self, frame: bytes) -> memoryview:
        decompressor = self._zstd.ZstdDecompressor()
        try:
            data = decompressor.decompress(frame, MAX_OBJECT_BYTES)
        except (self._zstd.ZstdError, EOFError):
            data = b""
        return memoryview(data if decompressor.eof else b"")

    def _open_file(self, cid: ChunkId) -> int | None:
        fd = super().open(cid)
        return fd if fd is not None else self._open(f"{path_of(cid)}{SUFFIX}")

    def _parse(self, directory: str, name: str) -> ChunkId | None:
        return super()._parse(directory, name.removesuffix(SUFFIX))

    def _plain_size(self, path: str, status: os.stat_result) -> int:
        if not path.endswith(SUFFIX):
            return status.st_size
        found = self._stat_packed(path)
        return found.st_size if found is not None else 0
