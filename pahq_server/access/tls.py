"""Certificates: read and checked before the server starts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from pahq_server.core.errors import InvalidRequestError


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files.

    Args:
        cert: the server's certificate, with those in between up to the root's.
        key: its private key, not encrypted.
        client_ca: certificates that must have signed the clients'; None to ask clients for none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class TlsContents:
    """What the files hold, in PEM."""

    cert: bytes
    key: bytes
    client_ca: bytes | None


def read(files: TlsFiles) -> TlsContents:
    """Raises InvalidRequestError for files that cannot be read, are no PEM, or do not go together."""
    contents = TlsContents(
        cert=_bytes("tls-cert", files.cert),
        key=_bytes("tls-key", files.key),
        client_ca=None if files.client_ca is None else _bytes("tls-client-ca", files.client_ca),
    )
    _check_pair(files)
    if files.client_ca is not None:
        _check_ca(files.client_ca)
    return contents


def _bytes(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(option, f"cannot read {path}: {error.strerror}") from None


def _check_pair(files: TlsFiles) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password: without one, an encrypted key would make OpenSSL ask for it on the terminal.
        context.load_cert_chain(files.cert, files.key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            detail = f"{files.key} is not the key of {files.cert}"
        else:
            detail = f"{files.cert} and {files.key} are no certificate with an unencrypted key, both PEM"
        raise InvalidRequestError("tls-cert, tls-key", detail) from None


def _check_ca(path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(path)
        found = context.cert_store_stats()["x509_ca"]
    except ssl.SSLError:
        found = 0
    if not found:
        raise InvalidRequestError("tls-client-ca", f"{path} holds no certificate of an authority, in PEM")
