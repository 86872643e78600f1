"""Asks a running server how it is, as those do who supervise it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pahq_server.core.errors import InvalidRequestError

# What the health service knows beside the services of the protocol: whether the jobs that an earlier process
# left are all worked on again. Calls are answered before that.
RESUMED = "pahq.resumed"


@dataclass(frozen=True)
class ProbeTls:
    """Paths of PEM files for an encrypted connection.

    Args:
        ca: certificates of which one must have signed the server's.
        cert, key: what to show a server that asks for a client's; both or neither.
        name: that the server's certificate must bear; None for the host of the address.
    """

    ca: Path
    cert: Path | None = None
    key: Path | None = None
    name: str | None = None


def serving(address: str, tls: ProbeTls | None, timeout_s: float, service: str = "") -> tuple[bool, str]:
    """Whether a server takes calls, and what it or the connection says.

    Args:
        address: of the server.
        tls: to encrypt the connection; None for plaintext.
        timeout_s: seconds to wait.
        service: what to ask about; empty for the server as a whole.

    Raises InvalidRequestError for files that cannot be read.
    """
    with _channel(address, tls) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            return False, f"{error.code().name}: {error.details()}"
        status = health_pb2.HealthCheckResponse.ServingStatus
        return answer.status == status.SERVING, status.Name(answer.status)


def _channel(address: str, tls: ProbeTls | None) -> grpc.Channel:
    # A proxy of the environment is for what is far away.
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if tls is None:
        return grpc.insecure_channel(address, options)
    if tls.name is not None:
        options.append(("grpc.ssl_target_name_override", tls.name))
    credentials = grpc.ssl_channel_credentials(
        _bytes("tls-ca", tls.ca), _bytes("tls-key", tls.key), _bytes("tls-cert", tls.cert)
    )
    return grpc.secure_channel(address, credentials, options)


def _bytes(option: str, path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(option, f"cannot read {path}: {error.strerror}") from None
