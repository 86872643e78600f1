"""Where a server is, and what a connection to it needs: checked here, once, for both kinds of clients."""

from __future__ import annotations

import os

from pahq import __version__

from pahq_client import checks
from pahq_client.address import check_address, is_loopback
from pahq_client.errors import InvalidRequest, Unavailable
from pahq_client.tls import TlsConfig, credentials, explain

__all__ = ["SERVER", "TOKEN", "Endpoint", "TlsConfig"]

# Variables of the environment: what holds where an argument is left out.
SERVER, TOKEN = "PAHQ_SERVER", "PAHQ_TOKEN"
RECEIVE_BYTES = 16 << 20


class Endpoint:
    """A server's address with all that calls to it have in common.

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
        """The error of a call, or one that says more of it: that encryption is the reason, and what to do.

        May look at the server, which takes some seconds at most.
        """
        if type(error) is not Unavailable or error.explanation or self.address.startswith("unix:"):
            return error
        explanation = explain(self.address, self._tls, error.detail)
        return Unavailable(error.address, error.detail, explanation) if explanation else error

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
