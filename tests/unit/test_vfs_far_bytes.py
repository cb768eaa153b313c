"""Operations on files whose bytes, and manifests, are all on a peer; and what happens
to a draft when the peer's version arrives below it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.errors import Unreachable
from fusefs.model.tx import Effects
from fusefs.vfs import VfsOptions
from fusefs.vfs.missing import ATTEMPTS
from fusefs.vfs.types import SetAttr
from tests.lib.local import Local
from tests.lib.pair import Pair, pair_of, random_bytes

KIB, MIB = 1 << 10, 1 << 20
MANY = 3 * ATTEMPTS
"""More than a request may repeat itself."""
PUNCH, KEEP_SIZE = 2, 1


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with pair_of(tmp_path) as made:
        yield made


def append(local: Local, path: str, data: bytes) -> None:
    """As `>>` does: the kernel gives the end it knows."""
    handle = local.open(path, os.O_WRONLY | os.O_APPEND)
    local.vfs.write(handle, local.stat(path).size, data, local.caller, appends=True)
    local.close(handle)


# -- many of them are needed at once --------------------------------------------------


def test_scattered_writes_into_a_file_that_is_elsewhere(pair: Pair) -> None:
    data = bytearray(random_bytes(MANY * 64 * KIB))
    log = pair.a.vfs.create(
        pair.a.split("/db")[0], b"db", 0o644, os.O_WRONLY | os.O_APPEND, pair.a.caller
    )  # chunks of 32 KiB
    pair.a.vfs.write(log.handle, 0, data, pair.a.caller, appends=True)
    pair.a.close(log.handle)
    pair.sync()
    handle = pair.b.open("/db")
    for at in range(0, len(data), 64 * KIB):
        pair.b.vfs.write(handle, at + 100, b"x" * 10)
        data[at + 100 : at + 110] = b"x" * 10
    pair.b.close(handle)
    assert pair.b.cat("/db") == data


def test_one_read_over_many_chunks_that_are_elsewhere(pair: Pair) -> None:
    pair.a.put("/log")
    pair.sync()
    append(pair.a, "/log", random_bytes(MANY * 32 * KIB))
    pair.sync()
    handle = pair.b.open("/log", os.O_RDONLY)
    assert pair.b.vfs.read(handle, 0, MANY * 32 * KIB) == pair.a.cat("/log")
    pair.b.close(handle)


def half_written(pair: Pair) -> int:
    """Of two chunks that A wrote B replaces the second; B's handle."""
    pair.a.put("/f", b"a" * MIB + b"b" * MIB)
    pair.sync()
    handle = pair.b.open("/f")
    pair.b.vfs.write(handle, MIB, b"B" * MIB)
    return handle


def test_a_read_over_a_draft_needs_nothing_that_the_draft_hides(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = half_written(pair)
    hidden = pair.b.vfs._files.handle(handle).file.view.chunk(1)
    get = pair.a.store.get

    def nobody_has(cid):  # type: ignore[no-untyped-def]
        if cid == hidden:
            raise Unreachable("nobody has it")
        return get(cid)

    monkeypatch.setattr(pair.a.store, "get", nobody_has)
    assert pair.b.vfs.read(handle, MIB - 5, 10) == b"aaaaaBBBBB"
    monkeypatch.undo()
    pair.b.close(handle)


def test_a_truncate_that_fails_is_not_done_later(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is what was written before it lost."""
    handle = half_written(pair)

    def nobody_has(cid):  # type: ignore[no-untyped-def]
        raise Unreachable("nobody has it")

    monkeypatch.setattr(pair.a.store, "get", nobody_has)
    with pytest.raises(Unreachable):
        pair.b.vfs.setattr(pair.b.walk("/f"), SetAttr(size=1000), pair.b.caller)
    monkeypatch.undo()
    pair.b.close(handle)
    assert pair.b.cat("/f") == b"a" * MIB + b"B" * MIB


def test_concurrent_appends_of_many_chunks_are_merged(pair: Pair) -> None:
    pair.a.put("/log", b"begin")
    pair.sync()
    pieces = [random_bytes(MANY * 32 * KIB, seed) for seed in (1, 2)]
    for local, piece in zip((pair.a, pair.b), pieces):
        append(local, "/log", piece)
    pair.sync()
    assert pair.a.vfs._appends.merge(pair.a.walk("/log"))
    pair.sync()
    for local in (pair.a, pair.b):
        text = local.cat("/log")
        assert len(text) == 5 + sum(map(len, pieces))
        assert all(piece in text for piece in pieces)


def test_a_merge_whose_bytes_cannot_be_had_is_tried_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise Unreachable("nobody has it")

    pair.a.put("/log", b"begin")
    pair.sync()
    for local in (pair.a, pair.b):
        append(local, "/log", random_bytes(200 * KIB, id(local)))
    appends, ino = pair.a.vfs._appends, pair.a.walk("/log")
    with monkeypatch.context() as cut:
        cut.setattr(pair.a.peers, "fetch", nobody)
        pair.tell(pair.b, pair.a)
        appends._merge_or_log(ino)
        assert appends._waiting == {ino}
    appends.retry()
    done = threading.Event()
    appends._later.submit(done.set)
    assert done.wait(30)
    assert len(pair.a.cat("/log")) == 5 + 400 * KIB


def test_seeking_data_goes_by_the_chunks_of_the_draft(pair: Pair) -> None:
    """A log has small chunks from its first write on, the published file none yet."""
    vfs, caller = pair.a.vfs, pair.a.caller
    opened = vfs.create(
        pair.a.split("/log")[0], b"log", 0o644, os.O_RDWR | os.O_APPEND, caller
    )
    vfs.write(opened.handle, 0, b"head", caller)
    vfs.setattr(opened.attr.ino, SetAttr(size=10 * MIB), caller, opened.handle)
    vfs.write(opened.handle, 10 * MIB, b"tail", caller)
    assert vfs.lseek(opened.handle, MIB, os.SEEK_DATA) == 10 * MIB
    assert vfs.lseek(opened.handle, 0, os.SEEK_HOLE) == 32 * KIB
    pair.a.close(opened.handle)


# -- copies that share chunks ---------------------------------------------------------


def test_fsync_of_a_copy_makes_the_shared_chunks_durable(pair: Pair) -> None:
    vfs, caller = pair.a.vfs, pair.a.caller
    target = pair.a.create("/target")
    vfs.fsync(target)
    source = pair.a.create("/source", random_bytes(4 * MIB))
    vfs.flush(source)
    assert vfs.copy_file_range(source, 0, target, 0, 4 * MIB, caller) == 4 * MIB
    vfs.fsync(target)
    assert not set(pair.a.store._durability._large)
    pair.a.close(target)
    pair.a.close(source)


def test_copy_onto_a_file_that_gets_other_chunks_meanwhile(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random_bytes(3 * MIB)
    pair.a.put("/source", data)
    pair.a.put("/target")
    pair.sync()
    source, target = pair.a.open("/source", os.O_RDONLY), pair.a.open("/target")
    append(pair.b, "/target", b"line\n")
    ranges = pair.a.vfs._ranges
    chunks = ranges._chunks

    def peer_is_faster(*words):  # type: ignore[no-untyped-def]
        found = chunks(*words)
        pair.tell(pair.b, pair.a)
        return found

    monkeypatch.setattr(ranges, "_chunks", peer_is_faster)
    done = 0
    while done < len(data):
        done += pair.a.vfs.copy_file_range(
            source, done, target, done, len(data) - done, pair.a.caller
        )
    pair.a.close(target)
    pair.a.close(source)
    assert pair.a.cat("/target") == data


# -- a peer's version below a draft ---------------------------------------------------


def test_write_behind_the_end_of_a_peers_shorter_version_stays(pair: Pair) -> None:
    pair.a.put("/f", random_bytes(4 * MIB))
    pair.sync()
    mine = pair.a.open("/f")
    pair.a.vfs.write(mine, 3 * MIB, b"PATCH")
    theirs = pair.b.open("/f", os.O_WRONLY | os.O_TRUNC)
    pair.b.vfs.write(theirs, 0, b"short")
    pair.b.close(theirs)
    pair.tell(pair.b, pair.a)
    pair.a.close(mine)
    shown = pair.a.cat("/f")
    assert shown == b"short".ljust(3 * MIB, b"\0") + b"PATCH"


def test_appends_that_come_while_the_worker_ends_are_left_to_others(
    pair: Pair,
) -> None:
    """The link to the node is open until all is published."""
    ino = pair.a.put("/log", b"start\n")
    pair.a.vfs._appends.merge_soon([ino])
    pair.a.vfs._appends.close()
    pair.a.vfs.tell_kernel(Effects(appends=[ino]))


def test_punching_to_the_end_leaves_what_a_peer_appends(pair: Pair) -> None:
    pair.a.put("/f", b"x" * 1000)
    pair.sync()
    mine = pair.a.open("/f")
    pair.a.vfs.fallocate(mine, PUNCH | KEEP_SIZE, 0, 1000)
    append(pair.b, "/f", b"B" * 500)
    pair.tell(pair.b, pair.a)
    pair.a.close(mine)
    assert pair.a.cat("/f") == bytes(1000) + b"B" * 500


def test_appends_longer_than_all_buffers_follow_a_peers(tmp_path: Path) -> None:
    with pair_of(tmp_path, VfsOptions(dirty_bytes=MIB)) as pair:
        pair.a.put("/log", b"begin")
        pair.sync()
        mine = pair.a.open("/log", os.O_WRONLY | os.O_APPEND)
        long = random.Random(1).randbytes(3 * MIB + 17)
        for at in range(0, len(long), 128 * KIB):
            part = long[at : at + 128 * KIB]
            pair.a.vfs.write(mine, 5 + at, part, pair.a.caller, appends=True)
        append(pair.b, "/log", b"theirs")
        pair.tell(pair.b, pair.a)
        pair.a.close(mine)
        assert pair.a.cat("/log") == b"begin" + b"theirs" + long
        assert pair.a.vfs.statistics().buffer_bytes == 0
        assert pair.a.problems() == []


def test_background_goes_on_after_any_failure(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it files that stay open are never published again."""
    tried = []

    def fails(age_s: float) -> None:
        tried.append(age_s)
        raise RuntimeError("a bug, or a full disk that nobody thought of")

    background = pair.a.vfs._background
    monkeypatch.setattr(background._writer, "publish_older", fails)
    monkeypatch.setattr("fusefs.vfs.background.TICK_S", 0.001)
    end_s = time.monotonic() + 30
    while len(tried) < 3 and time.monotonic() < end_s:
        time.sleep(0.01)
    assert len(tried) >= 3
