"""The standard health service: whether the server, and each of its services, takes calls."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """Answers, and tells watchers of every change.

    In place of the library's, which forgets all watchers of a service as soon as one of them leaves: the
    others would never hear that the server stops. For use in one event loop.
    """

    def __init__(self) -> None:
        self._status: dict[str, Any] = {}
        self._stopping = False
        # Set at the next change, and then replaced.
        self._changed = asyncio.Event()

    async def set(self, service: str, status: Any) -> None:
        """Sets the status of a service, empty for the whole server. No effect once it stops."""
        if not self._stopping:
            self._set({service: status})

    async def enter_graceful_shutdown(self) -> None:
        """No service takes calls from now on."""
        self._stopping = True
        self._set(dict.fromkeys(self._status, Status.NOT_SERVING))

    def _set(self, status: dict[str, Any]) -> None:
        self._status |= status
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        """The present status of a service."""
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return Status(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """The present status of a service, and every other one that follows, until the caller leaves."""
        told = None
        while True:
            changed = self._changed  # before the look: no change is missed
            status = self._status.get(request.service, Status.SERVICE_UNKNOWN)
            if status != told:
                await context.write(Status(status=status))
                told = status
            else:
                await changed.wait()
