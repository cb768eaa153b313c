"""The vfs and the others: publishing, following, fetching, invalidating."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from fusefs.errors import Exists
from fusefs.model.ids import ROOT_INO, Ino
from fusefs.model.records import S_DIR
from fusefs.model.tx import Effects
from fusefs.namespace.rows import content_change
from fusefs.vfs import VfsOptions
from fusefs.vfs.files import File
from fusefs.vfs.types import SetAttr
from tests.lib.local import RecordingPeers, hear, local_vfs, replicate
from tests.lib.pair import random_bytes
from tests.lib.watched import Watched, watched_pair

MIB = 1 << 20


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Watched]:
    with watched_pair(tmp_path) as made:
        yield made


# -- names ----------------------------------------------------------------------------


def test_only_a_directory_that_was_gone_returns(pair: Watched) -> None:
    """The kernel takes another generation for another directory."""
    ino = pair.a.mkdir("/d")
    pair.sync()
    pair.a.vfs.rename(ROOT_INO, b"d", ROOT_INO, b"e")
    pair.sync()
    assert ("returned", ino) not in pair.kernel.told
    pair.b.vfs.rmdir(ROOT_INO, b"e")
    pair.a.put("/e/f", b"unseen by b")
    pair.sync()
    assert pair.kernel.told.count(("returned", ino)) == 1


def test_a_directory_that_a_peer_removed_returns(pair: Watched) -> None:
    ino = pair.a.mkdir("/d")
    pair.sync()
    pair.a.vfs.rmdir(ROOT_INO, b"d")
    pair.tell(pair.a, pair.b)
    assert ("deleted", ROOT_INO, ino, b"d") in pair.kernel.told
    late = pair.b.namespace
    with late.transaction() as t:
        t.link(ROOT_INO, b"d", ino, S_DIR)
    pair.b.vfs._commits.coherence.tell(t.effects)
    assert pair.kernel.told.count(("returned", ino)) == 1


@pytest.mark.parametrize("gone", ["before it is looked at", "before it is opened"])
def test_a_file_that_comes_and_goes_while_it_is_opened_is_made(
    pair: Watched, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """EEXIST is for who asked for it (O_EXCL)."""
    vfs, caller = pair.b.vfs, pair.b.caller
    create, made = vfs._tree.create, []

    def late(*args, **kwargs):  # type: ignore[no-untyped-def]
        if not made:
            made.append(pair.a.put("/log", b"theirs"))
            pair.sync()
            try:
                return create(*args, **kwargs)
            finally:
                pair.a.vfs.unlink(ROOT_INO, b"log")
                if gone == "before it is looked at":
                    pair.sync()
                else:
                    replicate(pair.a, pair.b)
        return create(*args, **kwargs)

    monkeypatch.setattr(vfs._tree, "create", late)
    opened = vfs.create(ROOT_INO, b"log", 0o644, os.O_CREAT | os.O_WRONLY, caller)
    vfs.write(opened.handle, 0, b"ours")
    pair.b.close(opened.handle)
    assert pair.b.cat("/log") == b"ours"
    with pytest.raises(Exists):
        vfs.create(ROOT_INO, b"log", 0o644, os.O_CREAT | os.O_EXCL, caller)


# -- publishing -----------------------------------------------------------------------


def test_flush_waits_for_peers_once_and_only_when_written(pair: Watched) -> None:
    barriers = pair.a_peers.barriers
    handle = pair.a.create("/f", b"x")
    assert barriers == []
    pair.a.vfs.flush(handle)
    pair.a.vfs.flush(handle)
    assert barriers == [pair.a_peers.published[-1][0].seq]
    pair.a.vfs.release(handle)
    pair.a.cat("/f")
    assert len(barriers) == 1
    pair.a.put("/empty")
    assert len(barriers) == 2
    pair.a.mkdir("/d")
    assert len(barriers) == 2


@pytest.mark.parametrize(("sync", "expected"), [("off", 0), ("all", 4)])
def test_sync_modes(tmp_path: Path, sync: str, expected: int) -> None:
    peers = RecordingPeers()
    with local_vfs(tmp_path / "s", VfsOptions(sync=sync), peers) as local:  # type: ignore[arg-type]
        local.mkdir("/d")  # 1
        ino = local.put("/f", b"x")  # create, flush
        local.vfs.setattr(ino, SetAttr(mode=0o600), local.caller)  # 1
        assert len(peers.barriers) == expected


def test_appends_are_published_as_such(pair: Watched) -> None:
    from fusefs.model.records import CONTENT, decode_content

    def ends() -> list[int]:
        """Where the pieces end that were appended to the oldest known version."""
        tx, _ = pair.a_peers.published[-1]
        (write,) = [w for w in tx.writes if w.key[:1] == CONTENT]
        return [end for _, _, end in decode_content(write.value).pieces]

    pair.a.put("/f", b"12345")
    assert ends() == []
    log = pair.a.open("/f", os.O_WRONLY | os.O_APPEND)
    pair.a.vfs.write(log, 5, b"678")
    pair.a.close(log)
    assert ends() == [8]
    handle = pair.a.open("/f")
    pair.a.vfs.write(handle, 8, b"behind the end, as it happens")
    pair.a.vfs.flush(handle)
    assert ends() == []
    pair.a.vfs.write(handle, 7, b"x")
    pair.a.vfs.flush(handle)
    assert ends() == []
    pair.a.close(handle)


def test_whole_files_written_apart_are_two_files_and_not_one_after_the_other(
    pair: Watched,
) -> None:
    """cp of two files to one name, and `>` over one that was there: neither is an
    append, although each begins where the empty file ended."""
    old = pair.a.put("/old", b"")
    pair.sync()
    for local, text in ((pair.a, b"from a"), (pair.b, b"and from b")):
        local.put("/new", text)
        handle = local.open("/old", os.O_WRONLY | os.O_TRUNC)
        local.vfs.write(handle, 0, text)
        local.close(handle)
    pair.sync()
    pair.sync()
    assert pair.a.walk("/old") == old
    for local in (pair.a, pair.b):
        names = [f"/{entry.name.decode()}" for entry in local.listing()]
        for stem in ("/new", "/old"):
            found = {local.cat(name) for name in names if name.startswith(stem)}
            assert found == {b"from a", b"and from b"}


def test_long_open_files_are_published_in_the_background(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s", VfsOptions(writeback_s=3600)) as local:
        handle = local.create("/log", b"line\n")
        assert local.vfs._writer.publish_older(60) == []
        row = local.namespace.inode(local.walk("/log"))
        assert row is not None and row.size == 0
        local.vfs._writer.publish_older(0)
        row = local.namespace.inode(local.walk("/log"))
        assert row is not None and row.size == 5
        local.close(handle)


# -- following ----------------------------------------------------------------------


def test_an_open_file_follows_a_peer(pair: Watched) -> None:
    pair.a.put("/f", b"one")
    pair.sync()
    handle = pair.b.open("/f")
    assert pair.b.vfs.read(handle, 0, 9) == b"one"
    writing = pair.a.open("/f")
    pair.a.vfs.write(writing, 3, b" two")
    pair.a.close(writing)
    pair.sync()
    assert pair.b.vfs.read(handle, 0, 9) == b"one two"
    assert pair.b.stat("/f").size == 7
    pair.b.close(handle)


def test_a_file_removed_by_a_peer_stays_readable_while_open(pair: Watched) -> None:
    ino = pair.a.put("/f", b"data")
    pair.sync()
    handle = pair.b.open("/f")
    pair.a.vfs.unlink(ROOT_INO, b"f")
    pair.sync()
    assert pair.b.listing() == []
    assert pair.b.vfs.read(handle, 0, 9) == b"data"
    assert pair.b.vfs.getattr(ino).nlink == 0
    pair.b.vfs.write(handle, 4, b"+")
    pair.b.close(handle)
    pair.b.vfs.forget(ino)
    assert pair.b.vfs.statistics().orphans == 0
    assert pair.b.listing() == []


def test_a_file_that_comes_back_while_its_name_goes_is_what_it_shows(
    pair: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer wrote to it, which is heard of before the removal has ended here."""
    ino = pair.a.put("/f", b"old")
    pair.sync()
    handle = pair.a.open("/f", os.O_WRONLY | os.O_TRUNC)
    pair.a.vfs.write(handle, 0, b"written")
    pair.a.close(handle)
    coherence = pair.b.vfs._commits.coherence
    committed = coherence.committed

    def overtaken(effects: Effects, own: Collection[tuple[Ino, bytes]] = ()) -> None:
        committed(effects, own)
        thread = threading.Thread(target=pair.tell, args=(pair.a, pair.b))
        thread.start()
        thread.join()

    monkeypatch.setattr(coherence, "committed", overtaken)
    pair.b.vfs.unlink(ROOT_INO, b"f")
    attr = pair.b.vfs.getattr(ino)
    assert (attr.nlink, attr.size) == (1, 7)
    assert pair.b.cat("/f") == b"written"


def test_unpublished_writes_are_carried_over_a_peers_version(pair: Watched) -> None:
    """Like two programs on one disk: bytes written last win, no other byte is lost."""
    base = random_bytes(3 * MIB)
    pair.a.put("/f", base)
    pair.sync()
    expected = bytearray(base)
    pair.b.cat("/f")
    mine = pair.b.open("/f")
    pair.b.vfs.write(mine, 10, b"from b")
    pair.b.vfs.write(mine, MIB + 7, b"B" * 100)
    pair.b.vfs._writer._publisher.spill(0)
    pair.b.vfs.write(mine, MIB + 300, b"later")
    theirs = pair.a.open("/f")
    pair.a.vfs.write(theirs, 100, b"from a")
    pair.a.vfs.write(theirs, MIB + 50, b"A" * 100)
    pair.a.vfs.write(theirs, 3 * MIB, b"appended by a")
    pair.a.close(theirs)
    pair.sync()
    assert pair.b.vfs.read(mine, 100, 6) == base[100:106]
    assert pair.b.stat("/f").size == len(base)
    pair.kernel.take()
    pair.b.close(mine)
    expected[100:106] = b"from a"
    expected[10:16] = b"from b"
    expected[MIB + 50 : MIB + 150] = b"A" * 100
    expected[MIB + 7 : MIB + 107] = b"B" * 100
    expected[MIB + 300 : MIB + 305] = b"later"
    expected += b"appended by a"
    assert pair.b.cat("/f") == expected
    pair.sync()
    assert pair.a.cat("/f") == expected
    pair.b.vfs._coherence.close()
    assert ("data", pair.b.walk("/f"), 0, 0) in pair.kernel.take()
    assert [e.name for e in pair.a.listing()] == [b"f"]


def test_appends_of_two_nodes_follow_each_other(pair: Watched) -> None:
    """Two logs into one file: no line is lost, also before ours is published."""
    pair.a.put("/log", b"begin\n")
    pair.sync()
    flags = os.O_WRONLY | os.O_APPEND
    mine, theirs = pair.b.open("/log", flags), pair.a.open("/log", flags)
    pair.b.vfs.write(mine, 6, b"from b\n")
    pair.b.vfs.write(mine, 13, b"more\n")
    pair.a.vfs.write(theirs, 6, b"a\n")
    pair.a.close(theirs)
    pair.sync()
    pair.b.close(mine)
    assert pair.b.cat("/log") == b"begin\na\nfrom b\nmore\n"
    pair.sync()
    assert pair.a.cat("/log") == pair.b.cat("/log")
    assert len(pair.a.listing()) == 1


def apart(pair: Watched) -> None:
    """Both append to one log, `a` first; neither has heard of it."""
    pair.a.put("/log", b"begin\n")
    pair.sync()
    for local, line in ((pair.a, b"a\n"), (pair.b, b"b\n")):
        handle = local.open("/log", os.O_WRONLY | os.O_APPEND)
        local.vfs.write(handle, 6, line, local.caller, appends=True)
        local.close(handle)


def test_an_append_that_comes_while_ours_is_published_is_merged(
    pair: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After looking for others, before looking at what the file shows."""
    apart(pair)
    appends = pair.b.vfs._appends
    seen: list[object] = []
    publisher = pair.b.vfs._writer._publisher
    merge_first = publisher._merge_first

    def late(file: File) -> bool:
        merged = merge_first(file)
        if not seen:
            monkeypatch.setattr(appends, "merge_soon", seen.append)
            pair.tell(pair.a, pair.b)
        return merged

    monkeypatch.setattr(publisher, "_merge_first", late)
    handle = pair.b.open("/log", os.O_WRONLY | os.O_APPEND)
    pair.b.vfs.write(handle, 8, b"more\n", pair.b.caller, appends=True)
    pair.b.close(handle)
    assert seen
    assert pair.b.cat("/log") == b"begin\na\nb\nmore\n"
    pair.sync()
    assert [e.name for e in pair.a.listing()] == [b"log"]


def test_times_set_while_appends_are_not_merged_yet_lose_none(
    pair: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart(pair)
    with monkeypatch.context() as busy:
        busy.setattr(pair.b.vfs._appends, "merge_soon", lambda inos: None)
        pair.tell(pair.a, pair.b)
    ino = pair.b.walk("/log")
    pair.b.vfs.setattr(ino, SetAttr(mtime_ns=10**18), pair.b.caller, None)
    assert pair.b.stat("/log").mtime_ns == 10**18
    assert [e.name for e in pair.b.listing()] == [b"log"]
    pair.b.vfs._appends.merge(ino)
    assert pair.b.cat("/log") == b"begin\na\nb\n"


@pytest.mark.parametrize("appends", [True, None])
def test_append_that_comes_behind_the_end_leaves_no_hole(
    pair: Watched, appends: bool | None
) -> None:
    """A shorter version of a peer may show for a moment, until the appends of both are
    merged: the kernel still knows the longer one, which it wrote itself."""
    pair.a.put("/log", b"long line\n")
    pair.sync()
    mine = pair.b.open("/log", os.O_WRONLY | os.O_APPEND)
    pair.a.vfs.setattr(pair.a.walk("/log"), SetAttr(size=5), pair.a.caller, None)
    pair.sync()
    pair.b.vfs.write(mine, 10, b"from b\n", appends=appends)
    pair.b.close(mine)
    assert pair.b.cat("/log") == b"long from b\n"


def test_a_handle_appends_as_each_write_says(pair: Watched) -> None:
    """O_APPEND may be set and cleared after the open."""
    pair.a.put("/log", b"first\n")
    pair.sync()
    mine = pair.b.open("/log", os.O_WRONLY)
    pair.a.vfs.write(pair.a.open("/log"), 6, b"of a\n")
    pair.a.vfs.sync()
    pair.sync()
    pair.b.vfs.write(mine, 6, b"of b\n", appends=True)
    pair.b.vfs.write(mine, 0, b"F", appends=False)
    pair.b.close(mine)
    assert pair.b.cat("/log") == b"First\nof a\nof b\n"


def test_log_is_kept_in_small_chunks(pair: Watched) -> None:
    """An append stores the last chunk anew: in a log that is little, whatever its
    size. A file written otherwise has large ones."""
    log, data = pair.b.put("/log"), pair.b.put("/data", b"x")
    mine = pair.b.open("/log", os.O_WRONLY | os.O_APPEND)
    for number in range(100):
        pair.b.vfs.write(mine, 0, b"%01023d\n" % number, appends=True)
        pair.b.vfs.flush(mine, 0)
    pair.b.close(mine)
    assert (row := pair.b.namespace.inode(log)) and row.chunk_log2 == 15
    assert (row := pair.b.namespace.inode(data)) and row.chunk_log2 == 20
    pair.sync()
    assert pair.a.cat("/log") == b"".join(b"%01023d\n" % n for n in range(100))


def test_kernel_forgets_all_of_a_file_whose_chunks_changed_size(pair: Watched) -> None:
    """The two versions cannot be compared chunk by chunk."""
    ino = pair.b.put("/f", b"0123")
    before = pair.b.namespace.inode(ino)
    assert before is not None
    same = before._replace(root=bytes(32))
    other = before._replace(root=bytes(32), chunk_log2=15)
    changes = [content_change(before, after) for after in (same, other)]
    assert [c.recut for c in changes if c] == [False, True]
    pair.kernel.take()
    hear(pair.b.vfs, Effects(contents=[changes[1]]))  # type: ignore[list-item]
    assert ("data", ino, 0, 0) in pair.kernel.take()


def test_bytes_placed_behind_the_end_do_not_move(pair: Watched) -> None:
    pair.a.put("/db", b"0123")
    pair.sync()
    mine, theirs = pair.b.open("/db"), pair.a.open("/db", os.O_WRONLY | os.O_APPEND)
    pair.b.vfs.write(mine, 8, b"page")
    pair.a.vfs.write(theirs, 4, b"456")
    pair.a.close(theirs)
    pair.sync()
    pair.b.close(mine)
    assert pair.b.cat("/db") == b"0123456\0page"


def test_unpublished_cut_wins_over_a_peers_append(pair: Watched) -> None:
    pair.a.put("/f", b"0123456789")
    pair.sync()
    mine = pair.b.open("/f")
    pair.b.vfs.setattr(pair.b.walk("/f"), SetAttr(size=4), pair.b.caller, mine)
    theirs = pair.a.open("/f")
    pair.a.vfs.write(theirs, 0, b"ABCDEFGHIJKL")
    pair.a.close(theirs)
    pair.sync()
    pair.b.close(mine)
    assert pair.b.cat("/f") == b"ABCD"


def test_rebase_over_another_chunk_size(tmp_path: Path) -> None:
    options = VfsOptions(chunk_log2=12)
    peers = RecordingPeers()
    with (
        local_vfs(tmp_path / "a") as a,
        local_vfs(tmp_path / "b", options, peers, root=False) as b,
    ):
        peers.remote = a.store
        a.put("/f")
        replicate(a, b)
        mine = b.open("/f")
        b.vfs.write(mine, 5000, b"from b" * 1000)
        theirs = a.open("/f")
        a.vfs.write(theirs, 0, b"a" * 20_000)
        a.close(theirs)
        replicate(a, b)
        b.close(mine)
        expected = bytearray(b"a" * 20_000)
        expected[5000:11_000] = b"from b" * 1000
        assert b.cat("/f") == expected


def test_a_file_emptied_by_who_only_reads_is_so_at_peers(pair: Watched) -> None:
    """No flush follows, and another open file keeps the last release away."""
    pair.a.put("/f", b"data")
    pair.sync()
    pair.a.open("/f", os.O_RDONLY)
    pair.a.close(pair.a.open("/f", os.O_RDONLY | os.O_TRUNC))
    pair.sync()
    assert pair.b.stat("/f").size == 0
