"""Every message between nodes (docs/formats.md, section 7).

Tags and the order of fields are the format: fields are only ever appended, with a
default. Types and bounds here are what a peer's bytes are held to before any other
code sees them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from fusefs.model.hlc import MAX_HLC, Hlc
from fusefs.model.ids import MAX_SEQ, ChunkId, NodeId, Seq
from fusefs.model.tx import Body, State, Tx
from fusefs.model.vector import MAX_NODES
from fusefs.nodelink.ranges import HeldLock, LockKey, Range
from fusefs.store.types import MAX_OBJECT_BYTES

VERSION = 3
PATCHES = 2
"""From this version on a Live may bring chunks as patches."""
DELEGATIONS = 3
"""From this version on locks may be delegated."""
OLDEST = 1
"""The oldest version this code still speaks."""

MAX63 = (1 << 63) - 1
MAX_ROWS = 32
"""Members of which a heartbeat tells what they have."""
MAX_CIDS = 4096
"""Chunk ids in one message: 128 KiB."""

Node = Annotated[NodeId, msgspec.Meta(ge=1, le=MAX63)]
Number = Annotated[int, msgspec.Meta(ge=0, le=MAX63)]
SeqNumber = Annotated[Seq, msgspec.Meta(ge=0, le=MAX_SEQ)]
Stamp = Annotated[Hlc, msgspec.Meta(ge=0, le=MAX_HLC)]
Digest = Annotated[bytes, msgspec.Meta(max_length=16)]
Cid = Annotated[ChunkId, msgspec.Meta(min_length=32, max_length=32)]
Cids = Annotated[tuple[Cid, ...], msgspec.Meta(max_length=MAX_CIDS)]
Offset = Annotated[int, msgspec.Meta(ge=0, le=MAX_OBJECT_BYTES)]
"""In a chunk, or the size of one."""
Bases = Annotated[
    tuple[tuple[Cid, Cid, Offset], ...], msgspec.Meta(max_length=MAX_CIDS)
]
"""Chunks that are lacked, each with one that is here, from the offset on, and stood in
its place before."""
Vector = Annotated[dict[Node, SeqNumber], msgspec.Meta(max_length=MAX_NODES)]
Nodes = Annotated[tuple[Node, ...], msgspec.Meta(max_length=MAX_NODES)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Addresses = Annotated[tuple[Text, ...], msgspec.Meta(max_length=64)]
Requests = Annotated[tuple[Number, ...], msgspec.Meta(max_length=20_000)]
LockKeys = Annotated[tuple[LockKey, ...], msgspec.Meta(max_length=10_000)]
Keys = Annotated[
    tuple[Annotated[bytes, msgspec.Meta(max_length=300)], ...],
    msgspec.Meta(max_length=10_000),
]


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all: a msgpack array that starts with the tag."""


# -- both channels -------------------------------------------------------------


class Hello(Message, frozen=True, tag=1):
    """First each way. `boot` is random per process start; `vector` and what
    follows are only used on the control channel."""

    version: Number
    oldest: Number
    cluster: Annotated[bytes, msgspec.Meta(max_length=64)]
    node: Node
    name: Text
    channel: Literal["control", "bulk"]
    boot: Number
    addresses: Addresses = ()
    port: Number = 0
    vector: Vector = {}
    hlc: Stamp = Hlc(0)
    now_ms: Number = 0
    links: Nodes = ()
    """Peers it is connected to: they need no relay from us."""
    members: Annotated[dict[Node, Addresses], msgspec.Meta(max_length=MAX_NODES)] = {}
    """Addresses under which it knows others."""


class Bye(Message, frozen=True, tag=2):
    """The sender closes the connection now, and why."""

    reason: Text
    fatal: bool = False
    """Dialling again soon is of no use."""


class OnDisk(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a member had on its disk `at` ms by its own clock, and its last transaction
    then."""

    node: Node
    at: Number
    own: SeqNumber
    vector: Vector


class Ping(Message, frozen=True, tag=3):
    """Heartbeat. `vector` is what the sender has applied, `digest` of then."""

    number: Number
    vector: Vector = {}
    digest: Digest = b""
    hlc: Stamp = Hlc(0)
    settled: bool = True
    """No cache of the sender shows anything older than `vector`."""
    on_disk: Annotated[tuple[OnDisk, ...], msgspec.Meta(max_length=MAX_ROWS)] = ()
    """Of the sender, and of members that the receiver is not connected to."""
    room: Number = 0
    """How often the sender had room for copies again after it had refused one."""


class Pong(Message, frozen=True, tag=4):
    number: Number


# -- control: the namespace ----------------------------------------------------------


class Live(Message, frozen=True, tag=5):
    """Transactions as they are committed, small chunks they name included."""

    txs: tuple[Tx, ...]
    bodies: tuple[Body, ...] = ()


class Ack(Message, frozen=True, tag=6):
    """Applied, and no cache shows the old any more, up to these dots."""

    dots: tuple[tuple[Node, SeqNumber], ...]


class Want(Message, frozen=True, tag=7):
    """Send what is above `vector`, then what comes: a new round begins."""

    round: Number
    vector: Vector


class Delta(Message, frozen=True, tag=8):
    """Registers above `base`, in bounded parts. After this part the receiver's
    vector covers `advance`. `base` comes with the first part only; `target` is the
    vector of the snapshot that the whole delta shows."""

    round: Number
    base: Vector | None
    states: tuple[State, ...]
    advance: Vector
    done: bool
    target: Vector = {}


class Links(Message, frozen=True, tag=9):
    """The peers the sender is connected to now."""

    nodes: Nodes


class AskBuckets(Message, frozen=True, tag=10):
    """Digests differ while vectors are equal: which buckets?"""


class Buckets(Message, frozen=True, tag=11):
    digests: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=256)]


class AskKeys(Message, frozen=True, tag=12):
    bucket: Annotated[int, msgspec.Meta(ge=0, le=255)]
    after: bytes = b""


class BucketKeys(Message, frozen=True, tag=13):
    """Keys of a bucket with a hash of each state, sorted, in parts."""

    bucket: Annotated[int, msgspec.Meta(ge=0, le=255)]
    keys: Annotated[tuple[tuple[bytes, bytes], ...], msgspec.Meta(max_length=10_000)]
    done: bool


class AskStates(Message, frozen=True, tag=14):
    keys: Keys


class States(Message, frozen=True, tag=15):
    """Whole registers, to be merged; no vector moves."""

    states: tuple[State, ...]


# -- bulk: chunks ----------------------------------------------------------------------


class Get(Message, frozen=True, tag=20):
    """`urgent`: so many of the first a program waits for."""

    cids: Cids
    bases: Bases = ()
    urgent: Number = 0


class Chunk(Message, frozen=True, tag=21):
    """The answer to Get; the frame's body is the chunk."""

    cid: Cid


class NoChunk(Message, frozen=True, tag=22):
    """The other answer: not here (or not readable)."""

    cids: Cids


class CancelGet(Message, frozen=True, tag=23):
    """Not needed any more; may be sent all the same."""

    cids: Cids


class Have(Message, frozen=True, tag=24):
    """Which of these do you hold? `keep`: and keep those, as replicas."""

    number: Number
    cids: Cids
    keep: bool = False


class Held(Message, frozen=True, tag=25):
    """The ones of Have that are in the store."""

    number: Number
    cids: Cids
    bases: Bases = ()
    """Of the others, if they are to be kept."""


class Put(Message, frozen=True, tag=26):
    """A replica for the receiver to keep; the frame's body is the chunk."""

    cid: Cid


class Stored(Message, frozen=True, tag=27):
    """The answer to Put: kept, or why not."""

    cid: Cid
    refused: Text = ""


class Patch(Message, frozen=True, tag=28):
    """What Chunk brings, or with `keep` what Put does, as what differs from `basis`:
    that from `offset` on, cut or filled with zeros to `size`, with these (offset,
    length) replaced by the frame's body."""

    cid: Cid
    basis: Cid
    offset: Offset
    size: Offset
    ranges: Annotated[tuple[tuple[Offset, Offset], ...], msgspec.Meta(max_length=1024)]
    keep: bool = False


# -- control: locks and exclusive creation -----------------------------------------


class LockAsk(Message, frozen=True, tag=32):
    """To the owner of the inode's locks: take this range."""

    number: Number
    key: LockKey
    range: Range
    wait: bool


class LockAnswer(Message, frozen=True, tag=33):
    """Granted (or, to a test, free), or what stands in the way. `mistaken`: the
    receiver of the request does not own these locks. `after`: what earlier holders
    wrote, to be shown before the lock counts as held. `delegated`: its receiver decides
    about this key from then on."""

    number: Number
    granted: bool
    conflict: Range | None = None
    mistaken: bool = False
    after: Vector = {}
    delegated: bool = False


class LockCancel(Message, frozen=True, tag=34):
    """Nobody waits for that lock any more."""

    number: Number


class LockRelease(Message, frozen=True, tag=35):
    """`range.kind` is UNLOCK. `seq`: the sender's last transaction before it."""

    key: LockKey
    range: Range
    seq: SeqNumber = Seq(0)


class LockAssert(Message, frozen=True, tag=36):
    """Everything the sender holds of the receiver's tables; renews its lease."""

    locks: Annotated[tuple[HeldLock, ...], msgspec.Meta(max_length=20_000)]
    asking: Requests = ()
    """Requests not answered yet: what was granted to them stays."""
    view: Number = 0
    """Of the members the sender knows (core.placement.view_of); 0: of an older node."""
    number: Number = 0
    """To be answered with LockLease, when it counted; 0: not."""
    delegated: LockKeys = ()
    """What it decides about."""
    seq: SeqNumber = Seq(0)
    """Its last transaction before it; 0: of an older node."""


class LockTest(Message, frozen=True, tag=37):
    number: Number
    key: LockKey
    range: Range


class Reserve(Message, frozen=True, tag=38):
    """May the sender create this name (a dirent register's key)?"""

    number: Number
    key: Annotated[bytes, msgspec.Meta(min_length=10, max_length=264)]
    seq: Annotated[int, msgspec.Meta(ge=-1, le=MAX63)] = 0
    """The sender's last transaction: only a later one uses the reservation. -1: it
    gives the name back."""


class Reserved(Message, frozen=True, tag=39):
    number: Number
    granted: bool


class LockLease(Message, frozen=True, tag=40):
    """That LockAssert counted, but what is `lost`, others hold by now."""

    number: Number
    lost: LockKeys = ()


class LockRecall(Message, frozen=True, tag=41):
    """Another node wants a lock of this key, which the receiver decides about."""

    key: LockKey


class LockReturn(Message, frozen=True, tag=42):
    """The owner decides about the key again; the sender holds these, what was granted
    to requests it is still `asking`, and no others. `seq`: its last transaction before
    it."""

    key: LockKey
    ranges: Annotated[tuple[Range, ...], msgspec.Meta(max_length=20_000)]
    asking: Requests
    seq: SeqNumber


Control = (
    Hello
    | Bye
    | Ping
    | Pong
    | Live
    | Ack
    | Want
    | Delta
    | Links
    | AskBuckets
    | Buckets
    | AskKeys
    | BucketKeys
    | AskStates
    | States
    | LockAsk
    | LockAnswer
    | LockCancel
    | LockRelease
    | LockAssert
    | LockTest
    | Reserve
    | Reserved
    | LockLease
    | LockRecall
    | LockReturn
)
Bulk = (
    Hello
    | Bye
    | Ping
    | Pong
    | Get
    | Chunk
    | NoChunk
    | CancelGet
    | Have
    | Held
    | Put
    | Stored
    | Patch
)
AnyMessage = Control | Bulk

WITH_BODY = (Chunk, Put, Patch)

encode = msgspec.msgpack.Encoder().encode
decode_hello = msgspec.msgpack.Decoder(Hello | Bye).decode
decode_control = msgspec.msgpack.Decoder(Control).decode
decode_bulk = msgspec.msgpack.Decoder(Bulk).decode
