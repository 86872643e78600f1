"""Where a server is, and what a connection to it needs: checked here, once, for both kinds of clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
from pahq import __version__

from pahq_client import checks
from pahq_client.address import check_address, is_loopback
from pahq_client.errors import InvalidRequest

RECEIVE_BYTES = 16 << 20


@dataclass(frozen=True)
class TlsConfig:
    """Paths of PEM files for an encrypted connection.

    Args:
        ca: certificates to trust; None for the system's.
        cert: this client's certificate, where the server asks for one.
        key: its key; both or neither.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


class Endpoint:
    """A server's address with all that calls to it have in common.

    Args:
        address: HOST:PORT.
        token: sent with every call; without TLS to this machine only.
        tls: None for plaintext, True to trust the system's certificates, or a TlsConfig.
        timeout: seconds that a call may take unless it says otherwise.

    Raises:
        InvalidRequest: an argument is wrong, or the token would travel in the clear.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        tls: bool | TlsConfig | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.address = check_address(address)
        self.timeout = _positive(timeout)
        self.metadata = _metadata(self.address, token, tls)
        # None: nothing is encrypted.
        self.credentials = None if tls is None or tls is False else _credentials(tls)

    def channel_options(self) -> list[tuple[str, int | str]]:
        """For gRPC."""
        return [
            ("grpc.max_receive_message_length", RECEIVE_BYTES),
            # What comes compressed could be anything when unpacked; servers of this kind send nothing so.
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


def _positive(timeout: object) -> float:
    seconds = checks.number("timeout", timeout)
    if not seconds > 0:
        raise InvalidRequest("timeout", f"must be positive, got {seconds:g}")
    return seconds


def _metadata(address: str, token: str | None, tls: bool | TlsConfig | None) -> tuple[tuple[str, str], ...]:
    version = (("pahq-version", __version__),)
    if token is None:
        return version
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token.strip():
        raise InvalidRequest("token", "must be printable ASCII text")
    if not tls and not is_loopback(address):
        raise InvalidRequest("token", f"would go to {address} in the clear: pass tls=, too")
    return (*version, ("authorization", f"Bearer {token}"))


def _credentials(tls: object) -> grpc.ChannelCredentials:
    if tls is True:
        return grpc.ssl_channel_credentials()
    if not isinstance(tls, TlsConfig):
        raise InvalidRequest("tls", f"must be None, True or a TlsConfig, got {type(tls).__name__}")
    if (tls.cert is None) != (tls.key is None):
        raise InvalidRequest("tls", "cert and key go together")
    return grpc.ssl_channel_credentials(
        root_certificates=_pem("tls.ca", tls.ca),
        private_key=_pem("tls.key", tls.key),
        certificate_chain=_pem("tls.cert", tls.cert),
    )


def _pem(field: str, path: str | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidRequest(field, f"cannot read {path!r}: {reason}") from None
