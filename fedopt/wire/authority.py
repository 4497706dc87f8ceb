"""The certificates of a federation: an authority of its own, and what it signs. All in PEM."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

EARLY = timedelta(minutes=5)
"""A certificate is good from so long before it was made, for clocks that are behind."""


class Signed(NamedTuple):
    """A private key, and the certificate for it."""

    key: bytes
    certificate: bytes


def authority(name: str, days: int = 3650) -> Signed:
    """A new authority, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, name, key.public_key(), days).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    found = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    return Signed(_private(key), found.public_bytes(serialization.Encoding.PEM))


def server(ca: Signed, hosts: Sequence[str], days: int = 825) -> Signed:
    """A key and a certificate for a server that is reached by these names and addresses."""
    signer = serialization.load_pem_private_key(ca.key, None)
    issuer = x509.load_pem_x509_certificate(ca.certificate)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    called = issuer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    found = (
        _builder(hosts[0], str(called), key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return Signed(_private(key), found.public_bytes(serialization.Encoding.PEM))


def node_key() -> tuple[bytes, bytes]:
    """A key for a Flower node, private and public, both in OpenSSH's form, on the curve P-384."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public + b"\n"


def _builder(name: str, issuer: str, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    # a number of days below 1 makes a certificate that is out of date, for whoever wants to see what happens then
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now - EARLY, now + timedelta(days=days) - EARLY))
        .not_valid_after(now + timedelta(days=days))
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
