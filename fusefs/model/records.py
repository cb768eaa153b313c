"""What registers hold: their keys and values, as they are stored and sent.

Keys are one kind byte and a binary payload (docs/formats.md, section 2). Values
are msgpack arrays; a reader ignores extra trailing fields and fills missing ones
with defaults, so fields may be appended without a version bump.
"""

from __future__ import annotations

import stat
import struct

import msgspec

from fusefs.model.hlc import Hlc
from fusefs.model.ids import Ino, NodeId, Seq

DIRENT, ATTRS, CONTENT, XATTR = b"D", b"A", b"C", b"X"
PLACE, UNLINKED, MEMBER, SETTING = b"P", b"U", b"M", b"S"
KINDS = DIRENT + ATTRS + CONTENT + XATTR + PLACE + UNLINKED + MEMBER + SETTING

_U64 = struct.Struct(">Q")

S_DIR = stat.S_IFDIR >> 12
S_REG = stat.S_IFREG >> 12
S_LNK = stat.S_IFLNK >> 12


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


def valid_key(key: bytes) -> bool:
    """Whether bytes from a peer are a key: known kind, right length, legal name."""
    kind = key[:1]
    if not kind or kind not in KINDS:
        return False
    if kind == SETTING:
        return 2 <= len(key) <= 256
    if kind == DIRENT:
        name = key[9:]
        return 1 <= len(name) <= 255 and b"/" not in name and b"\0" not in name
    if kind == XATTR:
        return 10 <= len(key) <= 9 + 255
    return len(key) == 9


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


Value = Dirent | Attrs | Content | Place | Unlinked | Member

_encoder = msgspec.msgpack.Encoder()
encode_value = _encoder.encode

decode_dirent = msgspec.msgpack.Decoder(Dirent).decode
decode_attrs = msgspec.msgpack.Decoder(Attrs).decode
decode_content = msgspec.msgpack.Decoder(Content).decode
decode_place = msgspec.msgpack.Decoder(Place).decode
decode_unlinked = msgspec.msgpack.Decoder(Unlinked).decode
decode_member = msgspec.msgpack.Decoder(Member).decode

_DECODERS = {
    DIRENT: decode_dirent,
    ATTRS: decode_attrs,
    CONTENT: decode_content,
    PLACE: decode_place,
    UNLINKED: decode_unlinked,
    MEMBER: decode_member,
}


def check_value(key: bytes, value: bytes) -> None:
    """Raises msgspec.DecodeError / ValidationError when a peer's value is not of
    its key's type. Gone, xattr and setting values are any bytes."""
    decoder = _DECODERS.get(key[:1])
    if value and decoder is not None:
        decoder(value)
