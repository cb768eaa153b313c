"""Mode and owner that are set while there are unpublished writes: shown at once, with
peers in the transaction of the data, and kept through a kill."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.model.records import ATTRS, CONTENT
from fusefs.vfs import VfsOptions
from fusefs.vfs.killpriv import CAPABILITY
from fusefs.vfs.types import Attr, SetAttr
from tests.lib.local import Local, RecordingPeers, local_vfs


@pytest.fixture
def peers() -> RecordingPeers:
    return RecordingPeers()


@pytest.fixture
def local(tmp_path: Path, peers: RecordingPeers) -> Iterator[Local]:
    with local_vfs(tmp_path / "a", None, peers) as made:
        yield made


def change(local: Local, path: str, **what: int) -> Attr:
    return local.vfs.setattr(local.walk(path), SetAttr(**what), local.caller)


def shown(attr: Attr) -> tuple[int, int, int]:
    return stat.S_IMODE(attr.mode), attr.uid, attr.gid


def kinds(peers: RecordingPeers) -> list[set[bytes]]:
    return [{w.key[:1] for w in tx.writes} for tx, _ in peers.published]


def test_they_show_at_once_and_travel_with_the_data(
    local: Local, peers: RecordingPeers
) -> None:
    handle = local.create("/f", b"data", 0o600)
    before = len(peers.published)
    assert shown(change(local, "/f", mode=0o640)) == (0o640, 1000, 1000)
    assert shown(change(local, "/f", uid=7, gid=8)) == (0o640, 7, 8)
    assert shown(local.stat("/f")) == (0o640, 7, 8)
    assert len(peers.published) == before
    local.close(handle)
    assert kinds(peers)[before:] == [{ATTRS, CONTENT}]
    assert shown(local.stat("/f")) == (0o640, 7, 8)


def test_what_does_not_differ_is_not_written(
    local: Local, peers: RecordingPeers
) -> None:
    """tar gives root's files to root again."""
    handle = local.create("/f", b"data", 0o600)
    then = local.stat("/f").ctime_ns
    change(local, "/f", uid=1000, gid=1000)
    change(local, "/f", mode=0o644)
    change(local, "/f", mode=0o600)
    assert local.stat("/f").ctime_ns > then
    local.close(handle)
    assert kinds(peers)[-1] == {CONTENT}


def test_with_sync_all_each_change_is_a_transaction(
    tmp_path: Path, peers: RecordingPeers
) -> None:
    options = VfsOptions(sync="all")
    with local_vfs(tmp_path / "a", options, peers) as local:
        handle = local.create("/f", b"data")
        before = len(peers.published)
        change(local, "/f", mode=0o600)
        assert kinds(peers)[before:] == [{ATTRS}]
        local.close(handle)


def test_a_write_takes_set_id_bits_away_that_wait(local: Local) -> None:
    handle = local.create("/f", b"data")
    change(local, "/f", mode=0o6755)
    local.vfs.write(handle, 0, b"more", local.caller, True)
    assert stat.S_IMODE(local.stat("/f").mode) == 0o755
    local.close(handle)
    assert stat.S_IMODE(local.stat("/f").mode) == 0o755


def test_chown_takes_set_id_bits_away_that_wait(local: Local) -> None:
    handle = local.create("/f", b"data")
    change(local, "/f", mode=0o4755)
    assert shown(change(local, "/f", uid=5)) == (0o755, 5, 1000)
    local.close(handle)
    assert shown(local.stat("/f")) == (0o755, 5, 1000)


def test_chown_takes_a_capability_and_waiting_bits_away(local: Local) -> None:
    handle = local.create("/f", b"data")
    local.vfs.setxattr(local.walk("/f"), CAPABILITY, b"cap", 0, local.caller)
    change(local, "/f", mode=0o4755)
    assert shown(change(local, "/f", uid=5)) == (0o755, 5, 1000)
    assert local.namespace.xattr(local.walk("/f"), CAPABILITY) is None
    local.close(handle)
    assert shown(local.stat("/f")) == (0o755, 5, 1000)


def test_an_unlinked_file_has_them_too(local: Local) -> None:
    handle = local.create("/f", b"data")
    ino = local.walk("/f")
    change(local, "/f", mode=0o600)
    parent, name = local.split("/f")
    local.vfs.unlink(parent, name)
    assert shown(local.vfs.getattr(ino))[0] == 0o600
    local.vfs.setattr(ino, SetAttr(mode=0o444), local.caller)
    assert shown(local.vfs.getattr(ino))[0] == 0o444
    local.vfs.flush(handle, 0)
    assert shown(local.vfs.getattr(ino))[0] == 0o444
    local.vfs.release(handle)


def test_a_file_without_a_name_gets_one_with_them(local: Local) -> None:
    opened = local.vfs.tmpfile(local.walk("/"), 0o600, os.O_RDWR, local.caller)
    local.vfs.write(opened.handle, 0, b"data", local.caller)
    local.vfs.setattr(opened.attr.ino, SetAttr(mode=0o640), local.caller)
    local.vfs.link(opened.attr.ino, local.walk("/"), b"f")
    local.close(opened.handle)
    assert shown(local.stat("/f"))[0] == 0o640


@pytest.mark.parametrize("rewritten", [False, True])
def test_a_kill_does_not_take_them(tmp_path: Path, rewritten: bool) -> None:
    (tmp_path / "a").mkdir()
    options = VfsOptions(
        journal=tmp_path / "drafts",
        unfinished=tmp_path / "unfinished",
        writeback_s=1e9,
    )
    killed = Local(tmp_path / "a", options)
    handle = killed.create("/f", b"data", 0o600)
    change(killed, "/f", mode=0o4711, gid=3)
    if rewritten:
        draft = killed.vfs._files.handle(handle).file.draft
        assert draft is not None and draft.log is not None
        draft.log.rewrite(draft)
    with local_vfs(tmp_path / "a", options) as now:
        assert shown(now.stat("/f"))[2] == 3
        mode = stat.S_IMODE(now.stat("/f").mode)
        assert mode == stat.S_IMODE(killed.stat("/f").mode)
        now.vfs.sync()
        assert stat.S_IMODE(now.stat("/f").mode) == mode
        assert now.cat("/f") == b"data"
    killed.vfs._background.stop()
    killed.store.close()
    killed.namespace.close()
