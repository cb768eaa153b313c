"""Unpublished writes of a killed worker: its successor has them, all or none of each.

The worker that dies is a vfs whose background thread does nothing and that is left
as it is; the next one is made over the same directory.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fusefs.errors import NoSpace, WritesLost
from fusefs.model.ids import Ino
from fusefs.store import gc
from fusefs.vfs import Vfs, VfsOptions, publish, regions, unlinked
from fusefs.vfs.types import SetAttr
from tests.lib.local import Local, replicate
from tests.lib.pair import pair_of

PUNCH, ZERO = 3, 16
MIB = 1 << 20


class Workers:
    """One store and one worker after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.options = VfsOptions(
            journal=directory / "drafts",
            unfinished=directory / "unfinished",
            writeback_s=1e9,
        )
        self.killed: list[Local] = []
        self.now = Local(directory, self.options)

    def kill(self) -> Local:
        """The present one does nothing any more; another takes over."""
        self.killed.append(self.now)
        self.now = Local(self.directory, self.options)
        return self.now

    def cut(self, chunk_log2: int) -> None:
        """From here on files have chunks of this size."""
        self.options = msgspec.structs.replace(self.options, chunk_log2=chunk_log2)
        self.kill()

    def collect(self) -> None:
        """Garbage, when the grace time of all that is there is over."""
        now = self.now
        roots = itertools.chain(now.vfs.live_roots(), now.namespace.live_roots())
        gc.collect(now.store, roots, now_s=time.time() + 2 * gc.GRACE_S)

    def adopt(self, handle: int, path: str) -> int:
        self.now.vfs.adopt_handle(handle, self.now.walk(path))
        return handle

    def close(self) -> None:
        problems = self.now.problems()
        self.now.close_all()
        for local in self.killed:
            local.vfs._background.stop()
            local.store.close()
            local.namespace.close()
        assert problems == []


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    made = Workers(tmp_path / "store")
    yield made
    made.close()


def test_writes_before_the_kill_are_there_and_close_publishes_them(
    workers: Workers,
) -> None:
    handle = workers.now.create("/f", b"before")
    workers.kill()
    workers.adopt(handle, "/f")
    now = workers.now
    assert now.vfs.read(handle, 0, 100) == b"before"
    now.vfs.write(handle, 6, b" after", now.caller)
    now.vfs.fsync(handle)
    now.close(handle)
    assert now.cat("/f") == b"before after"


def test_without_a_handle_the_writes_are_published_too(workers: Workers) -> None:
    workers.now.create("/f", b"alone")
    now = workers.kill()
    now.vfs.sync()
    assert now.vfs.statistics().dirty_files == 0
    assert now.cat("/f") == b"alone"


@pytest.mark.parametrize("seed", range(12))
def test_any_history_survives_any_number_of_kills(workers: Workers, seed: int) -> None:
    """Against a bytearray, with all that can be done to a file."""
    chance = random.Random(seed)
    handle = workers.now.create("/f")
    source = workers.now.create("/source", chance.randbytes(3 * MIB))
    workers.now.vfs.flush(source, 0)
    other = workers.now.read_all(source)
    model = bytearray()
    for _ in range(60):
        vfs, caller = workers.now.vfs, workers.now.caller
        at = chance.choice((0, chance.randrange(4 * MIB), len(model), MIB))
        size = chance.choice((1, 4096, 5000, 200_000, MIB, MIB + 7, 2 * MIB))
        what = chance.choice("wwwwwtzpcksf")
        if what == "w":
            data = chance.randbytes(size)
            assert vfs.write(handle, at, data, caller) == size
            _put(model, at, data)
        elif what == "t":
            vfs.setattr(workers.now.walk("/f"), _size(at), caller, handle)
            del model[at:]
            _put(model, at, b"")
        elif what in "zp":
            end = min(at + size, len(model))
            vfs.fallocate(handle, PUNCH if what == "p" else ZERO | 1, at, size)
            if at < end:
                model[at:end] = bytes(end - at)
        elif what == "c":
            place = at & ~(MIB - 1)
            done = 0
            while done < len(other):
                done += vfs.copy_file_range(
                    source, done, handle, place + done, len(other) - done, caller
                )
            _put(model, place, other)
        elif what == "s":
            vfs.fsync(handle)
        elif what == "f":
            vfs.flush(handle, 0)
        else:
            workers.kill()
            workers.adopt(handle, "/f")
            workers.adopt(source, "/source")
        if chance.random() < 0.2:
            assert workers.now.read_all(handle) == model
    workers.kill()
    workers.adopt(handle, "/f")
    assert workers.now.read_all(handle) == model
    workers.now.close(handle)
    assert workers.now.cat("/f") == model


def _put(model: bytearray, at: int, data: bytes) -> None:
    if len(model) < at:
        model.extend(bytes(at - len(model)))
    model[at : at + len(data)] = data


def _size(size: int) -> SetAttr:
    return SetAttr(size=size)


def test_appended_and_published_is_not_appended_again(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the commit and taking the mark away, after a power cut: the
    numbers of transactions are those of another epoch."""
    workers.now.namespace.life._set_meta("skip", 1)
    workers.now.put("/f", b"one\n")
    handle = workers.now.open("/f", os.O_WRONLY | os.O_APPEND)
    workers.now.vfs.write(handle, 4, b"two\n", workers.now.caller)
    marks = workers.now.vfs._files.journal.marks
    monkeypatch.setattr(marks, "end", lambda ino: None)
    workers.now.vfs.flush(handle, 0)
    now = workers.kill()
    now.vfs.sync()
    assert now.cat("/f") == b"one\ntwo\n"


def test_times_set_while_unpublished_survive(workers: Workers) -> None:
    handle = workers.now.create("/f", b"x")
    change = SetAttr(mtime_ns=10**18, atime_ns=10**18 + 1)
    workers.now.vfs.setattr(workers.now.walk("/f"), change, workers.now.caller, handle)
    workers.kill()
    workers.adopt(handle, "/f")
    workers.now.close(handle)
    attr = workers.now.stat("/f")
    assert (attr.mtime_ns, attr.atime_ns) == (10**18, 10**18 + 1)


def test_unlinked_file_keeps_its_writes(workers: Workers) -> None:
    workers.now.put("/f", b"old")
    handle = workers.now.open("/f")
    ino = workers.now.walk("/f")
    workers.now.vfs.unlink(Ino(1), b"f")
    workers.now.vfs.write(handle, 3, b" new", workers.now.caller)
    now = workers.kill()
    now.vfs.adopt_handle(handle, ino)
    assert now.vfs.read(handle, 0, 100) == b"old new"
    now.close(handle)


def test_what_lies_under_the_writes_to_an_unlinked_file_is_no_garbage(
    workers: Workers,
) -> None:
    """Long drafts of such files begin anew over what was stored, which no register
    names, nor does the row that the next worker finds."""
    data = random.Random(1).randbytes((unlinked.MOST_PATCHES + 1) << 16)
    workers.cut(16)
    handle = workers.now.create("/f", b"x")
    workers.now.vfs.fsync(handle)
    ino = workers.now.walk("/f")
    workers.now.vfs.unlink(Ino(1), b"f")
    for at in range(0, len(data), 1 << 16):
        workers.now.vfs.write(handle, at, data[at : at + (1 << 16)])
    workers.now.vfs.fsync(handle)
    now = workers.kill()
    now.vfs.adopt_handle(handle, ino)
    workers.collect()
    assert now.read_all(handle) == data


@pytest.mark.parametrize("kills", [1, 2])
def test_what_a_journal_begins_with_is_no_garbage(workers: Workers, kills: int) -> None:
    """Buffers ran out, and the chunk is another object since."""
    workers.cut(16)
    handle = workers.now.create("/f", b"a" * (1 << 16))
    workers.now.vfs.write(handle, 10, b"b" * 10)
    for _ in range(kills):
        workers.now.vfs._writer._publisher.spill(0)
        workers.collect()
        now = workers.kill()
    workers.adopt(handle, "/f")
    assert now.read_all(handle) == b"a" * 10 + b"b" * 10 + b"a" * ((1 << 16) - 20)


def test_record_cut_short_is_as_if_never_written(workers: Workers) -> None:
    handle = workers.now.create("/f", b"whole")
    drafts = workers.directory / "drafts"
    before = drafts.stat().st_size
    workers.now.vfs.write(handle, 5, b"x" * 5000, workers.now.caller)
    with drafts.open("r+b") as file:
        file.truncate(before + 3000)
    workers.kill()
    workers.adopt(handle, "/f")
    assert workers.now.vfs.read(handle, 0, 100) == b"whole"
    workers.now.close(handle)


def test_long_journal_is_written_anew(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "REWRITE_BYTES", 100_000)
    handle = workers.now.create("/f", b"")
    for turn in range(300):
        workers.now.vfs.write(
            handle, turn % 7 * 1000, b"%4d" % turn * 250, workers.now.caller
        )
    drafts = workers.directory / "drafts"
    assert drafts.stat().st_blocks * 512 < 600_000
    expected = workers.now.read_all(handle)
    workers.kill()
    workers.adopt(handle, "/f")
    assert workers.now.read_all(handle) == expected
    workers.now.close(handle)


def test_full_disk_makes_a_loss_that_is_told(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = workers.now.create("/f", b"first")

    def full(*_: object) -> int:
        raise OSError(28, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        workers.now.vfs.write(handle, 5, b"second", workers.now.caller)
    workers.now.vfs.write(handle, 11, b"third", workers.now.caller)
    workers.kill()
    workers.adopt(handle, "/f")
    with pytest.raises(WritesLost):
        workers.now.vfs.flush(handle, 0)
    workers.now.vfs.flush(handle, 0)
    workers.now.vfs.release(handle)


def test_base_changed_by_a_peer_meanwhile_both_stay(
    workers: Workers, tmp_path: Path
) -> None:
    peer = Local(tmp_path / "peer", root=False)
    workers.now.put("/f", b"1\n")
    handle = workers.now.open("/f", os.O_WRONLY | os.O_APPEND)
    replicate(workers.now, peer)
    _copy_objects(workers.now, peer)
    workers.now.vfs.write(handle, 2, b"mine\n", workers.now.caller)
    peer_handle = peer.open("/f", os.O_WRONLY | os.O_APPEND)
    peer.vfs.write(peer_handle, 2, b"theirs\n", peer.caller)
    peer.close(peer_handle)
    now = workers.kill()
    _copy_objects(peer, now)
    replicate(peer, now)
    now.vfs.sync()
    assert now.cat("/f") == b"1\ntheirs\nmine\n"
    peer.close_all()


@pytest.mark.parametrize("published", [False, True])
def test_append_that_was_not_answered_is_known_wherever_it_went(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    """Peers append, too: neither offset nor bytes tell whether it is there."""
    workers.now.put("/f", b"1\n")
    handle = workers.now.open("/f", os.O_WRONLY | os.O_APPEND)
    peer = Local(tmp_path / "peer", root=False)
    replicate(workers.now, peer)
    _copy_objects(workers.now, peer)
    peer_handle = peer.open("/f", os.O_WRONLY | os.O_APPEND)
    peer.vfs.write(peer_handle, 2, b"mine\n", peer.caller)  # the same line
    peer.close(peer_handle)
    for request, line in ((22, b"mine\n"), (24, b"more\n")):
        workers.now.vfs.write(
            handle, 2, line, workers.now.caller, appends=True, request=request
        )
    if published:  # killed before the journal said so
        marks = workers.now.vfs._files.journal.marks
        monkeypatch.setattr(marks, "end", lambda ino: None)
        workers.now.vfs.flush(handle, 0)
    now, ino = workers.kill(), workers.now.walk("/f")
    _copy_objects(peer, now)
    replicate(peer, now)
    now.vfs.sync()
    asked = [now.vfs.has_appended(ino, request) for request in (22, 24, 26)]
    assert asked == [True, True, False]
    assert now.vfs.has_appended(Ino(1), 22) is None
    if not published:
        assert now.cat("/f") == b"1\nmine\nmine\nmore\n"
    peer.close_all()


def test_requests_of_another_mount_say_nothing(workers: Workers) -> None:
    """Each mount numbers them anew."""
    handle = workers.now.create("/f")
    write = workers.now.vfs.write
    write(handle, 0, b"before\n", workers.now.caller, appends=True, request=22)
    workers.options = msgspec.structs.replace(workers.options, same_mount=False)
    workers.kill()
    workers.options = msgspec.structs.replace(workers.options, same_mount=True)
    now = workers.kill()
    assert now.vfs.has_appended(now.walk("/f"), 22) is False
    now.vfs.sync()
    assert now.cat("/f") == b"before\n"


def test_append_that_has_the_journal_written_anew_is_known(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "REWRITE_BYTES", 10_000)
    handle = workers.now.create("/f")
    for request in range(2, 200, 2):
        vfs = workers.now.vfs
        slots = vfs._files.journal.marks.live
        vfs.write(
            handle, 0, b"x" * 300, workers.now.caller, appends=True, request=request
        )
        if slots and vfs._files.journal.marks.live != slots:
            break
    now = workers.kill()
    assert now.vfs.has_appended(now.walk("/f"), request) is True
    now.vfs.sync()
    assert now.cat("/f") == b"x" * (150 * request)


def _copy_objects(source: Local, target: Local) -> None:
    for root, _, _ in filter(None, source.namespace.live_roots()):
        target.store.put(source.store.get(root))


def test_draft_that_cannot_be_written_anew_is_a_loss_not_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved behind a peer's append, it is not what its records say any more."""
    options = VfsOptions(
        journal=tmp_path / "drafts", unfinished=tmp_path / "marks", writeback_s=1e9
    )
    with pair_of(tmp_path, options) as pair:
        a, flags = pair.a, os.O_WRONLY | os.O_APPEND
        a.put("/log", b"0123456789\n")
        pair.sync()
        mine, theirs = a.open("/log", flags), pair.b.open("/log", flags)
        a.vfs.write(mine, 11, b"mine\n", a.caller, appends=True)
        pair.b.vfs.write(theirs, 11, b"t" * 49 + b"\n", pair.b.caller, appends=True)
        pair.b.close(theirs)
        pair.tell(pair.b, a)

        def full(*_: object, **__: object) -> None:
            raise NoSpace("the disk is full")

        with monkeypatch.context() as disk:
            disk.setattr(a.vfs._files.journal, "written", lambda *_: None)
            disk.setattr(a.store, "put", full)
            with pytest.raises(NoSpace):
                a.vfs.flush(mine)  # moves it, and fails
        draft = a.vfs._files.handle(mine).file.draft
        assert draft is not None
        a.vfs.write(mine, draft.size, b"more\n", a.caller, appends=True)
        a.vfs._background.stop()
        a.vfs = Vfs(a.namespace, a.store, a.peers, options)
        a.vfs.adopt_handle(mine, a.walk("/log"))
        with pytest.raises(WritesLost):
            a.vfs.fsync(mine)
        assert a.cat("/log") == b"0123456789\n" + b"t" * 49 + b"\n"
        a.vfs.release(mine)


def test_write_succeeds_though_its_journal_cannot(workers: Workers) -> None:
    handle = workers.now.create("/f", b"")
    workers.now.vfs.flush(handle)
    journal = workers.now.vfs._files.journal
    closed, journal._fd = journal._fd, os.open("/dev/full", os.O_RDWR)
    try:
        assert workers.now.vfs.write(handle, 0, b"hello") == 5
        assert workers.now.vfs.read(handle, 0, 9) == b"hello"
    finally:
        os.close(journal._fd)
        journal._fd = closed
    workers.now.close(handle)
    assert workers.now.cat("/f") == b"hello"


@pytest.mark.parametrize("how", ["killed", "upgraded"])
def test_the_other_half_of_an_append_is_waited_for_by_the_next_worker(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Another descriptor is closed before it comes."""
    monkeypatch.setattr(publish, "OTHER_HALF_S", 5.0)  # for a busy machine
    append = os.O_WRONLY | os.O_APPEND
    workers.now.put("/log", b"x" * 4090)
    handles = [workers.now.open("/log", append) for _ in range(2)]
    write, caller = workers.now.vfs.write, workers.now.caller
    write(handles[0], 4090, b"a line", caller, appends=True, request=22)
    if how == "upgraded":
        workers.now.vfs.close(makes_way=True)
    now = workers.kill()
    for handle in handles:
        workers.adopt(handle, "/log")
    rest = threading.Timer(
        0.05,
        lambda: now.vfs.write(
            handles[0], 4096, b" that goes on\n", caller, appends=True, request=24
        ),
    )
    rest.start()
    now.vfs.flush(handles[1])
    published = now.namespace.inode(now.walk("/log"))
    rest.join()
    assert published is not None and published.size == 4096 + len(" that goes on\n")
    for handle in handles:
        now.close(handle)
    assert now.cat("/log").endswith(b"xa line that goes on\n")
