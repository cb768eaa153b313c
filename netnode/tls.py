"""TLS for members only: a cluster CA that every member derives from the secret.

The CA key and its certificate come out byte for byte the same on every node; each
issues a certificate to itself that names its node id. Certificates carry no real
dates, so a wrong clock does not lock a node out (clock skew is judged in Hello).
"""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fusefs.model.ids import NodeId
from netnode.identity import Identity, derive, write_private

ALPN = "dfs/1"
_FROM = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_TO = datetime.datetime(2200, 1, 1, tzinfo=datetime.UTC)
_CA_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dfs cluster")])


def _usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def cluster_ca(secret: bytes) -> tuple[Ed25519PrivateKey, x509.Certificate]:
    """The CA of the cluster: equal secrets give equal bytes."""
    key = Ed25519PrivateKey.from_private_bytes(derive(secret, b"dfs cluster ca 1"))
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_CA_NAME)
        .issuer_name(_CA_NAME)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(_FROM)
        .not_valid_after(_TO)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public), critical=False
        )
        .sign(key, None)
    )
    return key, certificate


def issue(identity: Identity) -> x509.Certificate:
    """A certificate for this node, signed by the cluster's CA."""
    ca_key, ca = cluster_ca(identity.secret)
    public = identity.key.public_key()
    name = x509.NameAttribute(NameOID.COMMON_NAME, f"{identity.node_id:016x}")
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([name]))
        .issuer_name(ca.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_TO)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, None)
    )


class Contexts:
    """The server's and the client's side of mutual TLS 1.3 for one node."""

    def __init__(self, identity: Identity, directory: Path) -> None:
        _, ca = cluster_ca(identity.secret)
        pem = serialization.Encoding.PEM
        key_pem = identity.key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        ca_pem = ca.public_bytes(pem).decode()
        chain_pem = key_pem + issue(identity).public_bytes(pem)
        with _file_of(chain_pem, directory / "node.pem") as chain:
            self.server = _context(ssl.PROTOCOL_TLS_SERVER, chain, ca_pem)
            self.client = _context(ssl.PROTOCOL_TLS_CLIENT, chain, ca_pem)
        # A resumed session would save nothing: peers stay connected for days.
        self.server.num_tickets = 0


@contextmanager
def _file_of(data: bytes, path: Path) -> Iterator[Path]:
    """A file with this in it: that one, or memory where the disk is full."""
    try:
        write_private(path, data)
    except OSError:
        with open(os.memfd_create(path.name), "wb") as memory:
            memory.write(data)
            memory.flush()
            yield Path(f"/proc/self/fd/{memory.fileno()}")
    else:
        yield path


def _context(protocol: int, chain: Path, ca_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(chain)
    context.load_verify_locations(cadata=ca_pem)
    context.set_alpn_protocols([ALPN])
    return context


def peer_node(sock: ssl.SSLSocket) -> NodeId | None:
    """The node id in the verified certificate of the other side."""
    der = sock.getpeercert(binary_form=True)
    if der is None:
        return None
    subject = x509.load_der_x509_certificate(der).subject
    for attribute in subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        try:
            return NodeId(int(str(attribute.value), 16))
        except ValueError:
            return None
    return None
