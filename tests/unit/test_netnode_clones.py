"""Two processes of one node are told from one after the other."""

from __future__ import annotations

from fusefs.model.ids import NodeId
from netnode.core.clones import BOOTS, TURNS, Clones

NODE, OTHER = NodeId(1), NodeId(2)


def met(clones: Clones, *boots: int) -> set[int]:
    """Those of the node that are taken for copies afterwards."""
    for boot in boots:
        clones.meet(NODE, boot)
    return {boot for boot in boots if clones.is_copy(NODE, boot)}


def test_a_node_that_starts_again_and_again_is_no_copy() -> None:
    assert met(Clones(), *range(1, 5 * BOOTS)) == set()


def test_one_process_that_is_connected_again_and_again_is_no_copy() -> None:
    assert met(Clones(), *[7] * 100) == set()


def test_what_a_process_said_before_it_ended_proves_nothing() -> None:
    """It may be read after its successor's, in any order."""
    clones = Clones()
    for boot in range(1, 10):
        assert (
            met(clones, boot, boot + 1, boot, boot + 1, boot, boot, boot + 1) == set()
        )


def test_of_two_that_take_turns_the_later_one_is_the_copy() -> None:
    clones = Clones()
    assert met(clones, 0, *(1, 2) * TURNS) == {2}
    assert not clones.is_copy(OTHER, 2)
    assert met(clones, 1, 2, 1, 2, 1, 2) == {2}, "and stays it"


def test_a_copy_that_starts_again_is_found_again() -> None:
    clones = Clones()
    met(clones, *(1, 2) * TURNS)
    assert met(clones, 3) == set()
    assert met(clones, *(1, 3) * TURNS) == {3}
