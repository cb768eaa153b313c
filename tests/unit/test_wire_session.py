"""What a session lets through, and what ends it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.model.hlc import latest
from fusefs.model.ids import chunk_id
from fusefs.model.records import Dirent, dirent_key, encode_value
from fusefs.model.register import Register, Sibling, encode_register
from fusefs.model.tx import Body, State, Tx, Write
from fusefs.nodelink.ranges import UNLOCK, HeldLock, LockKey, Range
from netnode.wire import messages as m
from netnode.wire.frames import ProtocolError, pack
from netnode.wire.messages import encode
from netnode.wire.session import Phase, Session, agreed_version, hello_frame

CLUSTER = b"c" * 16
CID = chunk_id(b"x")
KEY = dirent_key(1, b"name")
VALUE = encode_value(Dirent(99, 8))
TX = Tx(5, 2, 1, 77 << 16, (Write(KEY, (5, 1), VALUE),))
STATE = State(KEY, encode_register(Register({5: 2}, (Sibling(5, 2, 77, VALUE),))))


def hello(**changes: object) -> m.Hello:
    base = m.Hello(1, 1, CLUSTER, 5, "five", "control", 1234)
    return msgspec.structs.replace(base, **changes)


def opened(channel: str = "control") -> Session:
    session = Session(CLUSTER)
    session.feed(hello_frame(hello(channel=channel)))
    assert session.phase is Phase.OPEN
    return session


LOCK = LockKey(7, True)
RANGE = Range((1 << 64) - 1, 1, 0, (1 << 63) - 1, 4711)
CONTROL = [
    m.Ping(1, {5: 2}, b"d" * 16),
    m.Pong(1),
    m.Live((TX,), (Body(CID, b"x"),)),
    m.Live((TX,), (Body(CID, b"xy", 100, chunk_id(b"y"), ((0, 1), (99, 1))),)),
    m.Ack(((5, 2),)),
    m.Want(1, {5: 2}),
    m.Delta(1, {5: 1}, (STATE,), {5: 2}, True, {5: 2}),
    m.Delta(1, None, (), {}, False),
    m.Links((5, 6)),
    m.AskBuckets(),
    m.Buckets((b"d" * 16,) * 256),
    m.AskKeys(7, b"after"),
    m.BucketKeys(7, ((KEY, b"h" * 16),), True),
    m.AskStates((KEY,)),
    m.States((STATE,)),
    m.LockAsk(1, LOCK, RANGE, True),
    m.LockAnswer(1, False, RANGE, False),
    m.LockCancel(1),
    m.LockRelease(LOCK, Range(1, UNLOCK, 0, 9)),
    m.LockAssert((HeldLock(LOCK, RANGE),)),
    m.LockTest(1, LOCK, RANGE),
    m.Reserve(1, KEY),
    m.Reserved(1, True),
    m.Bye("enough"),
]
BULK = [
    m.Get((CID,)),
    m.Get((CID,), ((CID, chunk_id(b"y"), 65536),)),
    m.NoChunk((CID,)),
    m.CancelGet((CID,)),
    m.Have(1, (CID,), True),
    m.Held(1, (CID,)),
    m.Held(1, (), ((CID, chunk_id(b"y"), 0),)),
    m.Patch(CID, chunk_id(b"y"), 0, 100, ()),
    m.Stored(CID, "full"),
    m.Ping(1),
]


@pytest.mark.parametrize("message", CONTROL, ids=lambda v: type(v).__name__)
def test_control_message_arrives_as_it_was_sent(message: m.AnyMessage) -> None:
    (received,) = opened().feed(pack(encode(message)))
    assert received.message == message


@pytest.mark.parametrize("message", BULK, ids=lambda v: type(v).__name__)
def test_bulk_message_arrives_as_it_was_sent(message: m.AnyMessage) -> None:
    (received,) = opened("bulk").feed(pack(encode(message)))
    assert received.message == message


@pytest.mark.parametrize("kind", [m.Chunk, m.Put])
def test_chunk_comes_with_its_body(kind: type[m.Chunk] | type[m.Put]) -> None:
    (received,) = opened("bulk").feed(pack(encode(kind(CID)), b"x" * 100))
    assert received.message == kind(CID)
    assert bytes(received.body) == b"x" * 100


def test_patch_comes_with_the_bytes_of_its_ranges() -> None:
    patch = m.Patch(CID, chunk_id(b"y"), 0, 5000, ((0, 3), (4096, 2)), keep=True)
    (received,) = opened("bulk").feed(pack(encode(patch), b"abcde"))
    assert received.message == patch
    assert bytes(received.body) == b"abcde"
    bad(encode(patch), b"abcd", channel="bulk")
    bad(encode(patch), channel="bulk")
    bad(encode(msgspec.structs.replace(patch, size=4097)), b"abcde", channel="bulk")
    bad(encode(msgspec.structs.replace(patch, size=(1 << 20) + 1)), b"abcde", "bulk")


def test_what_an_older_version_sends_has_no_bases() -> None:
    (received,) = opened("bulk").feed(pack(msgspec.msgpack.encode([20, [CID]])))
    assert received.message == m.Get((CID,))
    (received,) = opened("bulk").feed(pack(msgspec.msgpack.encode([25, 1, [CID]])))
    assert received.message == m.Held(1, (CID,))


def test_what_was_written_in_the_future_is_refused() -> None:
    """It would spread to whoever writes over it, and with it the wrong time."""
    now_ms = 1_700_000_000_000
    accepted = latest(now_ms)
    for hlc, taken in ((accepted, True), (accepted + 1, False)):
        state = Register({5: 2}, (Sibling(5, 2, hlc, VALUE),))
        for message in (
            m.Live((msgspec.structs.replace(TX, hlc=hlc),)),
            m.States((State(KEY, encode_register(state)),)),
            m.Delta(1, {}, (State(KEY, encode_register(state)),), {5: 2}, True),
        ):
            session = Session(CLUSTER, latest=lambda: latest(now_ms))
            session.feed(hello_frame(hello()))
            if taken:
                session.feed(pack(encode(message)))
                continue
            with pytest.raises(ProtocolError, match="300 s from now: a clock"):
                session.feed(pack(encode(message)))


def test_fields_a_newer_version_appends_are_ignored() -> None:
    data = msgspec.msgpack.encode([4, 17, "new field"])
    (received,) = opened().feed(pack(data))
    assert received.message == m.Pong(17)


def bad(header: bytes, body: bytes = b"", channel: str = "control") -> None:
    session = opened(channel)
    with pytest.raises(ProtocolError):
        session.feed(pack(header, body))
    assert session.phase is Phase.CLOSED


def tx(**changes: object) -> bytes:
    return encode(m.Live((msgspec.structs.replace(TX, **changes),)))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([99, 1]),
        msgspec.msgpack.encode({"type": 4}),
        msgspec.msgpack.encode([3, "not a number"]),
        msgspec.msgpack.encode([12, 256]),
        encode(hello()),
        encode(m.Get((CID,))),
        tx(seq=0),
        tx(node=-1),
        tx(prev=2),
        tx(writes=(Write(b"Z" + KEY, (), VALUE),)),
        tx(writes=(Write(KEY, (1,), VALUE),)),
        tx(writes=(Write(KEY, (), b"\xc1"),)),
        tx(writes=(Write(dirent_key(1, b"a/b"), (), VALUE),)),
        encode(m.States((State(KEY, b"junk"),))),
        encode(m.Live((TX,), (Body(b"short", b""),))),
        encode(m.Live((TX,), (Body(CID, bytes(70_000)),))),
        encode(m.Live((TX,), (Body(CID, b"x", 9, b"short", ((0, 1),)),))),
        encode(m.Live((TX,), (Body(CID, b"x", 9, CID, ((9, 1),)),))),
        encode(m.Live((TX,), (Body(CID, b"x", 9, CID, ()),))),
        encode(m.Live((TX,), (Body(CID, b"x", 70_000, CID, ((0, 1),)),))),
        encode(m.Live((TX,), (Body(CID, b"", 0, CID, ()),))),
    ],
)
def test_bad_message_ends_the_session(header: bytes) -> None:
    bad(header)


def test_control_channel_takes_no_body() -> None:
    bad(encode(m.Pong(1)), b"body")


def test_bulk_channel_takes_no_metadata() -> None:
    bad(encode(m.Live((TX,))), channel="bulk")


@pytest.mark.parametrize(
    "greeting",
    [
        hello(cluster=b"another"),
        hello(version=9, oldest=8),
        m.Ping(1),
        hello(node=0),
        hello(channel="other"),
    ],
)
def test_bad_greeting_is_refused(greeting: m.AnyMessage) -> None:
    with pytest.raises(ProtocolError):
        Session(CLUSTER).feed(pack(encode(greeting)))


def test_dialled_channel_must_be_the_one_answered() -> None:
    with pytest.raises(ProtocolError):
        Session(CLUSTER, "bulk").feed(hello_frame(hello()))


def test_large_frame_before_the_greeting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        Session(CLUSTER).feed(pack(bytes(300_000))[:8])


def test_what_follows_a_bye_is_ignored() -> None:
    session = opened()
    bye, pong = pack(encode(m.Bye("x"))), pack(encode(m.Pong(1)))
    assert [r.message for r in session.feed(bye + pong)] == [m.Bye("x")]
    assert session.feed(pong) == []


@pytest.mark.parametrize(
    ("mine", "theirs", "agreed"),
    [((1, 1), (1, 1), 1), ((3, 1), (2, 2), 2), ((3, 3), (2, 1), None)],
)
def test_agreed_version(
    mine: tuple[int, int], theirs: tuple[int, int], agreed: int | None
) -> None:
    assert agreed_version(mine, theirs) == agreed


@given(st.binary(max_size=500))
def test_random_bytes_raise_nothing_but_protocol_errors(data: bytes) -> None:
    for session in (Session(CLUSTER), opened(), opened("bulk")):
        try:
            session.feed(data)
            session.feed(pack(data))
        except ProtocolError:
            pass
