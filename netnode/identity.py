"""Who this node is: cluster secret, node key, node id, and the join token.

Files below STORE/identity (docs/formats.md, section 6), 0600 in a 0700 directory.
"""

from __future__ import annotations

import base64
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fusefs.errors import ConfigError
from fusefs.model.ids import MASK63, NodeId

TOKEN_PREFIX = "dfs1-"
TOKEN_VERSION = 1
SECRET_BYTES = 32
CHECK_BYTES = 4
MAX_TOKEN_ADDRESSES = 8


class Token(NamedTuple):
    """What a new node needs: the secret, and where to find a member."""

    secret: bytes
    addresses: tuple[str, ...]


class Described(msgspec.Struct, frozen=True):
    """identity/node.json."""

    cluster: str
    node_id: int
    name: str
    seeds: tuple[str, ...] = ()


class Damaged(ConfigError):
    """Something of the identity in a store is not there, or not what it was."""


class Identity(NamedTuple):
    secret: bytes
    cluster: bytes
    node_id: NodeId
    name: str
    key: Ed25519PrivateKey
    seeds: tuple[str, ...]


def derive(secret: bytes, info: bytes, length: int = 32) -> bytes:
    """A key of its own for each purpose, from the cluster secret."""
    return HKDF(hashes.SHA256(), length, None, info).derive(secret)


def cluster_id(secret: bytes) -> bytes:
    """Names the cluster without telling the secret."""
    return derive(secret, b"dfs cluster id 1", 16)


# -- token -------------------------------------------------------------------------


def encode_token(token: Token) -> str:
    """One word for a person to copy."""
    data = bytes((TOKEN_VERSION,)) + token.secret
    addresses = token.addresses[:MAX_TOKEN_ADDRESSES]
    data += bytes((len(addresses),))
    for address in addresses:
        text = address.encode()
        data += bytes((len(text),)) + text
    data += blake3(data).digest(CHECK_BYTES)
    return TOKEN_PREFIX + base64.b32encode(data).decode().rstrip("=").lower()


def decode_token(text: str) -> Token:
    """The inverse. Raises ConfigError with a sentence for the user."""
    word = text.strip()
    if not word.startswith(TOKEN_PREFIX):
        raise ConfigError(
            f"this is not a join token: it does not begin with {TOKEN_PREFIX!r}; "
            "`dfs invite` on a member prints one"
        )
    body = word[len(TOKEN_PREFIX) :].upper()
    try:
        data = base64.b32decode(body + "=" * (-len(body) % 8))
    except ValueError:
        raise ConfigError("the join token has characters that do not belong") from None
    payload, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
    if len(data) < SECRET_BYTES + 6 or blake3(payload).digest(CHECK_BYTES) != check:
        raise ConfigError("the join token is damaged: copy it again, whole")
    if payload[0] != TOKEN_VERSION:
        raise ConfigError("the join token is of a newer version of dfs")
    return Token(payload[1 : 1 + SECRET_BYTES], _addresses(payload[1 + SECRET_BYTES :]))


def _addresses(data: bytes) -> tuple[str, ...]:
    out, at = [], 1
    for _ in range(data[0]):
        length = data[at] if at < len(data) else 256
        text = data[at + 1 : at + 1 + length]
        if len(text) != length:
            raise ConfigError("the join token is damaged: copy it again, whole")
        out.append(text.decode("utf-8", "replace"))
        at += 1 + length
    return tuple(out)


# -- files -------------------------------------------------------------------------


def exists(store: Path) -> bool:
    return (store / "identity" / "node.json").exists()


def create(store: Path, name: str, token: Token | None) -> Identity:
    """Make the identity of a new node: of a new cluster without a token."""
    secret = token.secret if token else secrets.token_bytes(SECRET_BYTES)
    node_id = NodeId((secrets.randbits(63) & MASK63) or 1)
    write(store, secret, None, node_id, name, token.addresses if token else ())
    return load(store)


def write(
    store: Path,
    secret: bytes,
    key: Ed25519PrivateKey | None,
    node_id: NodeId,
    name: str,
    seeds: tuple[str, ...],
) -> None:
    """All files of an identity. `key`: None for a new one."""
    directory = store / "identity"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    pem = (key or Ed25519PrivateKey.generate()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    described = Described(cluster_id(secret).hex(), node_id, name, seeds)
    write_private(directory / "secret", secret)
    write_private(directory / "node.key", pem)
    # Last: its presence says that the identity is whole.
    write_private(directory / "node.json", msgspec.json.encode(described))


class Parts(NamedTuple):
    """What of an identity is there and fits its form; None: it is not."""

    secret: bytes | None
    key: Ed25519PrivateKey | None
    described: Described | None

    @property
    def cluster(self) -> str:
        """The one node.json names; empty: unknown."""
        return self.described.cluster if self.described is not None else ""


def parts(store: Path) -> Parts:
    """What can be read. A secret of another cluster than node.json says is none."""
    directory = store / "identity"
    secret, key, described = None, None, None
    with suppress(OSError, msgspec.DecodeError):
        found = (directory / "node.json").read_bytes()
        described = msgspec.json.decode(found, type=Described)
    with suppress(OSError):
        secret = (directory / "secret").read_bytes()
        of = cluster_id(secret).hex() if len(secret) == SECRET_BYTES else ""
        if not of or (described is not None and of != described.cluster):
            secret = None
    with suppress(OSError, ValueError):
        pem = (directory / "node.key").read_bytes()
        loaded = serialization.load_pem_private_key(pem, None)
        key = loaded if isinstance(loaded, Ed25519PrivateKey) else None
    return Parts(secret, key, described)


def load(store: Path) -> Identity:
    """Raises Damaged when it, or a part of it, is missing or damaged."""
    secret, key, described = found = parts(store)
    if secret is None or key is None or described is None:
        files = zip(("secret", "node.key", "node.json"), found)
        bad = ", ".join(name for name, part in files if part is None)
        raise Damaged(f"{bad} in {store / 'identity'} is lost or damaged")
    return Identity(
        secret,
        cluster_id(secret),
        NodeId(described.node_id),
        described.name,
        key,
        described.seeds,
    )


def write_private(path: Path, data: bytes) -> None:
    """Whole or not at all, readable by this user only, durable."""
    fresh = path.with_name(path.name + ".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with os.fdopen(os.open(fresh, flags, 0o600), "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(path)
