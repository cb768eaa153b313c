"""fsync, full disks and interrupts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from fusefs.errors import Corrupt, Interrupted, NoSpace
from fusefs.model.ids import ROOT_INO, ChunkId, NodeId
from fusefs.vfs import VfsOptions, publish
from fusefs.vfs.types import Caller, SetAttr
from tests.lib.local import Local, RecordingPeers, local_vfs, replicate

MIB = 1 << 20


class Syncs:
    """Counts what is made durable, and in which order."""

    def __init__(self, local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.objects: set[ChunkId] = set()
        store_sync, namespace_sync = local.store.sync, local.namespace.sync

        def of_store(cids: Iterable[ChunkId]) -> None:
            self.done.append("objects")
            self.objects = set(cids)
            store_sync(self.objects)

        def of_namespace() -> None:
            self.done.append("namespace")
            namespace_sync()

        monkeypatch.setattr(local.store, "sync", of_store)
        monkeypatch.setattr(local.namespace, "sync", of_namespace)


def test_fsync_makes_objects_durable_before_the_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_vfs(tmp_path / "s") as local:
        syncs = Syncs(local, monkeypatch)
        handle = local.create("/f", bytes(6) + os.urandom(2 * MIB))
        local.vfs.fsync(handle)
        assert syncs.done == ["objects", "namespace"]
        assert len(syncs.objects) == 4  # three chunks and the manifest's node
        assert local.store.statistics().unsynced == 0
        local.vfs.fsync(handle)
        assert syncs.done[2:] == ["objects"]
        assert syncs.objects == set()
        local.vfs.write(handle, 5, b"x")
        local.vfs.fsync(handle, datasync=True)
        assert syncs.done[3:] == ["objects", "namespace"]
        assert len(syncs.objects) == 2  # the chunk and the node
        local.close(handle)


def test_fsync_covers_what_was_written_before_the_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_vfs(tmp_path / "s") as local:
        local.put("/f", os.urandom(3 * MIB))
        syncs = Syncs(local, monkeypatch)
        handle = local.open("/f", os.O_RDONLY)
        local.vfs.fsync(handle)
        assert syncs.done == ["objects", "namespace"]
        assert len(syncs.objects) == 4
        local.close(handle)


def test_fsync_of_a_directory_syncs_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_vfs(tmp_path / "s") as local:
        syncs = Syncs(local, monkeypatch)
        local.mkdir("/d")
        handle = local.vfs.opendir(ROOT_INO)
        local.vfs.fsyncdir(handle)
        local.vfs.fsyncdir(handle)
        assert syncs.done == ["namespace"]
        local.vfs.releasedir(handle)


def test_sync_publishes_every_open_file(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s", VfsOptions(writeback_s=3600)) as local:
        handles = [local.create(f"/f{i}", b"data") for i in range(3)]
        local.vfs.sync()
        assert local.vfs.statistics().dirty_files == 0
        assert [local.namespace.inode(local.walk(f"/f{i}")).size for i in range(3)] == [  # type: ignore[union-attr]
            4
        ] * 3
        for handle in handles:
            local.close(handle)


def test_a_full_disk_refuses_the_write_and_loses_nothing(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s") as local:
        handle = local.create("/f", b"accepted")
        floor = local.store.space.min_free_bytes
        local.store.space.min_free_bytes = 1 << 60
        with pytest.raises(NoSpace):
            local.vfs.write(handle, 8, b"refused")
        with pytest.raises(NoSpace):
            local.vfs.fallocate(handle, 0, 0, MIB)
        with pytest.raises(NoSpace):
            local.vfs.flush(handle)
        assert local.read_all(handle) == b"accepted"
        local.vfs.setattr(local.walk("/f"), SetAttr(mode=0o600), local.caller)
        local.store.space.min_free_bytes = floor
        local.close(handle)
        assert local.cat("/f") == b"accepted"


class Slow(RecordingPeers):
    """A fetch that never ends, but for an interrupt."""

    def fetch(
        self,
        cids: Sequence[ChunkId],
        *,
        timeout_s: float,
        cancelled: Callable[[], bool] | None = None,
        hint: Sequence[NodeId] = (),
        ahead: Sequence[ChunkId] = (),
        small: bool = False,
    ) -> None:
        assert timeout_s == 30.0
        assert cancelled is not None and cancelled()
        raise Interrupted("interrupted")


def test_a_read_that_waits_can_be_interrupted(tmp_path: Path) -> None:
    with (
        local_vfs(tmp_path / "a") as a,
        local_vfs(tmp_path / "b", None, Slow(), root=False) as b,
    ):
        a.put("/f", os.urandom(100_000))
        replicate(a, b)
        handle = b.open("/f")
        with pytest.raises(Interrupted):
            b.vfs.read(handle, 0, 10, Caller(cancelled=lambda: True))
        b.close(handle)


def test_buffers_stay_within_their_budget(tmp_path: Path) -> None:
    options = VfsOptions(dirty_bytes=4 * MIB)
    with local_vfs(tmp_path / "s", options) as local:
        handles = [local.create(f"/f{i}") for i in range(30)]
        for i, handle in enumerate(handles):
            local.vfs.write(handle, 10, bytes([i]) * 300_000)
            assert local.vfs.statistics().buffer_bytes <= 6 * MIB
        for handle in handles:
            local.close(handle)
        for i in range(30):
            assert local.cat(f"/f{i}") == bytes(10) + bytes([i]) * 300_000


def unsynced(local: Local) -> set[ChunkId]:
    return set(local.store._durability._large)


def put_at_risk(local: Local) -> None:
    """A file that is durable is written anew, and that is not."""
    local.put("/f", os.urandom(MIB))
    local.vfs.sync()
    local.put("/f", os.urandom(MIB))


def test_fsync_of_one_file_makes_no_bytes_of_another_depend_on_luck(
    tmp_path: Path,
) -> None:
    """It makes the other's transaction durable, too: what that put in the place of
    durable bytes has to be."""
    with local_vfs(tmp_path / "s", VfsOptions(writeback_s=1e9)) as local:
        local.put("/db", os.urandom(2 * MIB))
        local.vfs.sync()
        assert unsynced(local) == set()
        changing = local.open("/db")
        local.vfs.write(changing, 4096, b"a page")
        local.close(changing)
        local.put("/new", os.urandom(MIB))  # has nothing to lose
        other = local.create("/other", b"x")
        local.vfs.fsync(other)
        assert unsynced(local) == {local.namespace.inode(local.walk("/new")).root}  # type: ignore[union-attr]
        local.close(other)


def test_fsync_makes_durable_what_was_renamed_over_something(tmp_path: Path) -> None:
    with local_vfs(tmp_path / "s", VfsOptions(writeback_s=1e9)) as local:
        local.put("/f", os.urandom(MIB))
        local.vfs.sync()
        local.put("/f.new", os.urandom(3 * MIB))
        local.vfs.rename(ROOT_INO, b"f.new", ROOT_INO, b"f")
        local.put("/other", b"x")
        handle = local.open("/other", os.O_RDONLY)
        local.vfs.fsyncdir()
        assert unsynced(local) == set()
        local.close(handle)


def test_background_checkpoints_sync_no_transaction_before_its_bytes(
    tmp_path: Path,
) -> None:
    with local_vfs(tmp_path / "s", VfsOptions(writeback_s=1e9)) as local:
        put_at_risk(local)
        assert unsynced(local)
        local.namespace.checkpoint()
        assert unsynced(local) == set()


def test_what_could_not_be_secured_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_vfs(tmp_path / "s", VfsOptions(writeback_s=1e9)) as local:
        put_at_risk(local)

        def broken(cids: object) -> None:
            raise Corrupt("a disk that fails")

        with monkeypatch.context() as patched:
            patched.setattr(local.store, "sync", broken)
            with pytest.raises(Corrupt):
                local.vfs.fsyncdir()
        local.vfs.fsyncdir()
        assert unsynced(local) == set()


def test_who_finds_nothing_at_risk_waits_for_who_took_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_vfs(tmp_path / "s", VfsOptions(writeback_s=1e9)) as local:
        put_at_risk(local)
        sync, begun, go_on = local.store.sync, threading.Event(), threading.Event()

        def slow(cids: Iterable[ChunkId]) -> None:
            begun.set()
            go_on.wait(10)
            sync(cids)

        monkeypatch.setattr(local.store, "sync", slow)
        first = threading.Thread(target=local.namespace.checkpoint)
        first.start()
        begun.wait(10)
        second = threading.Thread(target=local.vfs.fsyncdir)
        second.start()
        second.join(0.05)
        assert second.is_alive()
        go_on.set()
        for thread in (first, second):
            thread.join(10)
        assert unsynced(local) == set()


def test_what_is_stored_within_a_transaction_is_at_risk_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where others change the file again and again."""
    monkeypatch.setattr(publish, "OPTIMISTIC", 0)
    with local_vfs(tmp_path / "s", VfsOptions(writeback_s=1e9)) as local:
        local.put("/f", os.urandom(3 * MIB))
        local.vfs.sync()
        handle = local.open("/f")
        local.vfs.write(handle, 5, b"x")
        local.close(handle)
        assert unsynced(local)
        local.vfs.fsyncdir()
        assert unsynced(local) == set()
