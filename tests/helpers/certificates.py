"""Certificates for tests: an authority of the test's own, and what it signs."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files and in PEM."""

    cert: Path
    key: Path

    @property
    def cert_pem(self) -> bytes:
        return self.cert.read_bytes()

    @property
    def key_pem(self) -> bytes:
        return self.key.read_bytes()


class Authority:
    """Signs certificates for 127.0.0.1 and localhost, and for clients.

    Args:
        folder: where files go.
        name: of the authority.
        valid_for: from the day before yesterday on; negative for one that has expired.
    """

    def __init__(
        self, folder: Path, name: str = "test authority", valid_for: datetime.timedelta = DAY
    ) -> None:
        self._folder, self._name = folder, _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = _builder(self._name, self._name, self._key.public_key(), valid_for)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        signed = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.cert = folder / f"{name.replace(' ', '-')}.pem"
        self.cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def authorize(self, name: str, valid_for: datetime.timedelta = DAY) -> Authority:
        """An authority below this one; its certificate alone is in its file."""
        below = Authority(self._folder, name, valid_for)
        builder = _builder(below._name, self._name, below._key.public_key(), valid_for)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        signed = builder.sign(self._key, hashes.SHA256())
        below.cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return below

    def sign(self, name: str, valid_for: datetime.timedelta = DAY, password: bytes | None = None) -> Pair:
        """A certificate with this common name.

        Args:
            name: common name, and name of the files.
            valid_for: from yesterday on; negative for one that has expired.
            password: of the key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = _builder(_name(name), self._name, key.public_key(), valid_for)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        signed = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False).sign(
            self._key, hashes.SHA256()
        )
        pair = Pair(self._folder / f"{name}.cert.pem", self._folder / f"{name}.key.pem")
        pair.cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            encryption = serialization.BestAvailableEncryption(password)
        pair.key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return pair


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, valid_for: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + valid_for)
    )
