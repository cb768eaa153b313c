"""Data of one file against a bytearray: any order of writes, cuts, holes, copies,
flushes, spills and reopens shows the same bytes."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusefs.errors import (
    BadHandle,
    Invalid,
    NoSpace,
    NoSuchDevice,
    NotSupported,
    TooBig,
)
from fusefs.model.ids import ROOT_INO, ChunkId
from fusefs.model.manifest import MAX_FILE_SIZE
from fusefs.store import gc
from fusefs.store.marks import MaybeRoot, Root
from fusefs.vfs import VfsOptions
from fusefs.vfs.ranges import KEEP_SIZE, MAX_SHARED, PUNCH_HOLE, ZERO_RANGE
from fusefs.vfs.recutting import Recutting
from fusefs.vfs.types import SetAttr
from tests.lib.local import USER, Local, local_vfs

SMALL = VfsOptions(chunk_log2=12, dirty_bytes=1 << 18)
CHUNK = 1 << 12


class Model:
    """The same file as bytes, and every operation done on both."""

    def __init__(self, local: Local, seed: int, span: int) -> None:
        self.local, self.vfs = local, local.vfs
        self.random = random.Random(seed)
        self.span = span
        self.data = bytearray()
        self.handle = local.create("/file")
        self.other = bytearray(self.random.randbytes(span // 2))
        local.put("/other", bytes(self.other))
        self.steps: list[Callable[[], str]] = [
            self.write,
            self.write,
            self.write,
            self.append,
            self.cut,
            self.grow,
            self.punch,
            self.zero,
            self.copy,
            self.flush,
            self.reopen,
            self.spill,
            self.read,
            self.read,
        ]

    def run(self, count: int) -> None:
        done = []
        for _ in range(count):
            done.append(self.random.choice(self.steps)())
            self.check(done)

    def check(self, done: list[str]) -> None:
        attr = self.vfs.getattr(self.local.walk("/file"))
        assert attr.size == len(self.data), done[-6:]
        found = self.local.read_all(self.handle)
        if found != self.data:
            at = next(
                i
                for i, (a, b) in enumerate(zip(found, self.data, strict=False))
                if a != b
            )
            raise AssertionError(f"differs at {at} after {done[-6:]}")

    def offset(self) -> int:
        at = self.random.randrange(self.span)
        return at & ~(CHUNK - 1) if self.random.random() < 0.3 else at

    def length(self) -> int:
        n = self.random.randrange(1, 3 * CHUNK)
        return -(-n // CHUNK) * CHUNK if self.random.random() < 0.3 else n

    def put(self, at: int, part: bytes) -> None:
        if len(self.data) < at + len(part):
            self.data.extend(bytes(at + len(part) - len(self.data)))
        self.data[at : at + len(part)] = part

    def write(self) -> str:
        at, part = self.offset(), self.random.randbytes(self.length())
        self.vfs.write(self.handle, at, part)
        self.put(at, part)
        return f"write {at}+{len(part)}"

    def append(self) -> str:
        at, part = len(self.data), self.random.randbytes(self.length())
        if at > 2 * self.span:
            return "nothing"
        self.vfs.write(self.handle, at, part)
        self.put(at, part)
        return f"append {at}+{len(part)}"

    def cut(self) -> str:
        size = self.random.randrange(len(self.data) + 1)
        self._truncate(size)
        return f"cut to {size}"

    def grow(self) -> str:
        size = len(self.data) + self.random.randrange(2 * CHUNK)
        if size > 2 * self.span:
            return "nothing"
        self._truncate(size)
        return f"grow to {size}"

    def _truncate(self, size: int) -> None:
        ino = self.local.walk("/file")
        handle = self.handle if self.random.random() < 0.7 else None
        self.vfs.setattr(ino, SetAttr(size=size), self.local.caller, handle)
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))

    def _clear(self, at: int, end: int) -> None:
        end = min(end, len(self.data))
        if at < end:
            self.data[at:end] = bytes(end - at)

    def punch(self) -> str:
        at, n = self.offset(), self.length()
        self.vfs.fallocate(self.handle, PUNCH_HOLE | KEEP_SIZE, at, n)
        self._clear(at, at + n)
        return f"punch {at}+{n}"

    def zero(self) -> str:
        at, n = self.offset(), self.length()
        self.vfs.fallocate(self.handle, ZERO_RANGE, at, n)
        self._clear(at, at + n)
        if len(self.data) < at + n:
            self.data.extend(bytes(at + n - len(self.data)))
        return f"zero {at}+{n}"

    def copy(self) -> str:
        source = self.local.open("/other", os.O_RDONLY)
        at_in, at_out, n = self.offset() // 2, self.offset(), self.length()
        if self.random.random() < 0.5:
            at_in, at_out = at_in & ~(CHUNK - 1), at_out & ~(CHUNK - 1)
        done = 0
        while done < n:
            got = self.vfs.copy_file_range(
                source, at_in + done, self.handle, at_out + done, n - done
            )
            if not got:
                break
            done += got
        part = bytes(self.other[at_in : at_in + n])
        assert done == len(part)
        if part:
            self.put(at_out, part)
        self.local.close(source)
        return f"copy {at_in}+{n} to {at_out}"

    def flush(self) -> str:
        self.vfs.flush(self.handle)
        return "flush"

    def reopen(self) -> str:
        self.local.close(self.handle)
        self.handle = self.local.open("/file")
        return "reopen"

    def spill(self) -> str:
        self.vfs._writer._publisher.spill(0)
        return "spill"

    def read(self) -> str:
        at, n = self.offset(), self.length()
        found = self.vfs.read(self.handle, at, n, self.local.caller)
        assert found == self.data[at : at + n]
        return "read"


@pytest.mark.parametrize("seed", range(8))
def test_random_operations_show_the_bytes_of_a_plain_buffer(
    tmp_path: Path, seed: int
) -> None:
    with local_vfs(tmp_path / "s", SMALL) as local:
        model = Model(local, seed, CHUNK * (12 if seed % 2 else 400))
        model.run(120)
        local.close(model.handle)
        assert local.cat("/file") == model.data
        assert local.vfs.statistics().buffer_bytes == 0


@pytest.mark.parametrize("seed", range(4))
def test_random_operations_over_chunks_that_are_cut_anew(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = VfsOptions(chunk_log2=15, fine_chunk_log2=12, dirty_bytes=1 << 18)
    cuts: list[object] = []
    cut = Recutting._cut
    monkeypatch.setattr(Recutting, "_cut", lambda *a: cuts.append(a) or cut(*a))
    with local_vfs(tmp_path / "s", options) as local:
        model = Model(local, seed, CHUNK * 100)
        model.steps += [model.flush] * 6
        model.run(160)
        local.close(model.handle)
        assert local.cat("/file") == model.data
        assert local.vfs.statistics().buffer_bytes == 0
    assert len(cuts) == 1


@pytest.mark.parametrize("seed", range(2))
def test_random_operations_with_chunks_of_1_mib(tmp_path: Path, seed: int) -> None:
    with local_vfs(tmp_path / "s") as local:
        model = Model(local, seed, 3 << 20)
        model.length = lambda: model.random.randrange(1, 1500_000)  # type: ignore[method-assign]
        model.run(40)
        local.close(model.handle)
        assert local.cat("/file") == model.data


@pytest.mark.parametrize(
    "size", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20]
)
def test_written_file_reads_back_after_close(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    with local_vfs(tmp_path / "s") as local:
        local.put("/a", data)
        assert local.cat("/a") == data
        assert local.stat("/a").size == size
        assert local.stat("/a").blocks == -(-size // 512)


@pytest.mark.parametrize("size", [4096, 1 << 20, 3000 * 512])
def test_blocks_of_a_file_that_grows_are_those_it_has_once_closed(
    tmp_path: Path, size: int
) -> None:
    """The kernel keeps what stat(2) said before the close."""
    with local_vfs(tmp_path / "s") as local:
        local.put("/a", b"x" * size)
        handle = local.open("/a")
        local.vfs.write(handle, 3 << 20, b"end")
        before = local.stat("/a").blocks
        local.close(handle)
        assert local.stat("/a").blocks == before


def test_sparse_terabyte_costs_nothing(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        handle = local.create("/sparse")
        local.vfs.setattr(
            local.walk("/sparse"), SetAttr(size=1 << 40), local.caller, handle
        )
        local.vfs.write(handle, (1 << 39) + 5, b"middle")
        assert local.stat("/sparse").blocks <= 2048
        local.close(handle)
        attr = local.stat("/sparse")
        assert (attr.size, attr.blocks) == (1 << 40, 2048)
        handle = local.open("/sparse")
        start = local.vfs.lseek(handle, 0, os.SEEK_DATA)
        assert start == 1 << 39
        assert local.vfs.lseek(handle, start, os.SEEK_HOLE) == start + (1 << 20)
        assert local.vfs.lseek(handle, 0, os.SEEK_HOLE) == 0
        with pytest.raises(NoSuchDevice):
            local.vfs.lseek(handle, start + (1 << 20), os.SEEK_DATA)
        with pytest.raises(NoSuchDevice):
            local.vfs.lseek(handle, 1 << 40, os.SEEK_HOLE)
        assert local.vfs.read(handle, (1 << 39) + 4, 8) == b"\0middle\0"
        local.close(handle)


def test_offsets_near_8_eib(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        handle = local.create("/far")
        local.vfs.write(handle, MAX_FILE_SIZE - 3, b"end")
        assert local.stat("/far").size == MAX_FILE_SIZE
        with pytest.raises(TooBig):
            local.vfs.write(handle, MAX_FILE_SIZE - 2, b"end")
        local.close(handle)
        handle = local.open("/far")
        assert local.vfs.read(handle, MAX_FILE_SIZE - 4, 10) == b"\0end"
        local.close(handle)


def test_seek_sees_unpublished_writes_and_holes(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s", SMALL) as local:
        handle = local.create("/a")
        local.vfs.write(handle, 3 * CHUNK, b"x" * CHUNK)
        for _ in range(2):
            assert local.vfs.lseek(handle, 0, os.SEEK_DATA) == 3 * CHUNK
            assert local.vfs.lseek(handle, 3 * CHUNK + 1, os.SEEK_HOLE) == 4 * CHUNK
            local.vfs.flush(handle)
        local.vfs.fallocate(handle, PUNCH_HOLE | KEEP_SIZE, 3 * CHUNK, CHUNK)
        with pytest.raises(NoSuchDevice):
            local.vfs.lseek(handle, 0, os.SEEK_DATA)
        local.close(handle)
        assert local.stat("/a").blocks == 0


def test_fallocate_modes(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s", SMALL) as local:
        handle = local.create("/a", b"12345")
        vfs = local.vfs
        vfs.fallocate(handle, KEEP_SIZE, 0, 10_000)
        assert local.stat("/a").size == 5
        vfs.fallocate(handle, 0, 0, 10_000)
        assert local.stat("/a").size == 10_000
        vfs.fallocate(handle, ZERO_RANGE | KEEP_SIZE, 1, 2)
        assert vfs.read(handle, 0, 6) == b"1\0\0" + b"45\0"
        for mode in (PUNCH_HOLE, 8, 32, 64):
            with pytest.raises(NotSupported):
                vfs.fallocate(handle, mode, 0, 1)
        for offset, length in ((-1, 1), (0, 0), (0, -1)):
            with pytest.raises(Invalid):
                vfs.fallocate(handle, 0, offset, length)
        with pytest.raises(TooBig):
            vfs.fallocate(handle, 0, MAX_FILE_SIZE, 1)
        local.close(handle)
        reading = local.open("/a", os.O_RDONLY)
        with pytest.raises(BadHandle):
            vfs.fallocate(reading, 0, 0, 1)
        with pytest.raises(BadHandle):
            vfs.write(reading, 0, b"x")
        local.close(reading)


def test_copy_inside_the_mount_stores_no_bytes(tmp_path: Path) -> None:
    data = random.Random(1).randbytes((3 << 20) + 17)
    with local_vfs(tmp_path / "s") as local:
        local.put("/a", data)
        before = sum(size for _, size in local.store.objects())
        source, target = local.open("/a", os.O_RDONLY), local.create("/b")
        copied = local.vfs.copy_file_range(source, 0, target, 0, 1 << 40)
        assert copied == len(data)
        local.close(target)
        assert sum(size for _, size in local.store.objects()) == before
        assert local.cat("/b") == data
        assert local.stat("/b").version == local.stat("/a").version
        local.close(source)


@pytest.mark.parametrize("published", [False, True])
def test_copy_from_a_file_without_a_name_copies_what_it_shows(
    tmp_path: Path, published: bool
) -> None:
    with local_vfs(tmp_path / "s") as local:
        source = local.create("/a")
        if published:
            local.vfs.write(source, 0, b"A" * 200_000)
            local.vfs.flush(source)
        local.vfs.unlink(ROOT_INO, b"a")
        local.vfs.write(source, 100, b"B" * (2 << 20))
        local.vfs.fsync(source)
        shown = local.read_all(source)
        target = local.create("/b")
        done = 0
        while got := local.vfs.copy_file_range(source, done, target, done, 1 << 30):
            done += got
        assert done == len(shown)
        local.close(target)
        assert local.cat("/b") == shown
        local.close(source)


def test_copy_of_an_endless_hole_is_done_in_parts(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        source, target = local.create("/a"), local.create("/b")
        ino, size = local.walk("/a"), MAX_FILE_SIZE - 1
        local.vfs.setattr(ino, SetAttr(size=size), local.caller, source)
        got = local.vfs.copy_file_range(source, 0, target, 0, size)
        assert got == MAX_SHARED << 20
        assert local.vfs.copy_file_range(source, got, target, got, size) == got
        local.close(target)
        assert local.stat("/b").size == 2 * got
        assert local.stat("/b").blocks == 0
        local.close(source)


def test_what_is_shared_while_garbage_is_collected_stays(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100_000)
    with local_vfs(tmp_path / "s") as local:
        local.put("/a", data)
        local.put("/b", b"")
        target = local.open("/b")

        def share() -> Iterator[Root]:
            """Between looking at the open files and at the registers."""
            yield from local.vfs.live_roots()
            source = local.open("/a")
            assert local.vfs.copy_file_range(source, 0, target, 0, 1 << 30) == 100_000
            local.close(source)
            local.put("/a", b"other")

        def registers() -> Iterator[MaybeRoot]:
            yield from local.namespace.live_roots()

        roots = itertools.chain(share(), registers(), local.vfs.late_roots())
        collected = gc.collect(local.store, roots, now_s=time.time() + 7200)
        assert collected.local
        local.close(target)
        assert local.cat("/b") == data


def test_what_a_copy_is_about_to_share_stays(tmp_path: Path, monkeypatch) -> None:
    """It waits for the target, or for a node of the manifest; meanwhile the source is
    replaced, and garbage collected."""
    data = random.Random(1).randbytes(100_000)
    with local_vfs(tmp_path / "s") as local:
        local.put("/a", data)
        source, target = local.open("/a"), local.create("/b")
        ranges = local.vfs._ranges
        look = ranges._chunks

        def looking(*words: Any) -> list[ChunkId]:
            found = look(*words)
            local.put("/a", b"other")
            roots = itertools.chain(
                local.vfs.live_roots(),
                local.namespace.live_roots(),
                local.vfs.late_roots(),
            )
            gc.collect(local.store, roots, now_s=time.time() + 7200)
            return found

        monkeypatch.setattr(ranges, "_chunks", looking)
        assert local.vfs.copy_file_range(source, 0, target, 0, 1 << 30) == 100_000
        monkeypatch.undo()
        for handle in (source, target):
            local.close(handle)
        assert local.cat("/b") == data


def test_copy_within_one_file(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s", SMALL) as local:
        handle = local.create("/a", b"abcdef" * CHUNK)
        expected = bytearray(b"abcdef" * CHUNK)
        with pytest.raises(Invalid):
            local.vfs.copy_file_range(handle, 0, handle, 10, 20)
        got = local.vfs.copy_file_range(handle, 3, handle, 8 * CHUNK, 2 * CHUNK)
        expected.extend(bytes(8 * CHUNK - len(expected)))
        expected[8 * CHUNK :] = expected[3 : 3 + got]
        assert local.read_all(handle) == expected
        local.close(handle)


def test_copy_goes_where_it_is_told_though_it_was_opened_to_append(
    tmp_path: Path,
) -> None:
    """fcntl takes O_APPEND away; while it is set the kernel copies nothing."""
    with local_vfs(tmp_path / "s") as local:
        local.put("/source", b"copied")
        local.put("/target", b"there")
        source = local.open("/source", os.O_RDONLY)
        target = local.open("/target", os.O_WRONLY | os.O_APPEND)
        assert local.vfs.copy_file_range(source, 0, target, 8, 6) == 6
        local.close(source)
        local.close(target)
        assert local.cat("/target") == b"there\0\0\0copied"


def test_line_without_room_for_its_chunk_is_there_once(
    tmp_path: Path, monkeypatch
) -> None:
    """A quota, which nobody knows before: whoever is refused writes it again."""
    with local_vfs(tmp_path / "s") as local:
        vfs, line = local.vfs, b"l" * 999 + b"\n"
        opened = vfs.create(ROOT_INO, b"log", 0o644, os.O_WRONLY | os.O_APPEND, USER)

        def full(*_: object, **__: object) -> None:
            raise NoSpace("a quota")

        lines = 0
        with monkeypatch.context() as patch:
            patch.setattr(local.store, "put", full)
            for _ in range(50):
                try:
                    vfs.write(opened.handle, 1000 * lines, line, appends=True)
                    lines += 1
                except NoSpace:
                    pass
            with pytest.raises(NoSpace):
                vfs.flush(opened.handle)
        local.close(opened.handle)
        assert local.cat("/log") == line * lines


def test_two_handles_see_each_other_at_once(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        one = local.create("/a", b"one")
        two = local.open("/a")
        assert local.vfs.read(two, 0, 10) == b"one"
        local.vfs.write(two, 3, b"two")
        assert local.vfs.read(one, 0, 10) == b"onetwo"
        assert local.stat("/a").size == 6
        local.close(one)
        assert local.vfs.read(two, 0, 10) == b"onetwo"
        local.close(two)


def test_truncate_without_handle_is_published_at_once(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        ino = local.put("/a", b"0123456789")
        local.vfs.setattr(ino, SetAttr(size=4), local.caller)
        row = local.namespace.inode(ino)
        assert row is not None and row.size == 4
        local.vfs.setattr(ino, SetAttr(size=8), local.caller)
        assert local.cat("/a") == b"0123\0\0\0\0"


def test_open_with_truncate_is_one_version_with_the_write(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        ino = local.put("/a", b"old content")
        before = local.vfs.statistics().commits
        handle = local.open("/a", os.O_WRONLY | os.O_TRUNC)
        assert local.stat("/a").size == 0
        local.vfs.write(handle, 0, b"new")
        row = local.namespace.inode(ino)
        assert row is not None and row.size == 11
        local.close(handle)
        assert local.vfs.statistics().commits == before + 1
        assert local.cat("/a") == b"new"
