"""What a peer sends that this node could not live with is not taken in, not in part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.errors import Unacceptable
from fusefs.model.ids import MAX_OWN_SEQ, MAX_SEQ, ROOT_INO, NodeId, Seq
from fusefs.model.records import S_REG, Member, dirent_key, encode_value
from fusefs.model.register import Register, Sibling, encode_register
from fusefs.model.tx import State, Tx, Write
from fusefs.model.vector import MAX_NODES
from fusefs.namespace.namespace import Namespace

ME, OTHER = NodeId(5), NodeId(6)
ENTRY = encode_value([99, S_REG])


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    namespace = Namespace.create(tmp_path, ME)
    yield namespace
    namespace.close()


def goes_on(namespace: Namespace, before: dict[NodeId, Seq]) -> None:
    """Nothing was taken, and what is done here next has a number others take."""
    assert namespace.vector() == before
    assert namespace.entry(ROOT_INO, b"n") is None
    tx = namespace.put_member(ME, Member("me", ()))
    assert tx is not None and tx.seq <= MAX_SEQ


def test_numbers_of_ours_that_leave_none_for_what_follows_are_refused(
    namespace: Namespace,
) -> None:
    before, far = namespace.vector(), Seq(MAX_OWN_SEQ + 1)
    with pytest.raises(Unacceptable):
        namespace.apply_states([], {ME: far})
    write = Write(dirent_key(ROOT_INO, b"n"), (), ENTRY)
    with pytest.raises(Unacceptable):
        namespace.apply([Tx(ME, far, before[ME], 1, (write,))])
    goes_on(namespace, before)


def test_what_was_lost_here_is_taken_back_and_gone_on_from(
    namespace: Namespace,
) -> None:
    namespace.apply_states([], {ME: MAX_OWN_SEQ})
    tx = namespace.put_member(ME, Member("me", ()))
    assert tx is not None and MAX_OWN_SEQ < tx.seq <= MAX_SEQ


def test_more_nodes_than_a_message_names_are_refused(namespace: Namespace) -> None:
    before = namespace.vector()
    many = {NodeId(n): Seq(1) for n in range(100, 101 + MAX_NODES)}
    siblings = tuple(Sibling(node, Seq(1), 1, ENTRY) for node in many)
    state = State(dirent_key(ROOT_INO, b"n"), encode_register(Register({}, siblings)))
    for states, advance, target in (
        ([], many, {}),
        ([], {}, many),
        ([state], {}, {}),
    ):
        with pytest.raises(Unacceptable):
            namespace.apply_states(states, advance, target)
    goes_on(namespace, before)
