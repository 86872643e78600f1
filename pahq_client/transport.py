"""The only place that makes a gRPC channel and sees gRPC's errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
from pahq import __version__
from pahq.v1.discovery_pb2_grpc import DiscoveryServiceStub
from pahq.v1.model_pb2_grpc import ModelServiceStub
from pahq.v1.patching_pb2_grpc import PatchingServiceStub
from pahq.v1.server_pb2_grpc import ServerServiceStub

from pahq_client import checks
from pahq_client.address import check_address, is_loopback
from pahq_client.errors import InvalidRequest
from pahq_client.status import to_error
from pahq_client.stream import StreamReader

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


class Transport:
    """A connection to one server. Safe to use from several threads.

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
        self._metadata = _metadata(self.address, token, tls)
        self._closed = False
        self._channel = _channel(self.address, tls)
        self.discovery = DiscoveryServiceStub(self._channel)
        self.models = ModelServiceStub(self._channel)
        self.patching = PatchingServiceStub(self._channel)
        self.server = ServerServiceStub(self._channel)

    def close(self) -> None:
        """Ends the connection and all calls on it."""
        self._closed = True
        self._channel.close()

    def call(self, method: Callable[..., Any], request: object, timeout: float | None = None) -> Any:
        """One request, one response. Raises PahqError."""
        self._check_open()
        try:
            return method(request, timeout=timeout or self.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise to_error(cast(grpc.Call, error), self.address) from error

    def stream(self, method: Callable[..., Any], request: object, timeout: float) -> Iterator[Any]:
        """One request, responses as they come; all of them within the timeout. Raises PahqError."""
        self._check_open()
        try:
            yield from StreamReader(lambda: method(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError as error:
            raise to_error(cast(grpc.Call, error), self.address) from error

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this client is closed")


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


def _channel(address: str, tls: bool | TlsConfig | None) -> grpc.Channel:
    options = [
        ("grpc.max_receive_message_length", RECEIVE_BYTES),
        ("grpc.primary_user_agent", f"pahq/{__version__}"),
        # Reconnects are paced by Backoff; gRPC's own pauses (up to two minutes) would swallow its tries.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Connections shared between channels would share those pauses: a server started after a failed
        # call would seem down to a new client, too.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0 if is_loopback(address) else 1),
    ]
    if tls is None or tls is False:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, _credentials(tls), options)


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
    except OSError as error:
        raise InvalidRequest(field, f"cannot read {path}: {error.strerror}") from None
