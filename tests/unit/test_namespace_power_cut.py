"""After a power cut no number of a transaction is used twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO, NodeId, Seq
from fusefs.namespace import life as module
from fusefs.namespace.namespace import Namespace

FILES = ("meta.db", "meta.db-wal")


class Machine:
    """A store whose machine loses power: what is on the disk is what was synced."""

    def __init__(self, directory: Path) -> None:
        self.boot = 0
        self._synced = directory / "synced"
        self._directory = directory / "store"
        self._directory.mkdir()
        Namespace.create(self._directory, NodeId(5)).close()

    def start(self) -> Namespace:
        node = Namespace.open(self._directory)
        node.life.mark_running()
        return node

    def sync(self) -> None:
        shutil.rmtree(self._synced, ignore_errors=True)
        self._synced.mkdir()
        for name in FILES:
            if (self._directory / name).exists():
                shutil.copyfile(self._directory / name, self._synced / name)

    def power_cut(self, node: Namespace) -> None:
        node.close()
        self.boot += 1
        for name in FILES:
            (self._directory / name).unlink(missing_ok=True)
            if (self._synced / name).exists():
                shutil.copyfile(self._synced / name, self._directory / name)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(module, "boot_id", lambda: f"boot {made.boot}")
    return made


def write(node: Namespace) -> Seq:
    tx = node.put_setting(b"key", b"value")
    assert tx is not None
    return tx.seq


def test_power_cuts_before_anything_is_synced_no_number_twice(
    machine: Machine,
) -> None:
    used = []
    for _ in range(4):
        node = machine.start()
        machine.sync()  # what the start notes; the writes after it are lost
        used += [write(node) for _ in range(3)]
        machine.power_cut(node)
    assert len(set(used)) == len(used)
    assert used == sorted(used)


def test_transaction_without_writes_after_a_power_cut_keeps_the_next_number(
    machine: Machine,
) -> None:
    node = machine.start()
    machine.sync()
    used = [write(node) for _ in range(3)]
    machine.power_cut(node)
    node = machine.start()
    with node.transaction() as t:
        assert t.entry(ROOT_INO, b"absent") is None
    assert write(node) not in used
    node.close()


def test_start_is_noted_on_disk_before_the_first_write(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Callable[..., None]] = []
    before = Namespace.sync

    def sync(self: Namespace) -> None:
        synced.append(before)
        before(self)

    monkeypatch.setattr(Namespace, "sync", sync)
    machine.start().close()
    assert synced


def test_a_copy_of_a_store_uses_none_of_its_numbers(
    machine: Machine, tmp_path: Path
) -> None:
    node = machine.start()
    machine.sync()
    used = [write(node) for _ in range(3)]
    node.close()
    for name in FILES:
        if (tmp_path / "synced" / name).exists():
            shutil.copyfile(tmp_path / "synced" / name, tmp_path / name)
    shutil.copyfile(tmp_path / "store/meta.db", tmp_path / "last.db")
    (tmp_path / "last.db").replace(tmp_path / "store/meta.db")
    node = Namespace.open(tmp_path / "store")
    assert node.life.mark_running()
    assert node.life.lost_after() == used[-1]
    assert write(node) not in used
    node.close()
    node = Namespace.open(tmp_path / "store")
    assert not node.life.mark_running()
    node.close()


def test_copies_used_at_different_times_use_different_numbers(tmp_path: Path) -> None:
    Namespace.create(tmp_path, NodeId(5)).close()
    used = []
    for day in range(3):
        copy = tmp_path / str(day)
        copy.mkdir()
        shutil.copyfile(tmp_path / "meta.db", copy / "meta.db")
        now_ns = (1_800_000_000 + day * 86_400) * 10**9
        node = Namespace.open(copy, clock=lambda now_ns=now_ns: now_ns)
        if day == 0:
            node.life.mark_running()
            node.close()
            shutil.copyfile(copy / "meta.db", tmp_path / "meta.db")
            continue
        assert node.life.mark_running()
        used.append(write(node))
        node.close()
    assert used[0] < used[1] < 1 << 51  # its epochs are 23 bits


@pytest.mark.parametrize("year", [-20_000, 0, 1, 9999])
def test_a_copy_is_used_whatever_the_clock_says(tmp_path: Path, year: int) -> None:
    Namespace.create(tmp_path, NodeId(5)).close()
    node = Namespace.open(tmp_path)
    node.life.mark_running()
    first = write(node)
    node.close()
    shutil.copyfile(tmp_path / "meta.db", tmp_path / "copy")
    (tmp_path / "copy").replace(tmp_path / "meta.db")
    node = Namespace.open(tmp_path)
    node.life._clock = lambda: year * 31_556_952 * 10**9
    assert node.life.mark_running()
    assert first < write(node) < 1 << 51
    node.close()


def test_a_file_is_told_from_its_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"x")
    shutil.copy2(one, other)
    before = module.file_id(one)
    assert before != module.file_id(other)
    one.write_bytes(b"changed")
    assert module.file_id(one) == before
    monkeypatch.setattr(module, "_libc", None)  # one without statx(2)
    assert module.file_id(one) == ""
