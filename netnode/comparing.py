"""Anti-entropy of last resort, carried out: buckets, keys, registers that differ.

`core.repair` decides when; what comes back (States) is merged by the replicator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fusefs.model.tx import State
from fusefs.namespace.namespace import Namespace
from netnode.core.repair import differing
from netnode.environment import Environment
from netnode.peers import Peer
from netnode.wire.messages import (
    AnyMessage,
    AskBuckets,
    AskKeys,
    AskStates,
    BucketKeys,
    Buckets,
    States,
)

KEYS_PER_PART, KEYS_BYTES = 4000, 512 << 10
"""In one message: keys have up to 265 bytes."""
STATES_PER_PART = 500
FRAME_STATES_BYTES = 512 << 10
"""Registers in one message: frames have a limit."""


class Comparing:
    """Both sides of a comparison with any peer."""

    def __init__(self, namespace: Namespace, environment: Environment) -> None:
        self._namespace = namespace
        self._environment = environment

    async def handle(self, peer: Peer, message: AnyMessage) -> None:
        match message:
            case AskBuckets():
                peer.send(Buckets(tuple(self._namespace.buckets())))
            case Buckets():
                found = peer.repair.buckets(self._namespace.buckets(), message.digests)
                self._ask_bucket(peer, found)
            case AskKeys():
                await self._send_keys(peer, message)
            case BucketKeys():
                await self._compare_keys(peer, message)
            case AskStates():
                for piece in pieces(self._namespace.states(message.keys)):
                    if peer.congested:
                        break  # the next comparison asks again
                    peer.send(States(piece))

    def _ask_bucket(self, peer: Peer, bucket: int | None) -> None:
        if bucket is not None:
            peer.send(AskKeys(bucket))

    async def _send_keys(self, peer: Peer, ask: AskKeys) -> None:
        keys = await self._environment.offload(
            lambda: sorted(self._namespace.bucket_keys(ask.bucket))
        )
        later = [item for item in keys if item[0] > ask.after]
        part = tuple(_that_fit(later))
        peer.send(BucketKeys(ask.bucket, part, len(part) == len(later)))

    async def _compare_keys(self, peer: Peer, theirs: BucketKeys) -> None:
        ours = await self._environment.offload(
            lambda: dict(self._namespace.bucket_keys(theirs.bucket))
        )
        wanted = differing(ours, theirs.keys)
        for at in range(0, len(wanted), STATES_PER_PART):
            peer.send(AskStates(tuple(wanted[at : at + STATES_PER_PART])))
        if theirs.done:
            self._ask_bucket(peer, peer.repair.next_bucket())
        elif theirs.keys:
            peer.send(AskKeys(theirs.bucket, theirs.keys[-1][0]))


def _that_fit(keys: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    size = 0
    for number, item in enumerate(keys):
        size += len(item[0]) + len(item[1]) + 8
        if number == KEYS_PER_PART or size > KEYS_BYTES:
            return
        yield item


def pieces(states: Sequence[State]) -> Iterable[tuple[State, ...]]:
    """Cut into what fits a frame; at least one piece, perhaps empty."""
    piece: list[State] = []
    size = 0
    for state in states:
        length = len(state.key) + len(state.state) + 16
        if piece and size + length > FRAME_STATES_BYTES:
            yield tuple(piece)
            piece, size = [], 0
        piece.append(state)
        size += length
    yield tuple(piece)
