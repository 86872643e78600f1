"""Certificates: read and checked before the server starts, and watched while it runs."""

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

if TYPE_CHECKING:  # a client alone is installed without it
    from cryptography.x509 import Certificate

logger = logging.getLogger(__name__)

DAY_S = 86_400.0
# So long before a certificate expires the log begins to say so.
SOON_S = 14 * DAY_S
# The same is said again after so long.
REPEAT_S = DAY_S


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
class Dates:
    """From when to when a certificate is valid, in seconds since the epoch.

    Args:
        option: of the command line that names its file.
        path: of its file.
        subject: whom it is for.
        begin, end: the first and the last moment.
    """

    option: str
    path: Path
    subject: str
    begin: float
    end: float

    @property
    def of_clients(self) -> bool:
        """Whether it is an authority of clients, not the server's."""
        return self.option == "tls-client-ca"

    def __str__(self) -> str:
        return f"the certificate of {self.subject} in {self.path}"

    def fault(self, now: float) -> str | None:
        """What is wrong at this moment, with the dates; None if it is valid."""
        if now > self.end:
            return f"{self} has expired on {_date(self.end)}; it is {_date(now)} now"
        if now < self.begin:
            return f"{self} is not valid before {_date(self.begin)}; by the clock here it is {_date(now)}"
        return None


@dataclass(frozen=True)
class TlsContents:
    """What the files hold.

    Args:
        cert, key, client_ca: in PEM.
        server_dates: of the certificates that the server shows; its own comes first.
        client_dates: of the certificates that must have signed the clients'.
    """

    cert: bytes
    key: bytes
    client_ca: bytes | None
    server_dates: tuple[Dates, ...] = ()
    client_dates: tuple[Dates, ...] = ()

    @property
    def server_expiry(self) -> float:
        """When the first of the server's certificates expires, in seconds since the epoch."""
        return min((each.end for each in self.server_dates), default=math.nan)

    @property
    def client_ca_expiry(self) -> float:
        """When the last of the clients' authorities expires: then nobody can connect. NaN without any."""
        return max((each.end for each in self.client_dates), default=math.nan)


def read(files: TlsFiles, now: float | None = None) -> TlsContents:
    """Reads certificates and checks that they can be used.

    Args:
        files: where they are.
        now: seconds since the epoch; None to ask the clock.

    Raises InvalidRequestError for files that cannot be read, are no PEM, or do not go together, and for
    certificates that are not valid now, with their dates.
    """
    contents = TlsContents(
        cert=_bytes("tls-cert", files.cert),
        key=_bytes("tls-key", files.key),
        client_ca=None if files.client_ca is None else _bytes("tls-client-ca", files.client_ca),
    )
    _check_pair(files)
    if files.client_ca is not None:
        _check_ca(files.client_ca)
    now = time.time() if now is None else now
    return replace(
        contents,
        server_dates=_server_dates(files.cert, contents.cert, now),
        client_dates=_client_dates(files.client_ca, contents.client_ca, now),
    )


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


def _server_dates(path: Path, data: bytes, now: float) -> tuple[Dates, ...]:
    """Of all certificates in the file. Raises InvalidRequestError where clients could not accept them."""
    own, *others = _certificates("tls-cert", path, data)
    dates = [_dates("tls-cert", path, each) for each in (own, *others)]
    if fault := dates[0].fault(now):
        raise InvalidRequestError("tls-cert", f"{fault}. Renew it, and start the server again")
    # What signed it is needed, unless that is a root: clients have those themselves.
    signers = [
        found
        for each, found in zip(others, dates[1:], strict=True)
        if each.subject == own.issuer and each.subject != each.issuer
    ]
    if signers and (fault := signers[0].fault(now)) and all(each.fault(now) for each in signers):
        detail = f"{fault}. It signed {dates[0]}: get both anew, and start the server again"
        raise InvalidRequestError("tls-cert", detail)
    # A root in the file is of no consequence: clients trust their own copies.
    needed = [found for each, found in zip(others, dates[1:], strict=True) if each.subject != each.issuer]
    return (dates[0], *needed)


def _client_dates(path: Path | None, data: bytes | None, now: float) -> tuple[Dates, ...]:
    """Of all authorities in the file. Raises InvalidRequestError where none is valid."""
    if path is None or data is None:
        return ()
    dates = tuple(
        _dates("tls-client-ca", path, each)
        for each in _certificates("tls-client-ca", path, data)
        if _is_authority(each)
    )
    faults = [each.fault(now) for each in dates]
    if faults and all(faults):
        raise InvalidRequestError("tls-client-ca", f"{faults[0]}. No client could connect: renew it")
    return dates


def _certificates(option: str, path: Path, data: bytes) -> list[Certificate]:
    try:
        from cryptography import x509
    except ModuleNotFoundError:
        detail = "cryptography, which reads certificates, is not installed: pip install 'pahq[server]'"
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
    except (x509.ExtensionNotFound, ValueError):  # as old roots are
        return certificate.subject == certificate.issuer


def _dates(option: str, path: Path, certificate: Certificate) -> Dates:
    return Dates(
        option,
        path,
        certificate.subject.rfc4514_string() or "nobody",
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class ExpiryWatch:
    """Tells the log of certificates that have expired or soon will, once a day each.

    Args:
        dates: of the certificates in use.
    """

    def __init__(self, dates: Sequence[Dates]) -> None:
        self._dates = tuple(dates)
        self._said: dict[Dates, tuple[str, float]] = {}  # what was said last of each, and when

    def check(self, now: float) -> None:
        """To be called now and then, with the seconds since the epoch."""
        for each in self._dates:
            if fault := each.fault(now):
                effect = "clients with certificates of this authority" if each.of_clients else "clients"
                self._say(
                    each,
                    logging.ERROR,
                    "invalid",
                    f"{fault}. New connections of {effect} fail. {_RENEW}",
                    now,
                )
            elif each.end - now < SOON_S:
                days = (each.end - now) / DAY_S
                text = f"{each} expires on {_date(each.end)}, in {days:.1f} days. {_RENEW}"
                self._say(each, logging.WARNING, "soon", text, now)

    def _say(self, dates: Dates, level: int, kind: str, text: str, now: float) -> None:
        last, at = self._said.get(dates, ("", 0.0))
        if last != kind or not 0 <= now - at < REPEAT_S:
            self._said[dates] = (kind, now)
            logger.log(level, "--%s: %s", dates.option, text)


_RENEW = "Renew it, and restart the server: it reads certificates at its start"
