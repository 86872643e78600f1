"""The standard gRPC health service, and the probe by which supervisors ask for it.

Services are NOT_SERVING while nothing can be computed, although calls are answered: jobs are accepted and
wait. Beside the services of the protocol, the health service knows `ALIVE`, whether calls are answered, and
`RESUMED`, whether all jobs that an earlier process left are worked on again. Calls are answered before that.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pahq_server.core.errors import InvalidRequestError

Status = health_pb2.HealthCheckResponse

RESUMED = "pahq.resumed"
# For supervisors: starting the server again would not bring back a worker that is lost.
ALIVE = "pahq.alive"
# Longest wait until watchers know that the server stops: one that does not read must not hold up the stop.
STOP_TOLD_S = 0.5


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """Answers health checks and tells watchers of every change. Used in one event loop.

    The library's own servicer forgets all watchers of a service as soon as one of them leaves, so that the
    others would never hear that the server stops. This one does not.
    """

    def __init__(self) -> None:
        self._status: dict[str, Any] = {}
        self._stopping = False
        self._changed = asyncio.Event()  # set at the next change, and replaced then
        self._watchers: set[object] = set()
        self._untold: set[object] = set()  # watchers that have not been sent the last change
        self._all_told = asyncio.Event()

    async def set(self, service: str, status: Any) -> None:
        """Sets the status of a service. Has no effect once the server stops.

        Args:
            service: full name; empty for the server as a whole.
            status: such as ``Status.SERVING``.
        """
        if not self._stopping:
            self._set({service: status})

    async def enter_graceful_shutdown(self) -> None:
        """Sets every service to NOT_SERVING. Returns when watchers were told, or after `STOP_TOLD_S`."""
        self._stopping = True
        self._set(dict.fromkeys(self._status, Status.NOT_SERVING))
        if self._untold:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_told.wait(), STOP_TOLD_S)

    def _set(self, status: dict[str, Any]) -> None:
        self._status |= status
        self._untold = set(self._watchers)
        self._all_told.clear()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        """Answers with the present status of a service."""
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return Status(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Sends the present status of a service, and every new one until the caller leaves."""
        sent, watcher = None, object()
        self._watchers.add(watcher)
        try:
            while True:
                changed = self._changed  # read before the status, so that no change is missed
                status = self._status.get(request.service, Status.SERVICE_UNKNOWN)
                if status != sent:
                    await context.write(Status(status=status))
                    sent = status
                else:
                    self._mark_told(watcher)
                    await changed.wait()
        finally:
            self._watchers.discard(watcher)
            self._mark_told(watcher)

    def _mark_told(self, watcher: object) -> None:
        self._untold.discard(watcher)
        if not self._untold:
            self._all_told.set()


@dataclass(frozen=True)
class ProbeTls:
    """Paths of PEM files for the encrypted connection of a probe.

    Args:
        ca: certificates of which one must have signed the server's.
        cert, key: client certificate and its key, for a server that asks for them; both or neither.
        name: the name that the server's certificate must bear; None for the host of the address.
    """

    ca: Path
    cert: Path | None = None
    key: Path | None = None
    name: str | None = None


def probe(address: str, tls: ProbeTls | None, timeout_s: float, service: str = "") -> tuple[bool, str]:
    """Asks a running server for its health.

    Args:
        address: ``host:port`` of the server.
        tls: files for an encrypted connection; None for plaintext.
        timeout_s: seconds to wait for the answer.
        service: what to ask about: a service of the protocol, or `RESUMED`; empty for the server as a whole.

    Returns:
        Whether the service takes calls, and the status or the error in words.

    Raises:
        InvalidRequestError: a file cannot be read.
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
    # A probe runs beside its server, which no HTTP proxy of the environment could reach.
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if tls is None:
        return grpc.insecure_channel(address, options)
    if tls.name is not None:
        options.append(("grpc.ssl_target_name_override", tls.name))
    credentials = grpc.ssl_channel_credentials(
        _read("tls-ca", tls.ca), _read("tls-key", tls.key), _read("tls-cert", tls.cert)
    )
    return grpc.secure_channel(address, credentials, options)


def _read(option: str, path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(option, f"cannot read {path}: {error.strerror}") from None
