"""What registers hold: their keys and values, as they are stored and sent.

Keys are one kind byte and a binary payload (docs/formats.md, section 2). Values
are msgpack arrays; a reader ignores extra trailing fields and fills missing ones
with defaults, so fields may be appended without a version bump.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec

from fusefs.model.hlc import MAX_HLC, Hlc
from fusefs.model.ids import (
    CHUNK_ID_BYTES,
    LOST_FOUND_INO,
    MASK63,
    MAX_SEQ,
    NAME_MAX,
    ROOT_INO,
    Ino,
    NodeId,
    Seq,
)
from fusefs.model.manifest import MAX_CHUNK_LOG2, MAX_FILE_SIZE, MIN_CHUNK_LOG2

DIRENT, ATTRS, CONTENT, XATTR = b"D", b"A", b"C", b"X"
PLACE, UNLINKED, MEMBER, SETTING = b"P", b"U", b"M", b"S"
KINDS = DIRENT + ATTRS + CONTENT + XATTR + PLACE + UNLINKED + MEMBER + SETTING

_U64 = struct.Struct(">Q")

REPLICAS = b"user.dfs.replicas"
"""An extended attribute of a directory: how many nodes keep each chunk of the files
below it, where no directory between says otherwise."""
MAX_REPLICAS = 100

S_DIR = stat.S_IFDIR >> 12
S_REG = stat.S_IFREG >> 12
S_LNK = stat.S_IFLNK >> 12
S_TYPES = frozenset((S_DIR, S_REG, S_LNK, 1, 2, 6, 12))
"""And FIFO, character and block device, socket: others the kernel takes for damage."""


# -- keys -----------------------------------------------------------------------


def dirent_key(parent: Ino, name: bytes) -> bytes:
    return DIRENT + _U64.pack(parent) + name


def attrs_key(ino: Ino) -> bytes:
    return ATTRS + _U64.pack(ino)


def content_key(ino: Ino) -> bytes:
    return CONTENT + _U64.pack(ino)


def xattr_key(ino: Ino, name: bytes) -> bytes:
    return XATTR + _U64.pack(ino) + name


def place_key(ino: Ino) -> bytes:
    return PLACE + _U64.pack(ino)


def unlinked_key(ino: Ino) -> bytes:
    return UNLINKED + _U64.pack(ino)


def member_key(node: NodeId) -> bytes:
    return MEMBER + _U64.pack(node)


def setting_key(name: bytes) -> bytes:
    return SETTING + name


def key_ino(key: bytes) -> Ino:
    """The inode (or, for a dirent, the directory; for a member, the node)."""
    return Ino(_U64.unpack_from(key, 1)[0])


def key_name(key: bytes) -> bytes:
    """The name of a dirent or xattr key, or of a setting."""
    return key[1:] if key[:1] == SETTING else key[9:]


def decides_placement(key: bytes) -> bool:
    """Whether the register says who the members are, or what they keep."""
    kind = key[:1]
    return kind in (MEMBER, SETTING) or (kind == XATTR and key_name(key) == REPLICAS)


def replicas_of(text: bytes) -> int | None:
    """What the attribute REPLICAS says; None when it is no number from 1 to
    MAX_REPLICAS."""
    if not text.isdigit() or len(text) > 3 or text[:1] == b"0":
        return None
    return int(text) if int(text) <= MAX_REPLICAS else None


def valid_key(key: bytes) -> bool:
    """Whether bytes from a peer are a key: known kind, right length, legal name, and
    a number of 63 bits."""
    kind = key[:1]
    if not kind or kind not in KINDS:
        return False
    if kind == SETTING:
        return 2 <= len(key) <= 256
    if len(key) < 9 or not 0 < key_ino(key) <= MASK63:
        return False
    if kind == DIRENT:
        return _legal_name(key[9:])
    if kind == XATTR:
        return 10 <= len(key) <= 9 + 255 and b"\0" not in key[9:]
    return len(key) == 9


def _legal_name(name: bytes) -> bool:
    return (
        1 <= len(name) <= NAME_MAX
        and b"/" not in name
        and b"\0" not in name
        and name not in (b".", b"..")
    )


# -- values -----------------------------------------------------------------------


class Dirent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """dirent(dir, name): which inode, and its type as in d_type (S_IFMT >> 12)."""

    ino: Ino
    kind: int


class Attrs(msgspec.Struct, array_like=True, frozen=True):
    """attrs(inode): everything but data. Concurrent changes merge field by field:
    mode by `mode_at`, owner by `owner_at`, ctime by maximum, the rest by rank."""

    mode: int
    uid: int
    gid: int
    ctime_ns: int
    mode_at: Hlc
    owner_at: Hlc
    btime_ns: int = 0
    atime_ns: int = 0
    """0: never set explicitly, shown as mtime."""
    rdev: int = 0
    target: bytes = b""
    """Symbolic links: the target."""


class Content(msgspec.Struct, array_like=True, frozen=True):
    """content(inode): the data of a file; of a directory only its times."""

    mtime_ns: int
    ctime_ns: int
    size: int = 0
    root: bytes = b""
    """Manifest root (see manifest.py); empty when there is no data at all."""
    chunk_log2: int = 20
    seen: tuple[tuple[NodeId, Seq], ...] = ()
    """The data version: a context (context.py) of the data changes this one includes,
    its own among them. A change of times alone keeps it."""
    appended_to: tuple[int, bytes] | None = None
    """(size, root) of the version this one only added bytes to, if so; root is empty
    when the oldest pieces were counted to it."""
    pieces: tuple[tuple[Hlc, NodeId, int], ...] = ()
    """What was added to it: (stamp, node, end offset), see appends.py."""


class Place(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """place(directory): its one parent and name."""

    parent: Ino
    name: bytes


class Unlinked(msgspec.Struct, array_like=True, frozen=True):
    """unlinked(inode): a name went; where it was and, if it was the last one, what
    data was seen. Nothing was: other names were there, so no data was given up."""

    parent: Ino
    name: bytes
    seen: tuple[tuple[NodeId, Seq], ...] = ()


class Member(msgspec.Struct, array_like=True, frozen=True):
    """member(node): a node of the cluster."""

    name: str
    addresses: tuple[str, ...]
    """host:port, most useful first."""
    public_key: bytes = b""
    forgotten: bool = False

    def removed(self) -> Member:
        """What is remembered of it: that it is a member no more."""
        return Member(self.name, (), self.public_key, forgotten=True)


class Horizon(msgspec.Struct, array_like=True, frozen=True):
    """The setting `horizon`: which deletes may be forgotten (namespace/tombstones.py).
    Flat vectors: node, seq, ..."""

    upto: tuple[tuple[NodeId, Seq], ...]
    after: tuple[tuple[NodeId, Seq], ...]


Value = Dirent | Attrs | Content | Place | Unlinked | Member

_encoder = msgspec.msgpack.Encoder()
encode_value = _encoder.encode

decode_dirent = msgspec.msgpack.Decoder(Dirent).decode
decode_attrs = msgspec.msgpack.Decoder(Attrs).decode
decode_content = msgspec.msgpack.Decoder(Content).decode
decode_place = msgspec.msgpack.Decoder(Place).decode
decode_unlinked = msgspec.msgpack.Decoder(Unlinked).decode
decode_member = msgspec.msgpack.Decoder(Member).decode

_DECODERS: dict[bytes, Callable[[bytes], Value]] = {
    DIRENT: decode_dirent,
    ATTRS: decode_attrs,
    CONTENT: decode_content,
    PLACE: decode_place,
    UNLINKED: decode_unlinked,
    MEMBER: decode_member,
}


MAX_ADDRESSES, MAX_TEXT = 64, 1024
"""Of a member: what a Hello has room for (netnode/wire/messages.py)."""
_Replicas = Annotated[int, msgspec.Meta(ge=1, le=MAX_REPLICAS)]
_decode_replicas = msgspec.msgpack.Decoder(_Replicas).decode
decode_horizon = msgspec.msgpack.Decoder(Horizon).decode


def check_value(key: bytes, value: bytes) -> None:
    """Raises msgspec.DecodeError / ValidationError / ValueError when a peer's value
    is not of its key's type, or holds numbers that the database does not take. Xattr
    and the values of settings this program does not know are any bytes. Only
    names, extended attributes and settings can be gone."""
    if not value and key[:1] in (DIRENT, XATTR, SETTING):
        return
    if key[:1] == SETTING:
        fits = _setting_fits(key_name(key), value)
    else:
        decoder = _DECODERS.get(key[:1])
        fits = decoder is None or _fits(key, decoder(value))
    if not fits:
        raise ValueError(f"the value of {key!r} is out of range")


# -- bounds -----------------------------------------------------------------------

_U32 = (1 << 32) - 1


def _setting_fits(name: bytes, value: bytes) -> bool:
    if name == b"replicas":
        _decode_replicas(value)
    elif name == b"horizon":
        horizon = decode_horizon(value)
        return dots_fit(horizon.upto) and dots_fit(horizon.after)
    return True


def _fits(key: bytes, value: Value) -> bool:
    match value:
        case Dirent():
            return _is_ino(value.ino) and value.kind in S_TYPES
        case Attrs():
            return _attrs_fit(key_ino(key), value)
        case Content():
            return _content_fits(value)
        case Place():
            return _is_ino(value.parent) and _legal_name(value.name)
        case Unlinked():
            return (
                _is_ino(value.parent)
                and _legal_name(value.name)
                and dots_fit(value.seen)
            )
        case Member():
            return len(value.addresses) <= MAX_ADDRESSES and all(
                len(text) <= MAX_TEXT for text in (value.name, *value.addresses)
            )


def _attrs_fit(ino: Ino, attrs: Attrs) -> bool:
    """A mount of a tree whose root is no directory answers nothing but EIO."""
    types = (S_DIR,) if ino in (ROOT_INO, LOST_FOUND_INO) else S_TYPES
    return (
        0 <= attrs.mode <= 0xFFFF
        and attrs.mode >> 12 in types
        and 0 <= attrs.uid <= _U32
        and 0 <= attrs.gid <= _U32
        and 0 <= attrs.rdev <= MASK63
        and _are_times(attrs.ctime_ns, attrs.btime_ns, attrs.atime_ns)
        and 0 <= attrs.mode_at <= MAX_HLC
        and 0 <= attrs.owner_at <= MAX_HLC
    )


def _content_fits(content: Content) -> bool:
    appended_to = content.appended_to
    return (
        _are_times(content.mtime_ns, content.ctime_ns)
        and 0 <= content.size <= MAX_FILE_SIZE
        and len(content.root) in (0, CHUNK_ID_BYTES)
        and MIN_CHUNK_LOG2 <= content.chunk_log2 <= MAX_CHUNK_LOG2
        and dots_fit(content.seen)
        and (appended_to is None or 0 <= appended_to[0] <= MAX_FILE_SIZE)
        and all(
            0 <= stamp <= MAX_HLC and 0 < node <= MASK63 and 0 <= end <= MAX_FILE_SIZE
            for stamp, node, end in content.pieces
        )
    )


def dots_fit(dots: Iterable[tuple[int, int]]) -> bool:
    """Whether each is a dot by its form."""
    return all(0 < node <= MASK63 and 0 <= seq <= MAX_SEQ for node, seq in dots)


def _is_ino(number: int) -> bool:
    return 0 < number <= MASK63


def _are_times(*times_ns: int) -> bool:
    return all(-MASK63 <= time_ns <= MASK63 for time_ns in times_ns)
