"""The messages of the link (docs/formats.md, section 8).

A worker keeps one connection with the role `worker`: it publishes there and is
told there what peers changed. Requests that are waited for (barrier, fetch) go
over further connections with the role `call`, one request at a time each, so that
the thread that waits reads its answer itself. The command line asks with `Ask`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from fusefs.model.ids import ChunkId, Ino, NodeId, Seq
from fusefs.model.tx import Body, Effects, Tx
from fusefs.nodelink.ranges import HeldLock, LockKey, Range

LINK_VERSION = 1

Cid = Annotated[ChunkId, msgspec.Meta(min_length=32, max_length=32)]
Cids = tuple[Cid, ...]


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all: a msgpack array that starts with the tag."""


class Attach(Message, frozen=True, tag=1):
    """First on every connection."""

    role: Literal["worker", "call", "ask"]
    version: int = LINK_VERSION
    pid: int = 0
    number: int = 0
    """Of a `call` connection, which a Barrier can name."""


class Attached(Message, frozen=True, tag=2):
    """The node's answer to a worker; a `Changed` that forgets everything follows."""

    node: NodeId
    version: int = LINK_VERSION
    barriers: bool = False
    """A Barrier may come on this connection (`Barrier.call`)."""
    patches: bool = False
    """A Publish may bring chunks as patches."""


class Publish(Message, frozen=True, tag=3):
    """Committed local transactions in the order of their seq, with small chunks."""

    txs: tuple[Tx, ...]
    bodies: tuple[Body, ...] = ()


class Behind(Message, frozen=True, tag=4):
    """Transactions up to `seq` are committed and were not sent here."""

    seq: Seq


class Barrier(Message, frozen=True, tag=5):
    """Answer when every near connected peer applied and invalidated `seq`."""

    id: int
    seq: Seq
    timeout_ms: int
    call: int = 0
    """Not 0: said on the worker's connection, behind the transactions it is about;
    the answer goes to the `call` connection with this number."""


class BarrierDone(Message, frozen=True, tag=6):
    id: int
    ok: bool


class Fetch(Message, frozen=True, tag=7):
    """Bring these chunks into the store. `hint`: nodes likely to have them. `ahead`:
    chunks that will be wanted soon, as in Prefetch; whether they are `small`."""

    id: int
    cids: Cids
    timeout_ms: int
    hint: tuple[NodeId, ...] = ()
    ahead: Cids = ()
    small: bool = False


class Fetched(Message, frozen=True, tag=8):
    """All are in the store (error 0), or the errno and why not."""

    id: int
    error: int = 0
    reason: str = ""


class Cancel(Message, frozen=True, tag=9):
    """Nobody waits for this request any more."""

    id: int


class Prefetch(Message, frozen=True, tag=10):
    """The same as Fetch in the background, without an answer."""

    cids: Cids
    hint: tuple[NodeId, ...] = ()


class Changed(Message, frozen=True, tag=11):
    """Peers changed the tree. Answer `Invalidated` when no cache shows the old."""

    id: int
    effects: Effects
    everything: bool = False
    """Changes may have been missed: forget all caches."""
    fence: int = 0
    """Applied is all that was fenced up to this (nodelink/fence.py)."""


class Invalidated(Message, frozen=True, tag=12):
    """All `Changed` up to this id are done."""

    id: int


class Ask(Message, frozen=True, tag=13):
    """A request of the command line; `what` is listed in netnode/link.py."""

    id: int
    what: str
    arguments: tuple[str, ...] = ()


class Answer(Message, frozen=True, tag=14):
    """`value` is JSON; when not `ok` a string that says why."""

    id: int
    ok: bool
    value: bytes


class AskWorker(Message, frozen=True, tag=15):
    """The node asks the worker for its statistics."""

    id: int


class WorkerAnswer(Message, frozen=True, tag=16):
    id: int
    value: bytes


class Peers(Message, frozen=True, tag=17):
    """How many peers are connected, how many of them a barrier waits for, and how
    many other members the cluster has."""

    near: int
    connected: int
    members: int = 0


class Lock(Message, frozen=True, tag=32):
    """Take (or with UNLOCK drop) a lock that excludes other nodes."""

    id: int
    key: LockKey
    range: Range
    wait: bool


class LockTest(Message, frozen=True, tag=33):
    """What stands in the way of a lock?"""

    id: int
    key: LockKey
    range: Range


class LockDone(Message, frozen=True, tag=34):
    """Error 0: done (or free); EAGAIN with what stands in the way; ENOLCK: the
    node that decides cannot be reached."""

    id: int
    error: int = 0
    conflict: Range | None = None


class HeldLocks(Message, frozen=True, tag=35):
    """All locks of a worker, when it has attached: the node knows no others."""

    locks: tuple[HeldLock, ...]


class Reserve(Message, frozen=True, tag=36):
    """May this name be created, as far as near nodes are concerned?"""

    id: int
    parent: Ino
    name: bytes
    back: bool = False
    """It was granted and is not used."""


class Reserved(Message, frozen=True, tag=37):
    id: int
    granted: bool


ToNode = (
    Attach
    | Publish
    | Behind
    | Barrier
    | Fetch
    | Cancel
    | Prefetch
    | Invalidated
    | Ask
    | WorkerAnswer
    | Lock
    | LockTest
    | HeldLocks
    | Reserve
)
FromNode = (
    Attached
    | BarrierDone
    | Fetched
    | Changed
    | Answer
    | AskWorker
    | Peers
    | LockDone
    | Reserved
)

encode = msgspec.msgpack.Encoder().encode
decode_to_node = msgspec.msgpack.Decoder(ToNode).decode
decode_from_node = msgspec.msgpack.Decoder(FromNode).decode
