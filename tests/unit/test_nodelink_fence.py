"""The memory that node and worker share, from both sides."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO, Ino
from fusefs.nodelink import fence
from fusefs.nodelink.fence import Gate, NodeFence, map_file

INO = Ino(0x7123_4567_89AB_CDEF)


@pytest.fixture
def sides(tmp_path: Path) -> tuple[NodeFence, Gate]:
    path = tmp_path / "fence"
    return NodeFence(map_file(path)), Gate(map_file(path))


def test_nothing_is_early_until_a_worker_tells(sides: tuple[NodeFence, Gate]) -> None:
    node, gate = sides
    assert not node.usable
    gate.tell()
    assert node.usable


def test_the_node_knows_what_the_kernel_was_told(
    sides: tuple[NodeFence, Gate],
) -> None:
    node, gate = sides
    assert node.may_know([ROOT_INO])
    assert not node.may_know([INO])
    gate.inodes[INO & fence.INO_MASK] = 1
    assert node.may_know([Ino(99), INO])
    assert not node.may_know_absent(INO, b"name")
    gate.tells_absent(INO, b"name")
    assert node.may_know_absent(INO, b"name")
    assert not node.may_have_listed(INO)
    gate.tells_listing(INO)
    assert node.may_have_listed(INO)


def test_what_was_told_outlives_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "fence"
    Gate(map_file(path)).inodes[INO & fence.INO_MASK] = 1
    Gate(map_file(path))
    assert NodeFence(map_file(path)).may_know([INO])


def test_the_gate_is_closed_until_what_was_fenced_is_told(
    sides: tuple[NodeFence, Gate],
) -> None:
    node, gate = sides
    assert not gate.closed
    node.put_up()
    assert gate.closed
    passed = threading.Event()

    def ask() -> None:
        gate.wait()
        passed.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert not passed.is_set()
    gate.reached(node.received)
    asking.join(10)
    assert passed.is_set() and not gate.closed


def test_each_fence_is_told_of_its_own(
    sides: tuple[NodeFence, Gate],
) -> None:
    node, gate = sides
    node.put_up()
    first = node.received
    node.put_up()
    gate.reached(first)
    assert gate.closed
    gate.reached(node.received)
    gate.wait()


def test_a_fence_that_is_taken_back_lets_go(sides: tuple[NodeFence, Gate]) -> None:
    node, gate = sides
    node.put_up()
    asking = threading.Thread(target=gate.wait)
    asking.start()
    node.take_back()
    asking.join(10)
    assert not asking.is_alive() and not gate.closed


def test_a_node_that_died_holds_nobody_up_for_ever(
    sides: tuple[NodeFence, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, gate = sides
    monkeypatch.setattr(fence, "LIMIT_S", 0.01)
    node.put_up()
    gate.wait()
    assert not gate.closed
