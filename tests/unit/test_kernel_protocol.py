"""Kernel binding, without a kernel: records, INIT, counts, who may be told what."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import re
import stat
from pathlib import Path
from struct import Struct

import pytest

from fusefs.bindings.kernel import channel, encode, session
from fusefs.bindings.kernel import protocol as p
from fusefs.bindings.kernel.connection import Connection, Settings
from fusefs.bindings.kernel.lookups import Lookups
from fusefs.bindings.kernel.protocol import Op
from fusefs.bindings.kernel.session import Session
from fusefs.model.ids import Ino
from fusefs.vfs.types import Attr, DirEntry, FileLock, StatFs
from tests.lib.memory_vfs import MemoryVfs

HEADER = Path("/usr/include/linux/fuse.h")
SIZES = {
    "uint64_t": 8, "int64_t": 8, "uint32_t": 4, "int32_t": 4, "uint16_t": 2,
}  # fmt: skip

ATTR = Attr(
    ino=Ino(77), mode=stat.S_IFREG | 0o640, nlink=2, uid=3, gid=4, rdev=0, size=5000,
    blocks=10, atime_ns=-1, mtime_ns=1_700_000_000_000_000_007,
    ctime_ns=1_600_000_000_000_000_008, btime_ns=9, version=1,
)  # fmt: skip


# -- the records, against the kernel's own header -----------------------------------


def header_sizes() -> dict[str, int]:
    """Size of every struct in linux/fuse.h (flexible arrays count 0)."""
    sizes = dict(SIZES)
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    for name, body in re.findall(r"struct (\w+) \{(.*?)\n\};", text, re.S):
        total = 0
        for kind, _, count in re.findall(
            r"(?:struct )?(\w+)\s+(\w+)(?:\[(\w*)\])?;", body
        ):
            if kind != "char":
                total += sizes[kind] * (int(count) if count else 1)
        sizes[name] = total
    return sizes


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers")
@pytest.mark.parametrize(
    ("record", "parts"),
    [
        (p.IN_HEADER, ["fuse_in_header"]),
        (p.OUT_HEADER, ["fuse_out_header"]),
        (p.FORGET_IN, ["fuse_forget_in"]),
        (p.BATCH_FORGET_IN, ["fuse_batch_forget_in"]),
        (p.FORGET_ONE, ["fuse_forget_one"]),
        (p.GETATTR_IN, ["fuse_getattr_in"]),
        (p.SETATTR_IN, ["fuse_setattr_in"]),
        (p.MKNOD_IN, ["fuse_mknod_in"]),
        (p.MKDIR_IN, ["fuse_mkdir_in"]),
        (p.RENAME_IN, ["fuse_rename_in"]),
        (p.RENAME2_IN, ["fuse_rename2_in"]),
        (p.LINK_IN, ["fuse_link_in"]),
        (p.OPEN_IN, ["fuse_open_in"]),
        (p.CREATE_IN, ["fuse_create_in"]),
        (p.RELEASE_IN, ["fuse_release_in"]),
        (p.FLUSH_IN, ["fuse_flush_in"]),
        (p.READ_IN, ["fuse_read_in"]),
        (p.READ_IN, ["fuse_write_in"]),
        (p.FSYNC_IN, ["fuse_fsync_in"]),
        (p.SETXATTR_IN, ["fuse_setxattr_in"]),
        (p.GETXATTR_IN, ["fuse_getxattr_in"]),
        (p.LK_IN, ["fuse_lk_in"]),
        (p.INTERRUPT_IN, ["fuse_interrupt_in"]),
        (p.FALLOCATE_IN, ["fuse_fallocate_in"]),
        (p.LSEEK_IN, ["fuse_lseek_in"]),
        (p.COPY_IN, ["fuse_copy_file_range_in"]),
        (p.ENTRY_REPLY, ["fuse_out_header", "fuse_entry_out"]),
        (p.ATTR_REPLY, ["fuse_out_header", "fuse_attr_out"]),
        (p.OPEN_REPLY, ["fuse_out_header", "fuse_open_out"]),
        (p.WRITE_REPLY, ["fuse_out_header", "fuse_write_out"]),
        (p.WRITE_REPLY, ["fuse_out_header", "fuse_getxattr_out"]),
        (p.U64_REPLY, ["fuse_out_header", "fuse_lseek_out"]),
        (p.STATFS_REPLY, ["fuse_out_header", "fuse_statfs_out"]),
        (p.LK_REPLY, ["fuse_out_header", "fuse_lk_out"]),
        (p.INIT_REPLY, ["fuse_out_header", "fuse_init_out"]),
        (p.DIRENT, ["fuse_dirent"]),
        (p.DIRENTPLUS, ["fuse_entry_out", "fuse_dirent"]),
        (p.INVAL_INODE, ["fuse_out_header", "fuse_notify_inval_inode_out"]),
        (p.INVAL_ENTRY, ["fuse_out_header", "fuse_notify_inval_entry_out"]),
        (p.DELETE, ["fuse_out_header", "fuse_notify_delete_out"]),
        (p.STORE, ["fuse_out_header", "fuse_notify_store_out"]),
    ],
)
def test_record_is_as_long_as_the_headers(record: Struct, parts: list[str]) -> None:
    sizes = header_sizes()
    assert record.size == sum(sizes[part] for part in parts)


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers")
def test_opcodes_and_flags_are_the_headers() -> None:
    text = HEADER.read_text()
    found = {n: int(v) for n, v in re.findall(r"\tFUSE_(\w+)\s*= (\d+),", text)}
    newer = {"STATX", "COPY_FILE_RANGE_64"}
    assert {op.name: op.value for op in Op if op.name not in newer}.items() <= (
        found.items()
    )
    for name, unsigned, bit in re.findall(
        r"#define (?:FUSE_)?(\w+)\s+\(1(ULL)? << (\d+)\)", text
    ):
        if hasattr(p, name) and not isinstance(getattr(p, name), Struct):
            assert getattr(p, name) == 1 << int(bit), (name, unsigned)


def test_statx_reply_is_as_long_as_the_kernels() -> None:
    assert p.STATX_REPLY.size == 16 + 32 + 256


# -- replies -----------------------------------------------------------------------


def test_every_reply_begins_with_its_length_and_unique() -> None:
    replies = [
        encode.ok(9),
        encode.error(9, errno.ENOENT),
        encode.data(9, b"target"),
        encode.entry(9, ATTR, 1, 1),
        encode.no_entry(9, 1),
        encode.attributes(9, ATTR, 1),
        encode.created(encode.entry(9, ATTR, 1, 1), 9, 5, 2),
        encode.opened(9, 5, 2),
        encode.written(9, 5),
        encode.number(9, 1 << 40),
        encode.statfs(9, StatFs(4096, 1, 2, 3, 4, 5, 255)),
        encode.lock(9, FileLock(0, 1, 2, 3)),
        encode.statx(9, ATTR, 1),
    ]
    for reply in replies:
        length, problem, unique = p.OUT_HEADER.unpack_from(reply)
        assert (length, unique) == (len(reply), 9)
        assert problem == (-errno.ENOENT if reply is replies[1] else 0)


def test_attributes_keep_times_before_1970_and_nanoseconds() -> None:
    fields = p.ATTR_REPLY.unpack(encode.attributes(1, ATTR, 30))
    assert fields[3] == 30
    assert fields[6:9] == (77, 5000, 10)
    assert fields[9:12] == (-1, 1_700_000_000, 1_600_000_000)
    assert fields[12:15] == (999_999_999, 7, 8)
    assert fields[15:19] == (ATTR.mode, 2, 3, 4)


def test_entry_carries_two_validities() -> None:
    fields = p.ENTRY_REPLY.unpack(encode.entry(1, ATTR, 7, 0))
    assert fields[3:9] == (77, 0, 7, 0, 0, 0)


def test_absent_entry_has_node_zero() -> None:
    fields = p.ENTRY_REPLY.unpack(encode.no_entry(1, 60))
    assert (fields[3], fields[5]) == (0, 60)


@pytest.mark.parametrize(
    ("major", "minor"), [(1, 3), (300, 70_000), (4095, 255), (8, 0), (0, 5)]
)
def test_device_numbers_survive_both_ways(major: int, minor: int) -> None:
    rdev = os.makedev(major, minor)
    assert encode.decode_dev(encode.encode_dev(rdev)) == rdev
    assert encode.encode_dev(rdev) < 1 << 32


@pytest.mark.parametrize("length", range(1, 20))
def test_lines_of_listings_are_padded_to_eight_bytes(length: int) -> None:
    line = DirEntry(3, b"n" * length, Ino(5), 8)
    for packed, head in (
        (encode.dirent(line), p.DIRENT.size),
        (encode.dirent_plus(line, ATTR), p.DIRENTPLUS.size),
        (encode.dirent_bare(line), p.DIRENTPLUS.size),
    ):
        assert len(packed) % 8 == 0
        assert packed[head : head + length] == b"n" * length
        assert not packed[head + length :].strip(b"\0")
        assert len(packed) - head - length < 8


# -- INIT ----------------------------------------------------------------------------

ALL = (1 << 43) - 1


def offer(minor: int, flags: int) -> bytes:
    low, high = flags & 0xFFFFFFFF, flags >> 32
    return p.INIT_IN.pack(7, minor, 131072, low) + high.to_bytes(4, "little")


def test_agreement_takes_only_what_both_want() -> None:
    agreed = session.negotiate(*session.offered(offer(45, ALL)), locks=True, acl=False)
    assert agreed.minor == 45
    assert agreed.max_write == 1 << 20
    for flag in (p.HAS_RESEND, p.PARALLEL_DIROPS, p.POSIX_LOCKS, p.FLOCK_LOCKS):
        assert agreed.has(flag)
    for flag in (p.WRITEBACK_CACHE, p.AUTO_INVAL_DATA, p.NO_OPEN_SUPPORT, p.DONT_MASK):
        assert not agreed.has(flag)


def test_agreement_with_an_old_kernel_asks_for_nothing_new() -> None:
    old = offer(31, ALL & ~p.INIT_EXT & ~p.MAX_PAGES)[: p.INIT_IN.size]
    agreed = session.negotiate(*session.offered(old), locks=False, acl=False)
    assert agreed.minor == 31
    assert agreed.max_write == 128 * 1024
    assert not agreed.has(p.HAS_RESEND)
    assert not agreed.has(p.POSIX_LOCKS)


def test_newer_kernels_are_answered_with_what_we_know() -> None:
    agreed = session.negotiate(*session.offered(offer(60, ALL)), locks=False, acl=False)
    assert agreed.minor == p.NEWEST_MINOR


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (8, 1), (6, 40)])
def test_kernels_out_of_reach_are_refused_with_a_way_out(
    major: int, minor: int
) -> None:
    with pytest.raises(session.Incompatible, match="binding=fusepy"):
        session.negotiate(major, minor, 0, 0, locks=False, acl=False)


def test_init_reply_splits_the_flags() -> None:
    agreed = session.negotiate(*session.offered(offer(45, ALL)), locks=True, acl=False)
    fields = p.INIT_REPLY.unpack(session.init_reply(3, agreed))
    assert fields[3:5] == (7, 45)
    assert fields[6] | fields[13] << 32 == agreed.flags
    assert fields[9] == 1 << 20
    assert fields[11] == 256


def test_agreement_survives_a_worker() -> None:
    agreed = Session(44, 1 << 39 | 5, 4096, 7)
    assert session.adopt(agreed.state()) == agreed


# -- counts ----------------------------------------------------------------------------


def test_lookups_are_counted_exactly() -> None:
    lookups = Lookups()
    lookups.add(Ino(5))
    lookups.add_all([Ino(5), Ino(6)])
    assert not lookups.forget(Ino(5), 1)
    assert lookups.knows(Ino(5))
    assert lookups.forget(Ino(5), 1)
    assert not lookups.knows(Ino(5))
    assert lookups.all() == [1, 6]


def test_root_is_always_known() -> None:
    assert Lookups().knows(Ino(1))


def test_nothing_is_unknown_after_taking_over() -> None:
    lookups = Lookups(exact=False)
    assert lookups.knows(Ino(99))
    assert lookups.forget(Ino(99), 3)


# -- connection -----------------------------------------------------------------------


def connection(adopted: Session | None = None) -> Connection:
    return Connection(MemoryVfs(), -1, Settings(), adopted)


def test_absence_is_not_for_ever_where_names_cannot_all_be_forgotten() -> None:
    assert connection(Session(43)).negative_valid_s == 1
    assert connection(Session(44)).negative_valid_s == encode.FOREVER_S


def test_setattr_is_not_for_ever_where_the_kernel_does_not_check() -> None:
    assert connection(Session(44)).setattr_valid_s == 0
    assert connection(Session(45)).setattr_valid_s == encode.FOREVER_S


def test_epoch_never_comes_back() -> None:
    shared = connection()
    seen = set()
    for _ in range(5):
        shared.raise_epoch()
        seen.add(shared.epoch)
    assert len(seen) == 5


def test_held_inodes_are_held_as_often_as_asked() -> None:
    shared = connection()
    with shared.holding(Ino(3), Ino(3)), shared.holding(Ino(3)):
        assert shared.is_held(Ino(3))
    assert not shared.is_held(Ino(3))


def test_recent_directories_are_kept_for_two_ticks() -> None:
    shared = connection()
    shared.recent[0].add(Ino(4))
    shared.tick()
    assert Ino(4) in shared.recent[1]
    shared.tick()
    assert not any(Ino(4) in part for part in shared.recent)


def test_table_lists_no_opcode_twice() -> None:
    from fusefs.bindings.kernel import control, files, inodes, names

    groups = [m.HANDLERS.keys() for m in (control, files, inodes, names)]
    every = list(itertools.chain(*groups))
    assert len(every) == len(set(every))
    unserved = set(Op) - set(every)
    assert unserved == {Op.RELEASEDIR, Op.BMAP, Op.IOCTL, Op.POLL}


def test_epoch_is_like_no_other_while_something_is_not_applied() -> None:
    """What is answered then is not valid for ever, whenever the fence goes down."""
    made = connection(Session(45))
    before = made.epoch
    made.gate.numbers[0] += 1
    closed = made.epoch
    assert closed not in (before, made.epoch)
    made.gate.reached(1)
    assert made.epoch not in (before, closed)
    assert made.epoch == made.epoch


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_what_most_requests_need_of_a_buffer_is_there(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that is being read when the worker is killed fails with EIO."""
    if kernel == "old":
        monkeypatch.setattr(channel, "_MADV_POPULATE_WRITE", 9999)
    size = 1 << 20
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    channel._make_resident(buffer, 64 << 10)
    where = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    there = (ctypes.c_ubyte * (size >> 12))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(where), ctypes.c_size_t(size), there) == 0
    assert [page & 1 for page in there[:17]] == [1] * 16 + [0]
