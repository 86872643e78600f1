"""Where a server is and how to connect to it: the address, the token, and encryption (TLS).

`Endpoint` checks all of it once, for blocking and asynchronous clients alike.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
from pahq import __version__

from pahq_client import checks
from pahq_client.errors import InvalidRequest, Unavailable

# Environment variables with the defaults of arguments.
SERVER, TOKEN = "PAHQ_SERVER", "PAHQ_TOKEN"
RECEIVE_BYTES = 16 << 20


class Endpoint:
    """A server's address, token and encryption.

    Args:
        address: HOST:PORT; None for $PAHQ_SERVER.
        token: sent with every call; without TLS to this machine only. None for $PAHQ_TOKEN, if it is set.
        tls: None for plaintext, True to trust public authorities, or a TlsConfig.
        timeout: seconds that a call may take unless it says otherwise.

    Raises:
        InvalidRequest: an argument is wrong or missing, or the token would travel in the clear.
    """

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        tls: bool | TlsConfig | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.address = _named_server() if address is None else check_address(address)
        self.timeout = _positive(timeout)
        self.metadata = _metadata(self.address, token, tls)
        # None: nothing is encrypted.
        self.credentials = credentials(tls)
        self._tls = tls

    def explained(self, error: Exception) -> Exception:
        """Returns the error of a call, or one that explains it, if encryption is the reason.

        May connect to the server to find out, which takes some seconds at most.
        """
        if type(error) is not Unavailable or error.explanation or self.address.startswith("unix:"):
            return error
        explanation = explain(self.address, self._tls, error.detail)
        return Unavailable(error.address, error.detail, explanation) if explanation else error

    def channel_options(self) -> list[tuple[str, int | str]]:
        """Returns the options of a gRPC channel."""
        return [
            ("grpc.max_receive_message_length", RECEIVE_BYTES),
            # A compressed message could have any size when unpacked; PAHQ servers do not compress.
            ("grpc.compression_enabled_algorithms_bitset", 1),  # a set, with "none" in it alone
            ("grpc.primary_user_agent", f"pahq/{__version__}"),
            # Reconnects are paced by Backoff; gRPC's own pauses (up to two minutes) would swallow its tries.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # Connections shared between channels would share those pauses: a server started after a failed
            # call would seem down to a new client, too.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0 if is_loopback(self.address) else 1),
        ]


def _named_server() -> str:
    address = os.environ.get(SERVER)
    if not address:
        raise InvalidRequest(
            "server",
            f'is not given: pass the address, such as Client("gpu-box:7300"), or set ${SERVER}. '
            "pahq_client.discover() can also start a server of its own, for one call",
        )
    try:
        return check_address(address)
    except InvalidRequest as error:
        raise InvalidRequest(error.field, f"{error.detail} (it is ${SERVER})") from None


def _positive(timeout: object) -> float:
    seconds = checks.number("timeout", timeout)
    if not seconds > 0:
        raise InvalidRequest("timeout", f"must be positive, got {seconds:g}")
    return seconds


def _metadata(address: str, token: str | None, tls: bool | TlsConfig | None) -> tuple[tuple[str, str], ...]:
    version = (("pahq-version", __version__),)
    origin = ""
    if token is None:
        token, origin = os.environ.get(TOKEN) or None, f" (it is ${TOKEN})"
    if token is None:
        return version
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token.strip():
        raise InvalidRequest("token", f"must be printable ASCII text{origin}")
    if not tls and not is_loopback(address):
        raise InvalidRequest("token", f"would go to {address} in the clear: pass tls=, too{origin}")
    return (*version, ("authorization", f"Bearer {token}"))


# Addresses.

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})", re.ASCII)


def check_address(address: object) -> str:
    """Returns the address if it has the form of one. Raises InvalidRequest otherwise."""
    text = checks.text("server", address)
    if text.startswith("unix:"):
        return text
    if not _is_address(text):
        meant = _meant(text)
        hint = f"; did you mean {meant}?" if meant else ""
        raise InvalidRequest("server", f"must be HOST:PORT, for example gpu-box:7300, got {text!r}{hint}")
    return text


def _meant(text: str) -> str | None:
    """The address that was probably meant: without a scheme, with a host, or with the usual port."""
    bare = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://|/$", "", text.strip())
    host, _, port = bare.rpartition(":")
    guesses = (bare, f"127.0.0.1:{bare.removeprefix(':')}", f"[{host}]:{port}", f"{bare}:7300")
    return next((guess for guess in guesses if bare and _is_address(guess)), None)


def _is_address(text: str) -> bool:
    match = _ADDRESS.fullmatch(text)
    return match is not None and 0 < int(match[2]) < 65536


def is_loopback(address: str) -> bool:
    """Whether what is sent to the (valid) address stays on this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


# Encryption: certificate files, and explanations of failed connections.

# Seconds that connecting to a server may take, to find out why a call failed.
LOOK_S = 2.0
# gRPC's texts for a connection that ended before any message.
_CUT_SHORT = ("Socket closed", "reset by peer", "SETTINGS", "handshake", "Broken pipe", "End of TCP stream")


@dataclass(frozen=True)
class TlsConfig:
    """Paths of PEM files for an encrypted connection.

    Args:
        ca: certificates to trust; None for those of public authorities, which gRPC brings along.
        cert: this client's certificate, where the server asks for one.
        key: its key; both or neither.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


def credentials(tls: object) -> grpc.ChannelCredentials | None:
    """Returns the credentials for a channel; None for plaintext.

    Args:
        tls: None or False for plaintext, True to trust public authorities, or a TlsConfig.

    Raises:
        InvalidRequest: it is none of these, or a file cannot be read or holds something else.
    """
    if tls is None or tls is False:
        return None
    if tls is True:
        return grpc.ssl_channel_credentials()
    if not isinstance(tls, TlsConfig):
        raise InvalidRequest("tls", f"must be None, True or a TlsConfig, got {type(tls).__name__}")
    if (tls.cert is None) != (tls.key is None):
        raise InvalidRequest("tls", "cert and key go together")
    found = grpc.ssl_channel_credentials(
        root_certificates=_pem("tls.ca", tls.ca),
        private_key=_pem("tls.key", tls.key),
        certificate_chain=_pem("tls.cert", tls.cert),
    )
    _check(tls)
    return found


def _pem(field: str, path: str | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidRequest(field, f"cannot read {path!r}: {reason}") from None


def _check(tls: TlsConfig) -> None:
    """Raises InvalidRequest for files that cannot be used; gRPC would not say which of them is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca is not None:
        try:
            context.load_verify_locations(tls.ca)
        except ssl.SSLError:
            raise InvalidRequest("tls.ca", f"{tls.ca} holds no certificate, in PEM") from None
    if tls.cert is not None:
        try:
            # An empty password: without one, OpenSSL would ask for that of an encrypted key on the terminal.
            context.load_cert_chain(tls.cert, tls.key, password="")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                detail = f"{tls.key} is not the key of {tls.cert}"
            else:
                detail = f"{tls.cert} and {tls.key} are no certificate with an unencrypted key, both PEM"
            raise InvalidRequest("tls.cert", detail) from None


def explain(address: str, tls: bool | TlsConfig | None, detail: str) -> str:
    """Says whether a connection failed because of encryption, and what to do.

    May connect to the server, for up to `LOOK_S` seconds.

    Args:
        address: address of the server.
        tls: as in `Endpoint`.
        detail: gRPC's text of the failed call.

    Returns:
        What is wrong and what to do; empty if encryption is not known to be the reason.
    """
    if tls:
        return _of_verdict(address, tls, detail) or (
            _of_refusal(address, tls) if any(words in detail for words in _CUT_SHORT) else ""
        )
    if any(words in detail for words in _CUT_SHORT) and _encrypts(address):
        return (
            f"the server at {address} encrypts its connections, and this client does not: pass "
            "tls=TlsConfig(ca=...) with the certificate of its authority (pahq --tls-ca FILE), or tls=True "
            "(--tls) if a public authority signed its certificate"
        )
    return ""


def _of_verdict(address: str, tls: bool | TlsConfig, detail: str) -> str:
    """Explains what this side found wrong with the server; gRPC's text quotes BoringSSL."""
    if "WRONG_VERSION_NUMBER" in detail or "HTTP_REQUEST" in detail:
        return (
            f"the server at {address} does not encrypt its connections: leave out tls= "
            "(pahq --tls, --tls-ca), or start it with --tls-cert and --tls-key"
        )
    if "Hostname Verification" in detail or "not in peer certificate" in detail:
        return (
            f"the certificate of the server at {address} is for other names: call it by one of those, or "
            "have this one added to the certificate"
        )
    if "CERTIFICATE_VERIFY_FAILED" not in detail:
        return ""
    if "expired" in detail:
        return (
            f"the certificate of the server at {address}, or of its authority, has expired (or the clock "
            "here is wrong): whoever runs the server must renew it"
        )
    if "not yet valid" in detail:
        return f"the certificate of the server at {address} is not valid yet (or the clock here is wrong)"
    trusted = tls.ca if isinstance(tls, TlsConfig) else None
    return (
        f"the certificate of the server at {address} is signed by no authority that "
        f"{'the certificates in ' + trusted + ' know' if trusted else 'gRPC knows by itself'}: pass "
        "tls=TlsConfig(ca=...) with the certificate of the server's authority (pahq --tls-ca FILE)"
    )


def _encrypts(address: str) -> bool:
    """Whether the server answers a TLS handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent over the connection
    try:
        with _connected(address, context):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # such an answer is TLS, too
    except (OSError, ValueError):
        return False


def _of_refusal(address: str, tls: bool | TlsConfig) -> str:
    """Explains that the server does not accept this client's certificate, or needs one; empty otherwise."""
    own = tls if isinstance(tls, TlsConfig) else TlsConfig()
    if not _turns_away(address, own):
        return ""
    start = f"the server at {address} ends encrypted connections of this client right after they were made"
    if own.cert is None:
        return (
            f"{start}, as servers do that ask clients for a certificate: pass tls=TlsConfig(ca=..., "
            "cert=..., key=...) (pahq --tls-cert FILE --tls-key FILE)"
        )
    return (
        f"{start}: it does not accept the certificate in {own.cert}, because it has expired, or an "
        "authority has signed it that the server does not trust"
    )


def _turns_away(address: str, own: TlsConfig) -> bool:
    """Whether the server ends an encrypted connection at once, instead of sending its HTTP/2 settings."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent over the connection, and gRPC has verified the server before.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        if own.cert is not None:
            context.load_cert_chain(own.cert, own.key, password="")
        connection = _connected(address, context)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, ValueError):
        return False
    with connection:
        try:
            # With TLS 1.3 a server checks the client's certificate after the client's handshake is over.
            return connection.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:  # reset, or an alert
            return True


def _connected(address: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Connects. Raises OSError, which includes ssl.SSLError, and ValueError for a wrong host or port."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection((host, int(port)), timeout=LOOK_S)
    try:
        return context.wrap_socket(plain, server_hostname=None if _is_ip(host) else host)
    except BaseException:
        plain.close()
        raise


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
