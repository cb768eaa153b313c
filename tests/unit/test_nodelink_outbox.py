"""The worker's queue to the node: ordered, cut into messages, bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusefs.model.tx import BODIES_BYTES, Body, Tx, Write, that_travel
from fusefs.nodelink.frames import MAX_HEADER_BYTES
from fusefs.nodelink.messages import Behind, Publish, encode
from fusefs.nodelink.outbox import MAX_FRAME_BYTES, MAX_TX_BYTES, Outbox, tx_bytes

CID = bytes(32)
KEY = b"D" + bytes(8) + b"name"


def tx(seq: int, size: int = 10) -> Tx:
    return Tx(1, seq, seq - 1, seq, (Write(KEY, (), bytes(size)),))


def test_transactions_leave_together_in_order() -> None:
    outbox = Outbox()
    assert outbox.put(tx(2), [Body(bytes(32), b"two")])
    assert not outbox.put(tx(1), ())
    (message,) = outbox.take()
    assert isinstance(message, Publish)
    assert [t.seq for t in message.txs] == [1, 2]
    assert [b.data for b in message.bodies] == [b"two"]
    assert outbox.take() == []
    assert outbox.queued_bytes == 0


def test_messages_stay_below_the_limit_of_a_frame() -> None:
    outbox = Outbox()
    for seq in range(1, 60):
        outbox.put(tx(seq, 20_000), [Body(bytes(32), bytes(40_000))])
    messages = outbox.take()
    assert len(messages) > 4
    seqs = []
    for message in messages:
        assert isinstance(message, Publish)
        size = sum(map(tx_bytes, message.txs)) + sum(
            len(b.data) for b in message.bodies
        )
        assert size <= MAX_FRAME_BYTES
        seqs += [t.seq for t in message.txs]
    assert seqs == list(range(1, 60))


def test_a_node_that_knows_no_patches_gets_what_is_whole() -> None:
    whole, patch = Body(CID, b"whole"), Body(CID, b"p", 9, CID, ((0, 1),))
    outbox = Outbox()
    outbox.put(tx(1), (whole, patch))
    (message,) = outbox.take(patches=False)
    assert isinstance(message, Publish)
    assert message.bodies == (whole,)
    outbox.put(tx(2), (whole, patch))
    (message,) = outbox.take(patches=True)
    assert isinstance(message, Publish)
    assert message.bodies == (whole, patch)


@given(
    st.lists(st.integers(0, 64 << 10), max_size=40),
    st.integers(0, MAX_TX_BYTES + 1000),
)
def test_the_largest_transaction_fits_into_a_frame(sizes: list[int], own: int) -> None:
    outbox = Outbox()
    bodies = that_travel(Body(bytes(32), bytes(size)) for size in sizes)
    outbox.put(tx(1, own), bodies)
    (message,) = outbox.take()
    assert len(encode(message)) <= MAX_HEADER_BYTES
    if isinstance(message, Behind):
        assert tx_bytes(tx(1, own)) > MAX_TX_BYTES


@given(st.lists(st.integers(0, 64 << 10), max_size=40))
def test_what_travels_is_the_smallest_of_it(sizes: list[int]) -> None:
    bodies = [Body(bytes(32), bytes(size)) for size in sizes]
    taken = that_travel(bodies)
    assert sum(len(b.data) for b in taken) <= BODIES_BYTES
    assert [len(b.data) for b in taken] == sorted(sizes)[: len(taken)]
    if sum(sizes) + 32 * len(sizes) <= BODIES_BYTES:
        assert len(taken) == len(sizes)


def test_overflow_keeps_only_the_fact() -> None:
    outbox = Outbox(limit_bytes=10_000)
    for seq in range(1, 1000):
        outbox.put(tx(seq), ())
        assert outbox.queued_bytes <= 10_000
    first, *rest = outbox.take()
    assert first == Behind(999)
    assert rest == []
    assert outbox.put(tx(1000), ())
    (message,) = outbox.take()
    assert isinstance(message, Publish)
