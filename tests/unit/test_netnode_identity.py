"""Tokens, identity files, certificates."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from fusefs.errors import ConfigError
from netnode import identity, tls
from netnode.identity import Token, decode_token, encode_token


@given(
    st.binary(min_size=32, max_size=32),
    st.lists(st.text(min_size=1, max_size=40), max_size=8),
)
def test_token_comes_back(secret: bytes, addresses: list[str]) -> None:
    token = Token(secret, tuple(addresses))
    text = encode_token(token)
    assert decode_token(f"  {text}\n") == token
    assert decode_token(text) == token


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nonsense",
        "dfs1-",
        "dfs1-!!!!",
        "dfs1-abcdefgh",
        encode_token(Token(bytes(32), ("h:1",)))[:-3],
        encode_token(Token(bytes(32), ("h:1",))).replace("a", "b", 1),
    ],
)
def test_bad_token_is_refused_with_a_sentence(bad: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        decode_token(bad)


def test_identity_is_private_and_survives(tmp_path: Path) -> None:
    made = identity.create(tmp_path, "one", None)
    again = identity.load(tmp_path)
    assert (again.node_id, again.secret, again.name) == (
        made.node_id,
        made.secret,
        "one",
    )
    for file in (tmp_path / "identity").iterdir():
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    token = Token(made.secret, ("host:4000",))
    other = identity.create(tmp_path / "other", "two", token)
    assert other.cluster == made.cluster
    assert other.node_id != made.node_id
    assert other.seeds == ("host:4000",)


def test_damaged_identity_is_named(tmp_path: Path) -> None:
    identity.create(tmp_path, "one", None)
    (tmp_path / "identity" / "secret").write_bytes(b"short")
    with pytest.raises(ConfigError, match="identity"):
        identity.load(tmp_path)


def test_same_secret_gives_the_same_authority() -> None:
    pem = serialization.Encoding.PEM
    _, one = tls.cluster_ca(b"s" * 32)
    _, two = tls.cluster_ca(b"s" * 32)
    _, other = tls.cluster_ca(b"t" * 32)
    assert one.public_bytes(pem) == two.public_bytes(pem)
    assert one.public_bytes(pem) != other.public_bytes(pem)


def test_certificate_needs_no_room_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = identity.create(tmp_path, "one", None)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(tls, "write_private", full)
    contexts = tls.Contexts(made, tmp_path / "identity")
    assert contexts.server.get_ca_certs()
    assert not (tmp_path / "identity" / "node.pem").exists()
