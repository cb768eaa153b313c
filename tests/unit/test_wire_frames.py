"""The frame codec, however the bytes are cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.nodelink.frames import BUFFER_BYTES, FrameReader, ProtocolError, pack

frames = st.lists(
    st.tuples(
        st.binary(max_size=300) | st.binary(min_size=5000, max_size=9000),
        st.just(b"")
        | st.binary(max_size=200)
        | st.binary(min_size=70_000, max_size=80_000),
    ),
    max_size=6,
)


@given(frames, st.lists(st.integers(1, 100_000), max_size=30))
def test_any_cut_gives_the_same_frames(
    sent: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data = b"".join(pack(header, body) for header, body in sent)
    reader, got, at = FrameReader(), [], 0
    for cut in [*cuts, len(data)]:
        got += reader.feed(data[at : at + cut])
        at += cut
    got += reader.feed(data[at:])
    assert [(f.header, bytes(f.body)) for f in got] == sent
    assert reader.idle


def test_header_larger_than_the_buffer_is_received() -> None:
    header = b"h" * (BUFFER_BYTES * 5)
    reader = FrameReader()
    (frame,) = reader.feed(pack(header, b"body"))
    assert (frame.header, bytes(frame.body)) == (header, b"body")
    (after,) = reader.feed(pack(b"small"))
    assert after.header == b"small"


@pytest.mark.parametrize(
    "lengths", [(0xFFFFFFFF, 0), (0, 0xFFFFFFFF), ((1 << 20) + 1, 0)]
)
def test_length_over_the_limit_is_refused_before_any_memory_is_taken(
    lengths: tuple[int, int],
) -> None:
    with pytest.raises(ProtocolError):
        FrameReader().feed(struct.pack(">II", *lengths))


def test_large_body_is_not_copied_after_it_was_received() -> None:
    reader = FrameReader()
    whole = pack(b"h", bytes(1 << 20))
    assert reader.feed(whole[: 1 << 16]) == []
    into = reader.buffer()
    assert len(into) == len(whole) - (1 << 16)
    into[:] = whole[1 << 16 :]
    (frame,) = reader.filled(len(into))
    assert len(frame.body) == 1 << 20
