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


def test_a_listing_that_the_kernel_forgot_is_not_known_any_more(
    sides: tuple[NodeFence, Gate],
) -> None:
    node, gate = sides
    gate.tells_listing(INO)
    told = gate.listing_told(INO)
    gate.tells_listing(INO)
    gate.listing_gone(INO, told)
    assert node.may_have_listed(INO)  # the second one came after the question
    gate.listing_gone(INO, gate.listing_told(INO))
    assert not node.may_have_listed(INO)
    gate.listing_gone(INO, gate.listing_told(INO))
    assert not node.may_have_listed(INO)
    gate.tells_listing(INO)
    assert node.may_have_listed(INO)


@pytest.fixture
def two_on_one_byte(monkeypatch: pytest.MonkeyPatch) -> tuple[Ino, Ino]:
    monkeypatch.setattr(fence, "_slot", lambda parent, name: 7)
    return INO, Ino(INO + 1)


def test_of_two_listings_on_one_byte_none_is_taken_away(
    sides: tuple[NodeFence, Gate], two_on_one_byte: tuple[Ino, Ino]
) -> None:
    node, gate = sides
    one, other = two_on_one_byte
    gate.tells_listing(one)
    assert not gate.listing_told(other)
    gate.listing_gone(other, gate.listing_told(other))
    assert node.may_have_listed(one)
    told = gate.listing_told(one)
    gate.tells_listing(other)
    for directory in two_on_one_byte:
        gate.listing_gone(directory, told)
        gate.listing_gone(directory, gate.listing_told(directory))
        assert node.may_have_listed(directory)


@pytest.mark.parametrize("listed_first", [False, True])
def test_an_absent_name_on_the_byte_of_a_listing_stays(
    sides: tuple[NodeFence, Gate], two_on_one_byte: tuple[Ino, Ino], listed_first: bool
) -> None:
    node, gate = sides
    if listed_first:
        gate.tells_listing(INO)
    gate.tells_absent(INO, b"name")
    gate.tells_listing(INO)
    gate.listing_gone(INO, gate.listing_told(INO))
    assert node.may_know_absent(INO, b"name")


def test_a_listing_of_the_worker_before_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "fence"
    Gate(map_file(path)).tells_listing(INO)
    gate = Gate(map_file(path))
    gate.tells_listing(INO)
    gate.listing_gone(INO, gate.listing_told(INO))
    assert NodeFence(map_file(path)).may_have_listed(INO)


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
