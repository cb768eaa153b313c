"""Who this node is: cluster secret, node key, node id, and the join token.

Files below STORE/identity (docs/formats.md, section 6), 0600 in a 0700 directory.
"""

from __future__ import annotations

import base64
import os
import secrets
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
    directory = store / "identity"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = token.secret if token else secrets.token_bytes(SECRET_BYTES)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    described = Described(
        cluster=cluster_id(secret).hex(),
        node_id=(secrets.randbits(63) & MASK63) or 1,
        name=name,
        seeds=token.addresses if token else (),
    )
    write_private(directory / "secret", secret)
    write_private(directory / "node.key", pem)
    # Last: its presence says that the identity is whole.
    write_private(directory / "node.json", msgspec.json.encode(described))
    return load(store)


def load(store: Path) -> Identity:
    """Raises ConfigError when the identity is missing or damaged."""
    directory = store / "identity"
    try:
        secret = (directory / "secret").read_bytes()
        pem = (directory / "node.key").read_bytes()
        described = msgspec.json.decode(
            (directory / "node.json").read_bytes(), type=Described
        )
        key = serialization.load_pem_private_key(pem, None)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"the identity in {directory} is unusable: {error}"
        ) from error
    if len(secret) != SECRET_BYTES or not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"the identity in {directory} is damaged")
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
