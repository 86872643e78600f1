"""The standard health service: whether the server, and each of its services, takes calls."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Status = health_pb2.HealthCheckResponse


# Longest wait for watchers to hear that the server stops: one that does not read must not hold it up.
TOLD_S = 0.5


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
        self._watchers: set[object] = set()
        self._behind: set[object] = set()  # watchers that have not heard of the last change
        self._all_told = asyncio.Event()

    async def set(self, service: str, status: Any) -> None:
        """Sets the status of a service, empty for the whole server. No effect once it stops."""
        if not self._stopping:
            self._set({service: status})

    async def enter_graceful_shutdown(self) -> None:
        """No service takes calls from now on. Returns when watchers have heard it, or after `TOLD_S`."""
        self._stopping = True
        self._set(dict.fromkeys(self._status, Status.NOT_SERVING))
        if self._behind:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_told.wait(), TOLD_S)

    def _set(self, status: dict[str, Any]) -> None:
        self._status |= status
        self._behind = set(self._watchers)
        self._all_told.clear()
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
        told, watcher = None, object()
        self._watchers.add(watcher)
        try:
            while True:
                changed = self._changed  # before the look: no change is missed
                status = self._status.get(request.service, Status.SERVICE_UNKNOWN)
                if status != told:
                    await context.write(Status(status=status))
                    told = status
                else:
                    self._heard(watcher)
                    await changed.wait()
        finally:
            self._watchers.discard(watcher)
            self._heard(watcher)

    def _heard(self, watcher: object) -> None:
        self._behind.discard(watcher)
        if not self._behind:
            self._all_told.set()
