"""Numbers and settings that pass the types and would be a bug in the code behind."""

from __future__ import annotations

import msgspec
import pytest

from fusefs.model.hlc import MAX_HLC
from fusefs.model.ids import LOST_FOUND_INO, MAX_SEQ, ROOT_INO
from fusefs.model.records import (
    attrs_key,
    content_key,
    dirent_key,
    member_key,
    place_key,
    setting_key,
    unlinked_key,
    xattr_key,
)
from fusefs.model.tx import State, Tx, Write
from fusefs.namespace.tombstones import encode_horizon
from netnode.wire import messages as m
from netnode.wire.frames import ProtocolError, pack
from netnode.wire.session import Phase, Session, hello_frame

CLUSTER = b"c" * 16
MAX63 = (1 << 63) - 1
BEYOND = 1 << 63
HUGE = (1 << 64) - 1
OK_RANGE = [HUGE, 1, 0, MAX63, 4711]
pack_value = msgspec.msgpack.encode


def received(message: object) -> None:
    """Raises ProtocolError; then the session is closed."""
    session = Session(CLUSTER)
    session.feed(hello_frame(m.Hello(1, 1, CLUSTER, 5, "five", "control", 1234)))
    try:
        session.feed(pack(pack_value(message)))
    except ProtocolError:
        assert session.phase is Phase.CLOSED
        raise


def value(key: bytes, data: object, hlc: int = 77 << 16) -> m.Live:
    data = data if isinstance(data, bytes) else pack_value(data)
    return m.Live((Tx(5, 2, 1, hlc, (Write(key, (), data),)),))


def state(context: list[int], sibling: list[object]) -> m.States:
    encoded = pack_value([context, [sibling]])
    return m.States((State(dirent_key(1, b"n"), encoded),))


ENTRY = pack_value([99, 8])
CONTENT = [1, 1, 5, b"x" * 32, 20, [[5, 1]], [3, b""], [[7, 5, 3]]]
REPLICAS, HORIZON = setting_key(b"replicas"), setting_key(b"horizon")


@pytest.mark.parametrize(
    "message",
    [
        [32, 1, [MAX63, False], OK_RANGE, True],
        [35, [1, True], [0, 2, 5, 5, 0], MAX_SEQ],
        [33, 1, False, OK_RANGE],
        [36, [[[7, False], OK_RANGE]], [1, 2]],
        [38, 1, dirent_key(MAX63, b"n"), -1],
        [6, [[5, MAX_SEQ]]],
        value(dirent_key(MAX63, b"n"), [MAX63, 12], MAX_HLC),
        value(attrs_key(9), [0o140777, (1 << 32) - 1, 0, -MAX63, 1, 1, MAX63, -1, 9]),
        value(content_key(9), CONTENT),
        value(content_key(9), [1, 1, MAX63, b"", 12]),
        value(place_key(9), [1, b"name"]),
        value(unlinked_key(9), [1, b"name", [[5, 1]]]),
        value(member_key(9), ["n" * 1024, ["n" * 1024] * 64]),
        value(REPLICAS, 1),
        value(REPLICAS, 100),
        value(REPLICAS, b""),
        value(HORIZON, encode_horizon({5: 1}, {5: 2})),
        value(HORIZON, [[[5, 1]], [], "a newer field"]),
        value(setting_key(b"newer"), b"\xc1"),
        state([5, 1], [5, 2, MAX_HLC, ENTRY]),
    ],
    ids=repr,
)
def test_what_honest_nodes_say_arrives(message: object) -> None:
    received(message)


@pytest.mark.parametrize("ino", [-1, 0, BEYOND, HUGE])
def test_a_number_that_is_no_inode_ends_the_session(ino: int) -> None:
    for message in (
        [32, 1, [ino, False], OK_RANGE, True],
        [35, [ino, False], [1, 2, 0, 5, 1], 0],
        [36, [[[ino, False], OK_RANGE]], []],
        [37, 1, [ino, True], OK_RANGE],
        value(dirent_key(1, b"n"), [ino, 8]),
        value(place_key(9), [ino, b"name"]),
        value(unlinked_key(9), [ino, b"name"]),
    ):
        with pytest.raises(ProtocolError):
            received(message)
    if ino >= 0:
        for key in (dirent_key(ino, b"n"), attrs_key(ino), content_key(ino)):
            with pytest.raises(ProtocolError):
                received(value(key, b""))
        with pytest.raises(ProtocolError):
            received([38, 1, dirent_key(ino, b"n"), 0])


@pytest.mark.parametrize(
    "bad",
    [[1, 9, 0, 5, 1], [1, 1, 9, 5, 1], [1, 1, -5, 5, 1], [1, 1, 0, BEYOND, 1]]
    + [[-1, 1, 0, 5, 1], [1, -1, 0, 5, 1], [1, 1, 0, 5, -1], [1, 1, 0, 5, 1 << 32]],
    ids=repr,
)
def test_a_range_no_kernel_asks_for_ends_the_session(bad: list[int]) -> None:
    for message in (
        [32, 1, [5, False], bad, True],
        [33, 1, False, bad],
        [35, [5, False], bad, 0],
        [36, [[[5, False], bad]], []],
        [37, 1, [5, False], bad],
    ):
        with pytest.raises(ProtocolError):
            received(message)


@pytest.mark.parametrize("hlc", [-4, MAX_HLC + 1, BEYOND, HUGE])
def test_a_stamp_out_of_range_ends_the_session(hlc: int) -> None:
    for message in (
        value(dirent_key(1, b"n"), ENTRY, hlc),
        state([], [5, 2, hlc, ENTRY]),
        [3, 1, {}, b"", hlc, True],
        value(attrs_key(9), [0o100644, 0, 0, 1, hlc, 1]),
        value(content_key(9), [*CONTENT[:7], [[hlc, 5, 3]]]),
    ):
        with pytest.raises(ProtocolError):
            received(message)


@pytest.mark.parametrize(
    "message",
    [
        [35, [7, False], [1, 2, 0, 5, 1], -5],
        [35, [7, False], [1, 1, 0, 5, 1], 5],
        [32, 1, [7, False], [1, 2, 0, 5, 1], True],
        value(member_key(9), ["nine", ["n:1"] * 65]),
        value(member_key(9), ["nine", ["n" * 1025]]),
        value(member_key(9), ["n" * 1025, []]),
        [6, [[-1, -1]]],
        [6, [[5, HUGE]]],
        [6, [[5, MAX_SEQ + 1]]],
        [7, 1, {5: MAX_SEQ + 1}],
        [8, 1, {}, [], {5: MAX_SEQ + 1}, True, {}],
        [8, 1, {}, [], {}, True, {5: MAX_SEQ + 1}],
        m.Live((Tx(5, MAX_SEQ + 1, 1, 1, ()),)),
        value(content_key(9), [1, 1, 5, b"x" * 32, 20, [[5, MAX_SEQ + 1]]]),
        [36, [], [-1]],
        [38, 1, b"D" + bytes(9), 0],
        [38, 1, dirent_key(1, b"a/b"), 0],
        [38, 1, attrs_key(12) + b"n", 0],
        [38, 1, dirent_key(1, b"n"), -2],
        value(dirent_key(1, b".."), ENTRY),
        value(dirent_key(1, b"n"), [9, 16]),
        value(dirent_key(1, b"n"), [9, 0]),
        value(xattr_key(9, b"user.a\0b"), b"\1x"),
        value(attrs_key(9), [0o644, 0, 0, 1, 1, 1]),
        value(attrs_key(9), [0xFFFF, 0, 0, 1, 1, 1]),
        value(attrs_key(ROOT_INO), [0o100644, 0, 0, 1, 1, 1]),
        value(attrs_key(LOST_FOUND_INO), [0o140644, 0, 0, 1, 1, 1]),
        value(attrs_key(9), [HUGE, 0, 0, 1, 1, 1]),
        value(attrs_key(9), [0o100644, -1, 0, 1, 1, 1]),
        value(attrs_key(9), [0o100644, 0, 1 << 32, 1, 1, 1]),
        value(attrs_key(9), [0o100644, 0, 0, BEYOND, 1, 1]),
        value(content_key(9), [1, 1, HUGE, b"x" * 32, 20]),
        value(content_key(9), [1, 1, -1, b"x" * 32, 20]),
        value(content_key(9), [1, 1, 5, b"x" * 32, 9999]),
        value(content_key(9), [1, 1, 5, b"x" * 31, 20]),
        value(content_key(9), [BEYOND, 1, 5, b"x" * 32, 20]),
        value(content_key(9), [1, 1, 5, b"x" * 32, 20, [[5, -1]]]),
        value(place_key(9), [1, b"a/b"]),
        value(place_key(9), b""),
        value(unlinked_key(9), b""),
        value(attrs_key(9), b""),
        value(content_key(9), b""),
        value(member_key(9), b""),
        value(unlinked_key(9), [1, b""]),
        value(REPLICAS, b"\xc1"),
        value(REPLICAS, 0),
        value(REPLICAS, 101),
        value(REPLICAS, "three"),
        value(HORIZON, b"\xc1"),
        value(HORIZON, [[[5, HUGE]], []]),
        value(HORIZON, [[[5, 1]]]),
        m.Live((Tx(5, 2, 1, 1, (Write(dirent_key(1, b"n"), (-1, -1), ENTRY),)),)),
        state([-1, 5], [5, 2, 1, ENTRY]),
        state([5, HUGE], [5, 2, 1, ENTRY]),
        state([], [5, MAX_SEQ + 1, 1, ENTRY]),
    ],
    ids=repr,
)
def test_a_value_out_of_range_ends_the_session(message: object) -> None:
    with pytest.raises(ProtocolError):
        received(message)
