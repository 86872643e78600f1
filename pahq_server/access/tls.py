"""TLS certificates: read and checked before a server starts, and watched for their expiry while it runs."""

from __future__ import annotations

import logging
import math
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pahq_server.core.errors import InvalidRequestError

if TYPE_CHECKING:  # an installation of the client only has no cryptography
    from cryptography.x509 import Certificate

logger = logging.getLogger(__name__)

DAY_S = 86_400.0
# The log begins to warn this long before a certificate expires,
SOON_S = 14 * DAY_S
# and repeats a warning after this long.
REPEAT_S = DAY_S


@dataclass(frozen=True)
class TlsFiles:
    """Paths of the PEM files for TLS.

    Args:
        cert: the server's certificate, followed by the intermediate ones that lead to its root.
        key: its private key, not encrypted.
        client_ca: certificates of the authorities one of which must have signed a client's certificate; None
            if clients need none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class CertificateValidity:
    """The time in which a certificate is valid.

    Args:
        option: command line option that names its file, without the dashes.
        path: path of its file.
        subject: whom it is for, in the form of RFC 4514.
        begin, end: first and last moment, in seconds since the epoch.
    """

    option: str
    path: Path
    subject: str
    begin: float
    end: float

    @property
    def of_clients(self) -> bool:
        """Whether it belongs to an authority of clients, not to the server."""
        return self.option == "tls-client-ca"

    def __str__(self) -> str:
        return f"the certificate of {self.subject} in {self.path}"

    def problem(self, now: float) -> str | None:
        """Says why the certificate is not valid at the time ``now``, with the dates; None if it is."""
        if now > self.end:
            return f"{self} has expired on {_date(self.end)}; it is {_date(now)} now"
        if now < self.begin:
            return f"{self} is not valid before {_date(self.begin)}; by the clock here it is {_date(now)}"
        return None


@dataclass(frozen=True)
class TlsContents:
    """What `TlsFiles` contain.

    Args:
        cert, key, client_ca: the bytes of the files, PEM.
        server_validity: validity of the certificates that the server shows; its own is the first.
        client_validity: validity of the authorities one of which must have signed a client's certificate.
    """

    cert: bytes
    key: bytes
    client_ca: bytes | None
    server_validity: tuple[CertificateValidity, ...] = ()
    client_validity: tuple[CertificateValidity, ...] = ()

    @property
    def server_expiry(self) -> float:
        """When the first of the server's certificates expires, in seconds since the epoch."""
        return min((each.end for each in self.server_validity), default=math.nan)

    @property
    def client_ca_expiry(self) -> float:
        """When the last authority of clients expires, in seconds since the epoch; NaN if there is none.

        From then on no client can connect.
        """
        return max((each.end for each in self.client_validity), default=math.nan)


def read_tls_files(files: TlsFiles, now: float | None = None) -> TlsContents:
    """Reads certificates and checks that a server can use them.

    Args:
        files: paths of the certificates.
        now: seconds since the epoch; None to ask the clock.

    Raises:
        InvalidRequestError: a file cannot be read or is not PEM, the files do not go together, or a
            certificate is not valid now. The field is the command line option.
    """
    contents = TlsContents(
        cert=_read("tls-cert", files.cert),
        key=_read("tls-key", files.key),
        client_ca=None if files.client_ca is None else _read("tls-client-ca", files.client_ca),
    )
    _check_pair(files)
    if files.client_ca is not None:
        _check_ca(files.client_ca)
    now = time.time() if now is None else now
    return replace(
        contents,
        server_validity=_server_validity(files.cert, contents.cert, now),
        client_validity=_client_validity(files.client_ca, contents.client_ca, now),
    )


def _read(option: str, path: Path) -> bytes:
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


def _server_validity(path: Path, data: bytes, now: float) -> tuple[CertificateValidity, ...]:
    """Returns the validity of the certificates that clients need of a file.

    Raises:
        InvalidRequestError: clients could not accept the server's certificate.
    """
    own, *others = _certificates("tls-cert", path, data)
    own_validity = _validity("tls-cert", path, own)
    if problem := own_validity.problem(now):
        raise InvalidRequestError("tls-cert", f"{problem}. Renew it, and start the server again")
    # Roots in the file do not matter, since clients use their own copies of them. Intermediates do.
    intermediates = [
        (each, _validity("tls-cert", path, each)) for each in others if each.subject != each.issuer
    ]
    signers = [validity for each, validity in intermediates if each.subject == own.issuer]
    problems = [validity.problem(now) for validity in signers]
    if problems and all(problems):
        detail = f"{problems[0]}. It signed {own_validity}: get both anew, and start the server again"
        raise InvalidRequestError("tls-cert", detail)
    return (own_validity, *(validity for _, validity in intermediates))


def _client_validity(path: Path | None, data: bytes | None, now: float) -> tuple[CertificateValidity, ...]:
    """Returns the validity of all authorities in a file.

    Raises:
        InvalidRequestError: none of them is valid.
    """
    if path is None or data is None:
        return ()
    validity = tuple(
        _validity("tls-client-ca", path, each)
        for each in _certificates("tls-client-ca", path, data)
        if _is_authority(each)
    )
    problems = [each.problem(now) for each in validity]
    if problems and all(problems):
        raise InvalidRequestError("tls-client-ca", f"{problems[0]}. No client could connect: renew it")
    return validity


def _certificates(option: str, path: Path, data: bytes) -> list[Certificate]:
    try:
        from cryptography import x509
    except ModuleNotFoundError:
        detail = (
            "cryptography, which reads certificates, is not installed: pip install '.[server]' in a checkout "
            "of PAHQ"
        )
        raise InvalidRequestError(option, detail) from None
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise InvalidRequestError(
            option, f"{path} holds a certificate that cannot be read: {error}"
        ) from None


def _is_authority(certificate: Certificate) -> bool:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):  # roots of X.509 version 1 have no extensions
        return certificate.subject == certificate.issuer


def _validity(option: str, path: Path, certificate: Certificate) -> CertificateValidity:
    return CertificateValidity(
        option,
        path,
        certificate.subject.rfc4514_string() or "nobody",
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_RENEW = "Renew it, and restart the server: it reads certificates at its start"


class ExpiryWatch:
    """Writes into the log which certificates have expired or soon will, once a day for each.

    Args:
        validity: validity of the certificates in use.
    """

    def __init__(self, validity: Sequence[CertificateValidity]) -> None:
        self._validity = tuple(validity)
        # The kind of the last warning about each certificate, and when it was written.
        self._warned: dict[CertificateValidity, tuple[str, float]] = {}

    def check(self, now: float) -> None:
        """Writes the warnings that are due. To be called about once a minute.

        Args:
            now: seconds since the epoch.
        """
        for each in self._validity:
            if problem := each.problem(now):
                whose = "clients with certificates of this authority" if each.of_clients else "clients"
                text = f"{problem}. New connections of {whose} fail. {_RENEW}"
                self._log(each, logging.ERROR, "invalid", text, now)
            elif each.end - now < SOON_S:
                days = (each.end - now) / DAY_S
                text = f"{each} expires on {_date(each.end)}, in {days:.1f} days. {_RENEW}"
                self._log(each, logging.WARNING, "soon", text, now)

    def _log(self, validity: CertificateValidity, level: int, kind: str, text: str, now: float) -> None:
        last_kind, last_time = self._warned.get(validity, ("", 0.0))
        if last_kind != kind or not 0 <= now - last_time < REPEAT_S:
            self._warned[validity] = (kind, now)
            logger.log(level, "--%s: %s", validity.option, text)
